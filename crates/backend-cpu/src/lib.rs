//! Runs MLX model directories on the CPU, straight from the mapped files: weights are neither copied nor repacked.
//!
//! [`CpuModel`] implements [`q35_inference::Model`]. Its arithmetic is that of `q35-kernels`, which is batch-invariant: a token's
//! result does not depend on the tokens computed with it, on the number of threads or on the instruction set. So prefill
//! chunks may have any length, prefill equals decode bit for bit, and [`q35_inference::Model::prefill_alignment`] is 1.
//!
//! There are two modes ([`Mode`]): exact, with f32 activations and an f32 KV cache, and fast, with 16-bit activations for INT8
//! weights (12-bit for INT4) and an INT8 KV cache.
//!
//! The graph is in `qwen3_5.rs`. The crate knows no text, no sampling and no chat.
//!
//! ```no_run
//! use std::sync::Arc;
//! use q35_backend_cpu::{CpuModel, CpuOptions, Mode};
//! use q35_inference::{Discard, Model, LogitsFor};
//!
//! let directory = Arc::new(q35_format_mlx::MlxDirectory::open("Qwen3.5-0.8B-4bit".as_ref())?);
//! let model = CpuModel::open(directory, CpuOptions::default().with_mode(Mode::Exact))?;
//! let mut sequence = model.new_sequence(2048)?;
//! sequence.extend(&[1, 2, 3], LogitsFor::LastToken, &mut Discard)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod error;
mod model;
mod options;
mod qwen3_5;
mod sequence;
mod shared;
mod state;
mod weights;

pub use error::CpuError;
pub use model::CpuModel;
pub use options::CpuOptions;
pub use q35_kernels::Mode;
