//! Calibrated quantization: the same format and size as round-to-nearest, closer to the float model.
//!
//! [`calibrate`] takes a float model and token windows of calibration text and returns every matrix as codes, scales and
//! biases in MLX's affine format, and new numbers for the tensors that stay in float. It goes in three stages:
//!
//! 1. **Sensitivity**: the Fisher information of every matrix, from one backward pass over a little text, says how
//!    much the predictions suffer from its errors, and so how many bits and which group size it gets within the budget.
//! 2. **Rounding with feedback**, layer after layer on inputs that carry the earlier layers' errors: each column's
//!    rounding error is fed into the columns after it as the second moments of the inputs tell (GPTQ), scales and biases
//!    searched under the same measure.
//! 3. **Learning**, if asked for: scales, biases, codes and float tensors are moved to lower KL(float || quantized).
//!    Not part of [`Settings::rounding`]: with large steps it has been seen to diverge, and no gain is measured yet.
//!
//! Everything is deterministic for a seed and a number of threads. How the result is stored or run is not known here.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod allocate;
mod cholesky;
mod error;
mod grid;
mod learn;
mod passes;
mod random;
mod rounding;
mod run;
mod saved;
mod sensitivity;
mod softmax;
mod text;
mod tower;

pub use error::CalibrateError;
pub use grid::Grid;
pub use learn::Rates;
pub use rounding::{Feedback, round_with_feedback};
pub use run::{
    Calibrated, Decision, Job, Learning, Listener, Progress, Settings, Stage, calibrate, mean_divergence,
};
pub use saved::Saved;
pub use text::DEFAULT_TEXT;
pub use tower::Replacement;
