//! Errors of recognising and opening a model directory.

use std::path::{Path, PathBuf};

use q35_backend::BackendError;
use q35_checkpoint::CheckpointError;
use q35_format_mlx::MlxError;
use q35_hub::HubError;

/// A directory that holds no usable model. Causes are boxed: they are large.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArtefactError {
    /// The name could not be resolved to a directory.
    #[error(transparent)]
    Hub(Box<HubError>),
    /// The embedded model cannot be written to a temporary directory.
    #[error("cannot unpack the embedded model: {0}")]
    Unpack(std::io::Error),
    /// The directory holds nothing that looks like a model.
    #[error(
        "`{}` holds no model\n  expected: config.json with model.safetensors, or Core ML packages\n  found:    {found}",
        dir.display()
    )]
    NoModel {
        /// The directory.
        dir: PathBuf,
        /// The first names in it.
        found: String,
    },
    /// The directory does not have the requested variant.
    #[error("`{}` has no variant `{variant}`\n  found:    {found}", dir.display())]
    NoVariant {
        /// The directory.
        dir: PathBuf,
        /// The requested variant.
        variant: String,
        /// The variants in it.
        found: String,
    },
    /// The directory holds several variants and none was requested.
    #[error(
        "`{}` holds several models\n  expected: one, or the choice of a variant\n  found:    {}\nhint: --variant {}",
        dir.display(), found.join(", "), found[0]
    )]
    SeveralVariants {
        /// The directory.
        dir: PathBuf,
        /// The variants in it; at least two.
        found: Vec<String>,
    },
    /// The path is one Core ML package and not the directory that holds it.
    #[error(
        "`{}` is a single Core ML package\n  expected: the directory that holds the packages and config.json\nhint: {}",
        path.display(), parent(path)
    )]
    SinglePackage {
        /// The package.
        path: PathBuf,
    },
    /// The directory holds compiled packages only.
    #[error(
        "`{}` holds compiled Core ML packages\n  expected: .mlpackage\n  found:    {found}\n\
         hint: q35 reads packages as they are before `xcrun coremlcompiler compile`",
        dir.display()
    )]
    Compiled {
        /// The directory.
        dir: PathBuf,
        /// The compiled packages in it.
        found: String,
    },
    /// The float checkpoint cannot be read.
    #[error(transparent)]
    Checkpoint(Box<CheckpointError>),
    /// The float checkpoint cannot be quantized.
    #[error("cannot quantize the float checkpoint `{}`: {message}", dir.display())]
    Quantize {
        /// The directory.
        dir: PathBuf,
        /// The failure.
        message: String,
    },
    /// The MLX model cannot be read.
    #[error(transparent)]
    Mlx(Box<MlxError>),
    /// The requested backend cannot run the model, or is not in this build.
    #[error("`{}`: {source}", dir.display())]
    Backend {
        /// The directory.
        dir: PathBuf,
        /// The backend's error.
        source: BackendError,
    },
    /// The float reference cannot load the checkpoint, or is not in this build.
    #[error("cannot run the float checkpoint `{}`: {message}", dir.display())]
    Reference {
        /// The directory.
        dir: PathBuf,
        /// The float reference's message.
        message: String,
    },
}

impl From<HubError> for ArtefactError {
    fn from(cause: HubError) -> Self {
        Self::Hub(Box::new(cause))
    }
}

impl From<CheckpointError> for ArtefactError {
    fn from(cause: CheckpointError) -> Self {
        Self::Checkpoint(Box::new(cause))
    }
}

impl From<MlxError> for ArtefactError {
    fn from(cause: MlxError) -> Self {
        Self::Mlx(Box::new(cause))
    }
}

fn parent(path: &Path) -> String {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new(".")).display().to_string()
}
