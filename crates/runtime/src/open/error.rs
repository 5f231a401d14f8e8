//! Errors of opening a model to chat with.

use std::path::PathBuf;

use q35_artefact::ArtefactError;

use super::MemoryEstimate;

/// A model that could not be opened. Causes are boxed: they are large.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// There is no such model, or one that cannot be read or that the backend cannot run.
    #[error(transparent)]
    Artefact(Box<ArtefactError>),
    /// The model is estimated not to fit.
    #[error(
        "the model does not fit in memory: {estimate}\n  limit:    {} MB\n\
         hint: a smaller max_context or prompt cache, or a model of fewer bits", limit_bytes / 1_000_000
    )]
    Memory {
        /// The estimate of the memory needed.
        estimate: MemoryEstimate,
        /// The limit.
        limit_bytes: u64,
    },
    /// A file that describes the model cannot be read.
    #[error("cannot read `{}`: {message}", path.display())]
    Description {
        /// The file.
        path: PathBuf,
        /// The defect.
        message: String,
    },
}

impl From<ArtefactError> for OpenError {
    fn from(cause: ArtefactError) -> Self {
        Self::Artefact(Box::new(cause))
    }
}
