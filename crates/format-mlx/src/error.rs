//! Errors of reading an MLX directory and of writing one.

use std::fmt;
use std::path::PathBuf;

use q35_architecture::ConfigError;
use q35_checkpoint::{CheckpointError, SafetensorsError};
use q35_output_dir::OutputDirError;

/// Error of reading a directory as an MLX model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MlxError {
    /// A JSON or weight file is absent or unreadable.
    #[error(transparent)]
    Files(#[from] CheckpointError),
    /// A weight file breaks the format.
    #[error(transparent)]
    Safetensors(#[from] SafetensorsError),
    /// The configuration is not one of a dense Qwen3.5 text model.
    #[error("{}: {source}", path.display())]
    Config {
        /// The config.json.
        path: PathBuf,
        /// The field that does not fit.
        source: ConfigError,
    },
    /// The quantization entry of config.json cannot be used.
    #[error("{}: `{field}`\n  expected: {expected}\n  found:    {found}", path.display())]
    Quantization {
        /// The config.json.
        path: PathBuf,
        /// The field.
        field: String,
        /// Values that are accepted.
        expected: String,
        /// The value found.
        found: String,
    },
    /// The directory has model.safetensors and other shards with their index; mlx-lm would load both.
    #[error(
        "{} holds two models: model.safetensors, and {} with model.safetensors.index.json\n\
         hint: remove the files of the older one", path.display(), shards.join(", ")
    )]
    TwoModels {
        /// The directory.
        path: PathBuf,
        /// Weight files besides model.safetensors.
        shards: Vec<String>,
    },
    /// The directory is a float checkpoint.
    #[error("{} is not an MLX model but a float checkpoint\nhint: convert it first with `q35-convert mlx`", path.display())]
    NotConverted {
        /// The directory.
        path: PathBuf,
    },
    /// The tensors are not those that config.json requires.
    #[error("the tensors in {} do not fit its config.json:{}", path.display(), Listed(problems))]
    Misfit {
        /// The directory.
        path: PathBuf,
        /// Every tensor that does not fit; never empty.
        problems: Vec<TensorProblem>,
    },
}

/// A defect of one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorProblem {
    /// Name of the tensor in its file, or the name that config.json requires.
    pub name: String,
    /// The defect.
    pub message: String,
}

struct Listed<'a>(&'a [TensorProblem]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 10;
        for problem in self.0.iter().take(SHOWN) {
            write!(f, "\n  `{}`: {}", problem.name, problem.message)?;
        }
        match self.0.len().checked_sub(SHOWN) {
            Some(more) if more > 0 => write!(f, "\n  and {more} more"),
            _ => Ok(()),
        }
    }
}

/// Error of writing a checkpoint as an MLX model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The source cannot be read, or holds weights that are not finite.
    #[error(transparent)]
    Source(#[from] CheckpointError),
    /// The output cannot be written.
    #[error(transparent)]
    Output(#[from] OutputDirError),
    /// No matrix can be quantized in groups of this size.
    #[error(
        "no matrix of this model divides into groups of {group_size}\n\
         hint: a smaller group size may fit; the matrices' rows are {widths:?} weights long"
    )]
    NothingFits {
        /// The group size.
        group_size: usize,
        /// Row lengths of the matrices.
        widths: Vec<usize>,
    },
    /// A recipe could not quantize a tensor.
    #[error("cannot quantize `{name}`: {message}")]
    Recipe {
        /// The tensor.
        name: String,
        /// The reason.
        message: String,
    },
    /// The directory form cannot express the model.
    #[error("{form} cannot open this model: {reason}\n{hint}")]
    Inexpressible {
        /// The program that is to open the directory.
        form: &'static str,
        /// The reason.
        reason: String,
        /// Advice.
        hint: &'static str,
    },
    /// The caller cancelled the conversion.
    #[error("the conversion was cancelled")]
    Cancelled,
}
