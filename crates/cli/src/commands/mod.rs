//! The subcommands of `q35-convert`. Each module has its arguments, with the text that `--help` prints, and a function
//! that runs it.

use clap::{Parser, Subcommand};

use crate::exit::Outcome;
use crate::progress::Watcher;

pub mod coreml;
pub mod inspect;
pub mod mlx;
pub mod verify;

/// Converts Qwen3.5 checkpoints for Apple devices, and checks what came out
///
/// Exit codes: 0, done; 1, it ran and the answer is no; 2, it could not run.
#[derive(Debug, Parser)]
#[command(name = "q35-convert", version, max_term_width = 100)]
pub struct Convert {
    /// What to do
    #[command(subcommand)]
    pub command: Command,

    /// Print results as JSON
    #[arg(long, global = true)]
    pub json: bool,

    /// Print results and errors only
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

/// What `q35-convert` can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Quantize a checkpoint to an MLX model
    Mlx(mlx::Args),
    /// Quantize a checkpoint to INT8 Core ML packages
    Coreml(coreml::Args),
    /// Re-hash the files of a converted model
    Verify(verify::Args),
    /// Show what a checkpoint, a converted model or a file holds
    Inspect(inspect::Args),
}

/// What all commands are told.
#[derive(Clone, Copy, Debug)]
pub struct Context {
    /// Whether results are to be JSON.
    pub json: bool,
    /// Who watches progress.
    pub watcher: Watcher,
}

impl Convert {
    /// Runs the command.
    ///
    /// # Errors
    /// It could not run.
    pub fn run(self) -> anyhow::Result<Outcome> {
        let context = Context { json: self.json, watcher: Watcher::detect(self.quiet || self.json) };
        match self.command {
            Command::Mlx(args) => mlx::run(&args, context),
            Command::Coreml(args) => coreml::run(&args, context),
            Command::Verify(args) => verify::run(&args, context),
            Command::Inspect(args) => inspect::run(&args, context),
        }
    }
}
