//! Runs an MLX model directory on the CPU, straight from the mapped file: the weights are never copied or repacked.
//!
//! [`CpuModel`] answers to [`q35_inference::Model`]. Its arithmetic is that of `q35-kernels`, where a token's result does
//! not depend on the tokens computed beside it, on the number of threads or on the instruction set. So a prompt may
//! be cut anywhere, prefill equals decode bit for bit, and [`q35_inference::Model::prefill_alignment`] is 1.
//!
//! Two modes ([`Mode`]): exact, with f32 activations and an f32 cache, and fast, with activations of sixteen bits in
//! products with weights of eight (twelve with four), and keys and values of eight bits in the cache.
//!
//! It knows nothing of text, sampling or chat.
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
mod forward;
mod model;
mod options;
mod sequence;
mod state;
mod weights;

pub use error::CpuError;
pub use model::CpuModel;
pub use options::CpuOptions;
pub use q35_kernels::Mode;
