//! Why a directory cannot be read as an MLX model, or a checkpoint not be written as one.

use std::fmt;
use std::path::PathBuf;

use q35_architecture::ConfigError;
use q35_checkpoint::{CheckpointError, SafetensorsError};
use q35_output_dir::BundleError;

/// Why a directory cannot be read as an MLX model.
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
        /// What does not fit.
        source: ConfigError,
    },
    /// The quantization entry of config.json cannot be used.
    #[error("{}: `{field}`\n  expected: {expected}\n  found:    {found}", path.display())]
    Quantization {
        /// The config.json.
        path: PathBuf,
        /// Which field.
        field: String,
        /// What would be accepted.
        expected: String,
        /// What stands there.
        found: String,
    },
    /// It is an original checkpoint.
    #[error("{} is not an MLX model but a float checkpoint\nhint: convert it first with `q35-convert mlx`", path.display())]
    NotConverted {
        /// The directory.
        path: PathBuf,
    },
    /// The tensors are not those that config.json calls for.
    #[error("the tensors in {} do not fit its config.json:{}", path.display(), Listed(problems))]
    Misfit {
        /// The directory.
        path: PathBuf,
        /// Every tensor that does not fit; never empty.
        problems: Vec<TensorProblem>,
    },
}

/// What is wrong with one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorProblem {
    /// The tensor, as its file calls it, or as config.json calls for it.
    pub name: String,
    /// What is wrong.
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

/// Why a checkpoint cannot be written as an MLX model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The source cannot be read, or holds weights that are not finite.
    #[error(transparent)]
    Source(#[from] CheckpointError),
    /// The output cannot be written.
    #[error(transparent)]
    Output(#[from] BundleError),
    /// Nothing can be quantized as asked.
    #[error(
        "no matrix of this model divides into groups of {group_size}\n\
         hint: a smaller group size may fit; the matrices' rows are {widths:?} weights long"
    )]
    NothingFits {
        /// The group size asked for.
        group_size: usize,
        /// The lengths of rows that occur.
        widths: Vec<usize>,
    },
    /// A recipe could not quantize a tensor.
    #[error("cannot quantize `{name}`: {message}")]
    Recipe {
        /// The tensor.
        name: String,
        /// Why not.
        message: String,
    },
    /// The form asked for cannot express the model.
    #[error("{form} cannot open this model: {reason}\n{hint}")]
    Inexpressible {
        /// Who is to open it.
        form: &'static str,
        /// Why it could not.
        reason: String,
        /// What to do.
        hint: &'static str,
    },
}
