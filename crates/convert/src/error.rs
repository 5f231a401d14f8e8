//! Errors of a conversion.

use std::path::{Path, PathBuf};

use q35_artefact::ArtefactError;
use q35_checkpoint::CheckpointError;
use q35_output_dir::OutputDirError;

use crate::calibrated_recipe::RecipeError;

/// Error of a conversion. The target is as it was before.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// The source was not found, or its download failed.
    #[error(transparent)]
    Source(#[from] ArtefactError),
    /// The source cannot be used.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The source differs from the pinned checkpoint of its name.
    #[error(
        "{id} is not the checkpoint that is pinned under this name: {} differences{}\n\
         hint: pin a --revision, or convert from a local directory, which is not compared",
        differences.len(),
        differences.iter().take(8).map(|difference| format!("\n  {difference}")).collect::<String>()
    )]
    NotPinned {
        /// The pinned checkpoint.
        id: String,
        /// The differences, one line each.
        differences: Vec<String>,
    },
    /// The output cannot be written.
    #[error(transparent)]
    Output(#[from] OutputDirError),
    /// The model cannot be written as an MLX directory.
    #[error("converting {}: {source}", dir.display())]
    Mlx {
        /// The source's directory.
        dir: PathBuf,
        /// The writer's error.
        source: q35_format_mlx::WriteError,
    },
    /// The model cannot be written as Core ML packages.
    #[error("converting {}: {source}", dir.display())]
    CoreMl {
        /// The source's directory.
        dir: PathBuf,
        /// The writer's error.
        source: q35_format_coreml::WriteError,
    },
    /// The calibrated recipe failed.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The parity check could not be run.
    #[error("cannot verify the conversion: {message}")]
    Verification {
        /// The reason.
        message: String,
    },
    /// The caller cancelled the conversion. Nothing was published.
    #[error(
        "the conversion was cancelled; nothing was written{}",
        resume_dir.as_deref().map_or_else(String::new, resume_hint)
    )]
    Cancelled {
        /// Directory of finished stages of a calibration, from which the same conversion continues.
        resume_dir: Option<PathBuf>,
    },
}

fn resume_hint(dir: &Path) -> String {
    format!(
        "\nhint: the same command continues the calibration from {}; remove that directory to start afresh",
        dir.display()
    )
}
