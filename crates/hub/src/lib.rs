//! Finds a model by directory or hub id, fetching what is missing.
//!
//! [`resolve`] turns a model's name into a directory on disk: an existing directory is returned as it is, `owner/name` is
//! looked up in the cache that all Hugging Face tools share and completed from the hub. Downloads resume where they were
//! cut, in this process or an earlier one, and a file is moved into the cache only when its size and hash are those that
//! the hub declares. Without the hub (no network, 401, 404, 429, 5xx) a complete cache is used.
//!
//! The crate reads the environment only for proxies and certificates, and those only for [`HubOptions::default`];
//! [`HubOptions::from_lookup`] is handed a reader. It prints nothing and must not know what the files mean: the caller
//! selects them.
//!
//! # Why not hf-hub 1.0
//!
//! hf-hub 0.5 is used for the cache layout only. hf-hub 1.0 (checked 2026-11-28, 1.0.0, no default features) brings
//! retries, SOCKS and Xet, but its HTTP client cannot be left out and compiles C on every target: `hf-xet` and `reqwest`
//! use rustls with aws-lc-rs, so a build needs cmake and compiles aws-lc's C (ring, used here off Apple's
//! systems, needs a C compiler alone), and the dependency tree grows from 62 to 297 packages. What is downloaded without
//! Xet is not compared with the declared hash, so the checks of this crate would stay.
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

mod backoff;
mod cache;
mod download;
mod error;
mod event;
mod http;
mod options;
mod resolve;

pub use error::HubError;
pub use event::Event;
pub use options::HubOptions;
pub use resolve::{Resolved, SelectFiles, resolve};
