//! Output directories that appear complete or not at all ([`Staging`]), with a manifest against which they can be
//! verified later ([`Manifest`], [`verify`]).
//!
//! A conversion writes into a hidden sibling of its target (the staging directory) and publishes it with one rename: a
//! process that is killed at any moment leaves the old state or the new one. The crate must not know what the
//! directories contain.
//!
//! ```
//! use q35_output_dir::{Existing, Manifest, Staging, verify};
//! let home = std::env::temp_dir().join(format!("q35-output-dir-{}", std::process::id()));
//! let target = home.join("model");
//!
//! let staging = Staging::begin(&target, Existing::Refuse)?;
//! std::fs::write(staging.path().join("config.json"), "{}").unwrap();
//! staging.seal(Manifest::new("example", "1.0"), Vec::new())?;
//! assert!(!target.exists());
//! staging.publish()?;
//!
//! assert!(verify(&target)?.problems.is_empty());
//! # std::fs::remove_dir_all(home).unwrap();
//! # Ok::<(), q35_output_dir::OutputDirError>(())
//! ```
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod error;
mod hashed_file;
mod manifest;
mod rename_exchange;
mod staging;
mod verify;

pub use error::OutputDirError;
pub use hashed_file::{HashedFile, hash_file};
pub use manifest::{FileRecord, MANIFEST, Manifest, Source, TensorRecord, Tool};
pub use staging::{Existing, Staging, remove_unpublished};
pub use verify::{Verification, VerifyProblem, verify};
