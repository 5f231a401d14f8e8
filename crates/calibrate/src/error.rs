//! The error of a calibration.

use std::path::PathBuf;

use q35_inference::WeightError;

/// An error of a calibration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CalibrateError {
    /// A weight could not be read.
    #[error(transparent)]
    Weights(#[from] WeightError),
    /// candle failed.
    #[error("candle failed: {0}")]
    Candle(#[from] candle_core::Error),
    /// The loss does not depend on a variable.
    #[error("the model's predictions do not depend on one of its tensors")]
    NoGradient,
    /// The rows of a matrix do not divide into groups.
    #[error("cannot quantize `{name}`\n  expected: rows divisible by 32\n  found:    rows of {cols}")]
    Shape {
        /// The tensor.
        name: String,
        /// Weights per row.
        cols: usize,
    },
    /// Not even the smallest encoding of every matrix fits the budget.
    #[error(
        "the matrices do not fit into {budget_bytes} bytes\n  expected: at least {smallest_bytes}, the size at 3 bits in groups of 128"
    )]
    Budget {
        /// The budget.
        budget_bytes: u64,
        /// The smallest possible size.
        smallest_bytes: u64,
    },
    /// Too little calibration text.
    #[error("the calibration text is too short\n  expected: at least {expected} tokens\n  found:    {found}")]
    TooShort {
        /// Required tokens.
        expected: usize,
        /// Tokens of the text.
        found: usize,
    },
    /// A file of the resume directory could not be written.
    #[error("{}: {message}", path.display())]
    Resume {
        /// The file.
        path: PathBuf,
        /// The reason.
        message: String,
    },
    /// The listener cancelled.
    #[error("cancelled")]
    Cancelled,
}
