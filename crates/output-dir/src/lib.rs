//! Output directories that appear whole or not at all ([`Staging`]), and the manifest that lets anyone re-check them
//! ([`Manifest`], [`verify`]).
//!
//! A conversion writes into a hidden sibling of its target and publishes it by one rename, so that whoever looks, or
//! kills the process, at any moment finds the old state or the new one. What is in the directories is not known here.
//!
//! ```
//! use q35_output_dir::{Existing, Manifest, Staging, verify};
//! let home = std::env::temp_dir().join(format!("q35-bundle-{}", std::process::id()));
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
//! # Ok::<(), q35_output_dir::BundleError>(())
//! ```
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod error;
mod exchange;
mod hashed;
mod manifest;
mod staging;
mod verify;

pub use error::BundleError;
pub use hashed::{HashedFile, hash_file};
pub use manifest::{FileRecord, MANIFEST, Manifest, Source, TensorRecord, Tool};
pub use staging::{Existing, Staging};
pub use verify::{Verification, VerifyProblem, verify};
