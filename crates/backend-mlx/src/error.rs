//! Errors of the backend.

use q35_inference::RunError;

/// Failure to load or run a model in MLX.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MlxBackendError {
    /// MLX has no usable GPU in this build on this machine.
    #[error(
        "MLX has no GPU here\n  expected: a Mac with Metal, or an NVIDIA GPU and a build with MLX for CUDA \
         (scripts/mlx/setup_linux.sh --cuda)\nhint: use MLX's CPU device"
    )]
    NoGpu,
    /// An error that MLX reports.
    #[error("MLX: {0}")]
    Mlx(#[from] mlx_rs::error::Exception),
    /// A tensor of the directory is missing or has an unexpected form.
    #[error("tensor `{name}` was expected {expected}")]
    Tensor {
        /// Name of the tensor.
        name: String,
        /// The expectation, to follow "was expected".
        expected: &'static str,
    },
    /// The worker thread cannot be started.
    #[error("cannot start MLX's thread: {0}")]
    Thread(std::io::Error),
    /// An earlier call failed half-way, and the sequence's state is undefined.
    #[error("an earlier call failed half-way; reset the sequence or restore a snapshot")]
    Lost,
    /// The worker thread has ended.
    #[error("MLX's thread has stopped")]
    Stopped,
}

impl From<MlxBackendError> for RunError {
    fn from(error: MlxBackendError) -> Self {
        Self::Backend { backend: "MLX", message: error.to_string() }
    }
}
