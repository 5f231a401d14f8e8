//! Runs an MLX model directory through MLX itself (mlx-rs): on Apple's GPU by Metal, on a Linux machine by MLX's CPU
//! backend, which is how the code is tested without a Mac.
//!
//! It reads directories through `q35_mlx`, computes with MLX operations only, and answers to the same two traits as
//! every other backend. It knows nothing of chat.
//!
//! MLX wants its arrays built and evaluated on one thread: [`MlxModel`] owns that thread and sends it jobs, so that
//! the handles outside may be moved and shared freely.
//!
//! Without the feature `mlx` the crate is empty, because MLX needs Xcode on a Mac and `scripts/mlx/setup_linux.sh`
//! elsewhere. Metal itself has not been exercised where this was written: see `docs/apple.md`.
#![deny(missing_docs)]
#![forbid(unsafe_op_in_unsafe_fn)]

#[cfg(feature = "mlx")]
mod attention;
#[cfg(feature = "mlx")]
mod delta;
#[cfg(feature = "mlx")]
mod engine;
#[cfg(all(feature = "mlx", target_os = "macos"))]
mod metal;
#[cfg(feature = "mlx")]
mod model;
#[cfg(feature = "mlx")]
mod sequence;
#[cfg(feature = "mlx")]
mod weights;
#[cfg(feature = "mlx")]
mod worker;

#[cfg(feature = "mlx")]
pub use model::{MlxBackendError, MlxDevice, MlxModel};
