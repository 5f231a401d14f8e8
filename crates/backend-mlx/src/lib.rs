//! Runs an MLX model directory through MLX itself (mlx-rs): on Apple's GPUs through Metal, on NVIDIA's through CUDA, and on
//! MLX's CPU backend.
//!
//! The crate reads directories through `q35_format_mlx`, computes with MLX operations only, and implements
//! [`q35_inference::Model`]. It must not know about chat.
//!
//! MLX arrays must be built and evaluated on one thread. `MlxModel` owns that worker thread and sends it jobs, so that
//! models and sequences can be moved and shared freely. A token is one lazy graph, evaluated asynchronously; while the
//! device works on it, the worker builds the graph of the next token (see `engine`).
//!
//! The crate is empty without the feature `mlx`, because MLX needs Xcode on a Mac and `scripts/mlx/setup_linux.sh` (with
//! `--cuda` for a GPU) elsewhere. It has never run on Metal: see `docs/apple.md`.
//!
#![cfg_attr(feature = "mlx", doc = "```no_run")]
#![cfg_attr(not(feature = "mlx"), doc = "```ignore")]
//! use q35_backend_mlx::{MlxDevice, MlxModel};
//! use q35_inference::{Discard, LogitsFor, Model};
//!
//! let directory = q35_format_mlx::MlxDirectory::open("model-dir".as_ref())?;
//! let model = MlxModel::load(directory.into(), MlxDevice::default())?;
//! let mut sequence = model.new_sequence(256)?;
//! sequence.extend(&[1, 2, 3], LogitsFor::LastToken, &mut Discard)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![cfg(feature = "mlx")]
#![deny(missing_docs)]
#![forbid(unsafe_op_in_unsafe_fn)]

mod custom_kernel;
mod delta;
mod device;
mod elementwise;
mod engine;
mod error;
mod host;
mod kv_cache;
mod model;
mod qwen3_5;
mod sequence;
mod shared;
mod snapshot;
mod state;
mod token_slot;
mod weights;
mod worker;

pub use device::{GpuApi, MlxDevice};
pub use engine::HostTimes;
pub use error::MlxBackendError;
pub use model::MlxModel;
