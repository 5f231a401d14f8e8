//! `q35-convert`: converts checkpoints and checks what came out.

use std::process::ExitCode;

use clap::Parser;
use q35_cli::commands::Convert;

fn main() -> ExitCode {
    q35_cli::exit::report(Convert::parse().run())
}
