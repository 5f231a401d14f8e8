//! Why a directory cannot be run.

use q35_kernels::MatrixError;

/// Why a directory cannot be run on the CPU.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CpuError {
    /// A tensor of the model is not in the directory.
    #[error("tensor `{name}` is missing")]
    Missing {
        /// Its name below the text tower.
        name: String,
    },
    /// A tensor that must be float is quantized.
    #[error("tensor `{name}` is quantized\n  expected: floats")]
    Quantized {
        /// Its name below the text tower.
        name: String,
    },
    /// A matrix that no kernel reads.
    #[error("tensor `{name}`: {source}")]
    Matrix {
        /// Its name below the text tower.
        name: String,
        /// What does not fit.
        source: MatrixError,
    },
}
