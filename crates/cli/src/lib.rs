//! The command line of q35: sources of models, output and progress, exit codes, and the subcommands of `q35-convert`, one
//! module each. The crates below convert, check and run models; this one knows terminals, arguments and the environment,
//! and must not know arithmetic or file formats.
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
pub mod context;
pub mod conversion;
pub mod demo;
pub mod dropped_tensors;
pub mod exit;
pub mod interrupt;
pub mod open;
pub mod output;
pub mod progress;
pub mod source;
