//! `q35-demo`, what `cargo run` runs: the whole way on the embedded model.

use std::process::ExitCode;

fn main() -> ExitCode {
    q35_cli::exit::report(q35_cli::demo::run())
}
