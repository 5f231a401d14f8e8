//! Errors of writing packages.

use q35_checkpoint::CheckpointError;
use q35_format_mil::build::BuildError;
use q35_format_mil::{PackageWriteError, WeightWriteError};
use q35_output_dir::OutputDirError;

use crate::OptionsError;

/// Error of writing a checkpoint as Core ML packages.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The settings do not fit each other or the model.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// The checkpoint cannot be used.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The checkpoint lacks a tensor.
    #[error("the checkpoint has no tensor `{name}`")]
    Missing {
        /// The tensor.
        name: String,
    },
    /// A weight beyond the range of fp16.
    #[error("`{name}` holds {value}, which is beyond fp16\nhint: use --compute f32")]
    Range {
        /// The tensor.
        name: String,
        /// The value to store.
        value: f32,
    },
    /// The graph used a cache that its layer does not have.
    #[error("layer {layer} has no such cache")]
    Cache {
        /// The layer.
        layer: usize,
    },
    /// The program could not be built.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The package could not be written.
    #[error(transparent)]
    Package(#[from] PackageWriteError),
    /// The weights could not be written.
    #[error(transparent)]
    Weights(#[from] WeightWriteError),
    /// Another file of the directory could not be written.
    #[error(transparent)]
    Output(#[from] OutputDirError),
    /// The caller cancelled the conversion.
    #[error("the conversion was cancelled")]
    Cancelled,
}
