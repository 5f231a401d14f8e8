//! Finds a model by directory or hub id, fetching what is missing.
//!
//! [`resolve`] turns what a user typed into a directory on disk: a directory is taken as it is, `owner/name` is looked
//! up in the cache that all Hugging Face tools share and completed from the hub. Downloads resume where they were cut,
//! in this process or an earlier one, and a file takes its place in the cache only when its size and hash are those
//! that the hub declares.
//!
//! The crate reads no environment variable by itself ([`HubOptions::from_lookup`] is handed a reader), prints nothing,
//! and does not know what the files mean: the caller selects the files.
//!
//! ```
//! use q35_hub::{HubOptions, resolve};
//! let here = std::env::temp_dir();
//! let found = resolve(here.to_str().unwrap(), &HubOptions::default(), &|_| Vec::new(), &|_| {})?;
//! assert_eq!(found.dir, here);
//! # Ok::<(), q35_hub::HubError>(())
//! ```
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod cache;
mod download;
mod error;
mod http;
mod options;
mod resolve;

pub use error::HubError;
pub use options::HubOptions;
pub use resolve::{Event, Resolved, SelectFiles, resolve};
