//! Runs an MLX model directory through MLX itself (mlx-rs): on Apple's GPU by Metal, on a Linux machine by MLX's CPU
//! backend, which is how the code is tested without a Mac.
//!
//! It reads directories through `q35_format_mlx`, computes with MLX operations only, and answers to the same two traits as
//! every other backend. It knows nothing of chat.
//!
//! MLX wants its arrays built and evaluated on one thread: `MlxModel` owns that thread and sends it jobs, so that
//! the handles outside may be moved and shared freely. A token is one lazy graph, evaluated asynchronously; while the
//! device works on it, the thread builds the graph of the next (see `engine`).
//!
//! The crate is empty without the feature `mlx`, because MLX needs Xcode on a Mac and `scripts/mlx/setup_linux.sh`
//! elsewhere. Metal itself has not been exercised where this was written: see `docs/apple.md`.
#![cfg(feature = "mlx")]
#![deny(missing_docs)]
#![forbid(unsafe_op_in_unsafe_fn)]

mod attention;
mod delta;
mod engine;
mod ffi;
mod forward;
#[cfg(target_vendor = "apple")]
mod metal;
mod model;
mod sequence;
mod snapshot;
mod weights;
mod worker;

pub use model::{MlxBackendError, MlxDevice, MlxModel};
