//! `q35-chat`: talks with a converted model.

use std::process::ExitCode;

use clap::Parser;
use q35_cli::chat::Chat;

fn main() -> ExitCode {
    q35_cli::exit::report(Chat::parse().run())
}
