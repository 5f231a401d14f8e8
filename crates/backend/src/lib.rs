//! Opens a converted model with the requested backend: q35's own code on the CPU, MLX, or Apple's Core ML.
//!
//! Everything that runs converted models (the runtime, the parity check, the command line) opens them through this
//! crate, so that an option means the same everywhere. A backend that this build lacks is an error that says how to
//! build it.
//!
//! The crate must not know how a directory is recognised (that is `q35-artefact`), nor the float reference.
//!
//! ```no_run
//! use std::sync::Arc;
//! use q35_backend::{Backend, RunOptions, open_mlx};
//! use q35_format_mlx::MlxDirectory;
//!
//! let directory = Arc::new(MlxDirectory::open("qwen-int4".as_ref())?);
//! let options = RunOptions::default().with_backend(Backend::Mlx);
//! println!("{}", open_mlx(directory, &options)?.model.describe());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod coreml;
mod error;
mod mlx;
mod options;
mod running;

pub use coreml::{compute_plan, open_coreml};
pub use error::BackendError;
pub use mlx::open_mlx;
pub use options::{Backend, Precision, RunOptions};
pub use q35_backend_coreml::{ComputeUnits, PlannedOperation};
pub use q35_inference::Device;
pub use running::{Activations, Running};
