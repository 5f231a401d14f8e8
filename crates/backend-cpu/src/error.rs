//! Errors of opening a model.

use q35_kernels::MatrixError;

/// An MLX directory cannot be run on the CPU.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CpuError {
    /// A tensor of the model is not in the directory.
    #[error("tensor `{name}` is missing")]
    Missing {
        /// Name below the prefix of the text model.
        name: String,
    },
    /// A tensor that must be unquantized is quantized.
    #[error("tensor `{name}` is quantized\n  expected: floats")]
    Quantized {
        /// Name below the prefix of the text model.
        name: String,
    },
    /// No kernel reads this matrix.
    #[error("tensor `{name}`: {source}")]
    Matrix {
        /// Name below the prefix of the text model.
        name: String,
        /// The reason.
        source: MatrixError,
    },
}
