//! The command line's shared floor: where models come from, what is printed and drawn, how a process ends, and the
//! subcommands of `q35-convert`, one module each. Everything that converts, checks or runs a model lives in the crates
//! below; this one knows terminals, arguments and the environment.
//!
//! ```
//! use q35_cli::output::bytes;
//! assert_eq!(bytes(424_031_494), "424.03 MB");
//! ```
#![deny(missing_docs)]
#![forbid(unsafe_code)]

pub mod backend;
pub mod chat;
pub mod commands;
pub mod conversion;
pub mod demo;
pub mod dropped_tensors;
pub mod exit;
pub mod interrupt;
pub mod open;
pub mod output;
pub mod progress;
pub mod source;
