//! Why a calibration could not be done.

use std::path::PathBuf;

use q35_inference::WeightError;

/// Why a calibration could not be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CalibrateError {
    /// A weight could not be read.
    #[error(transparent)]
    Weights(#[from] WeightError),
    /// candle failed.
    #[error("candle failed: {0}")]
    Candle(#[from] candle_core::Error),
    /// A variable had no part in the loss.
    #[error("a tensor has no part in the model's predictions")]
    NoGradient,
    /// A matrix whose rows no group size divides.
    #[error("cannot quantize `{name}`\n  expected: rows divisible by 32\n  found:    rows of {cols}")]
    Shape {
        /// The tensor.
        name: String,
        /// Weights of its rows.
        cols: usize,
    },
    /// Not even the smallest form of every tensor fits the budget.
    #[error(
        "the matrices do not fit into {budget_bytes} bytes\n  expected: at least {smallest_bytes}, the size at 3 bits in groups of 128"
    )]
    Budget {
        /// What was allowed.
        budget_bytes: u64,
        /// What is needed at least.
        smallest_bytes: u64,
    },
    /// Too little calibration text.
    #[error("the calibration text is too short\n  expected: at least {expected} tokens\n  found:    {found}")]
    TooShort {
        /// Tokens needed.
        expected: usize,
        /// Tokens given.
        found: usize,
    },
    /// Saved work could not be read or written.
    #[error("{}: {message}", path.display())]
    Saved {
        /// The file.
        path: PathBuf,
        /// What happened.
        message: String,
    },
    /// The caller asked to stop.
    #[error("cancelled")]
    Cancelled,
}
