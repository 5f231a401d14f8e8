//! Traits through which a loaded model is driven, whichever backend executes it: [`Model`], [`Sequence`], [`Observer`],
//! and the [`Snapshot`]s of a sequence's state. [`Weights`] reads a model's weights as f32, whatever file holds them.
//!
//! The runtime, the parity check and the command line drive the float reference, the CPU backend, the Core ML evaluator,
//! MLX and Apple's Core ML through these two traits.
//!
//! The crate must not know arithmetic, files, or any one backend.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod cancel;
mod device;
mod error;
mod model;
mod observer;
mod sequence;
mod snapshot;
mod weights;

pub use cancel::CancelToken;
pub use device::Device;
pub use error::RunError;
pub use model::{Model, ModelMemory};
pub use observer::{Discard, HiddenStateAt, Observer};
pub use sequence::{LogitsFor, RecurrentState, Sequence};
pub use snapshot::{Snapshot, SnapshotTensor, StateType};
pub use weights::{WeightError, Weights};
