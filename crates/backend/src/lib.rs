//! Chooses who executes a converted model: this project's own code on the CPU, MLX, or Apple's Core ML.
//!
//! Everything that runs converted models (the runtime, the parity check, the command line) opens them here, so that a
//! choice means the same everywhere. What a build cannot do is an error that says how to build it.
//!
//! ```no_run
//! use std::sync::Arc;
//! use q35_backend::{Backend, RunOptions, open_mlx};
//! use q35_format_mlx::MlxDirectory;
//!
//! let directory = Arc::new(MlxDirectory::open("qwen-int4".as_ref())?);
//! let options = RunOptions { backend: Backend::Mlx, ..RunOptions::default() };
//! println!("{}", open_mlx(directory, &options)?.model.describe());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod choice;
mod coreml;
mod error;
mod mlx;

use q35_inference::Model;

pub use choice::{Backend, Device, RunOptions};
pub use coreml::{compute_plan, open_coreml};
pub use error::BackendError;
pub use mlx::open_mlx;
pub use q35_backend_coreml::{ComputeUnits, PlannedOperation};

/// A model, and the arithmetic that it is computed with.
pub struct Running {
    /// The model.
    pub model: Box<dyn Model>,
    /// What activations are kept in.
    pub activations: Activations,
}

/// What activations are kept in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activations {
    /// f32.
    F32,
    /// IEEE half, as a Core ML package declares.
    F16,
    /// bfloat16, as MLX computes on a GPU with scales of that type.
    Bf16,
    /// Rounded to integers for matrix products.
    Integer,
}
