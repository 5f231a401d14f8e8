//! The subcommands of `q35-convert`: a module for each, with its arguments and their help, and a function that runs it.

use clap::{Parser, Subcommand};

use crate::context::Context;
use crate::exit::Outcome;
use crate::progress::Watcher;

pub mod coreml;
pub mod eval;
pub mod inspect;
mod inspect_package;
pub mod logits;
pub mod mlx;
pub mod parity;
pub mod plan;
pub mod tokenize;
pub mod verify;

/// Converts Qwen3.5 checkpoints for Apple devices, and checks the result
///
/// Exit codes: 0, done; 1, it ran and the answer is no; 2, it could not run; 130, interrupted.
#[derive(Debug, Parser)]
#[command(name = "q35-convert", version, max_term_width = 100)]
pub struct Convert {
    /// The command
    #[command(subcommand)]
    pub command: Command,

    /// Print results and errors only
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

/// The subcommands of `q35-convert`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Quantize a checkpoint to an MLX model
    Mlx(Printing<mlx::Args>),
    /// Quantize a checkpoint to INT8 Core ML packages
    Coreml(Printing<coreml::Args>),
    /// Re-hash the files of a converted model
    Verify(Printing<verify::Args>),
    /// Show the tensors and packages of a checkpoint, a converted model or a file
    Inspect(Printing<inspect::Args>),
    /// Print the token ids of a text, for logits and parity
    Tokenize(Printing<tokenize::Args>),
    /// Write a model's logits for given tokens to a file
    Logits(Printing<logits::Args>),
    /// Is a converted model still the model? Numbers, reasons, and an exit code
    Parity(parity::Args),
    /// Show the unit on which Apple's Core ML would run each operation of converted packages (on a Mac)
    Plan(Printing<plan::Args>),
    /// Compare models: perplexity, KL and task scores side by side
    Eval(Printing<eval::Args>),
}

/// Arguments of a command whose results go to stdout, as text or JSON. `parity` is no such command: its `--json`
/// names a file.
#[derive(Debug, clap::Args)]
pub struct Printing<T: clap::Args> {
    /// Arguments of the command itself.
    #[command(flatten)]
    pub args: T,

    /// Print results as JSON
    #[arg(long)]
    pub json: bool,
}

impl Convert {
    /// Runs the command.
    ///
    /// # Errors
    /// It could not run.
    pub fn run(self) -> anyhow::Result<Outcome> {
        let quiet = self.quiet;
        let context = |json| Context { json, watcher: Watcher::detect(quiet || json) };
        match self.command {
            Command::Mlx(with) => mlx::run(&with.args, context(with.json)),
            Command::Coreml(with) => coreml::run(&with.args, context(with.json)),
            Command::Verify(with) => verify::run(&with.args, context(with.json)),
            Command::Inspect(with) => inspect::run(&with.args, context(with.json)),
            Command::Tokenize(with) => tokenize::run(&with.args, context(with.json)),
            Command::Logits(with) => logits::run(&with.args, context(with.json)),
            Command::Parity(args) => parity::run(&args, context(false)),
            Command::Plan(with) => plan::run(&with.args, context(with.json)),
            Command::Eval(with) => eval::run(&with.args, context(with.json)),
        }
    }
}
