//! Errors of opening a directory and of predictions.

use std::path::PathBuf;

use q35_architecture::ConfigError;
use q35_checkpoint::SafetensorsError;
use q35_mil_eval::EvalError;

/// Failure to open a directory as a Core ML model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The directory has none of the supported sets of packages.
    #[error(
        "{dir} holds no Core ML model\n  expected: model.mlpackage, or prefill.mlpackage and decode.mlpackage, \
         or embedding.mlpackage and decoder.mlpackage"
    )]
    NoPackages {
        /// The directory.
        dir: PathBuf,
    },
    /// A configuration file cannot be read.
    #[error("{path}: {message}")]
    File {
        /// The file.
        path: PathBuf,
        /// Description of the failure.
        message: String,
    },
    /// The configuration is not one of a supported model.
    #[error("{path}: {source}")]
    Config {
        /// The file.
        path: PathBuf,
        /// The configuration error.
        source: ConfigError,
    },
    /// The predictor cannot load a package.
    #[error("{package}: {source}")]
    Package {
        /// The package.
        package: PathBuf,
        /// The predictor's error.
        source: PredictError,
    },
    /// A function's inputs and outputs are none of the supported forms.
    #[error("{package}: function `{function}`: {what}")]
    Form {
        /// The package.
        package: PathBuf,
        /// The function.
        function: String,
        /// Description of the missing or unsuitable feature.
        what: String,
    },
    /// The host's embedding table cannot be read.
    #[error(transparent)]
    Table(#[from] SafetensorsError),
    /// The host's embedding table is missing or has another shape.
    #[error(
        "{path}: no embedding table\n  expected: one tensor [{vocab_size}, {hidden_size}] of floats, or of int8 with scales\n  found:    {found}"
    )]
    TableShape {
        /// The file, or the directory if it has no safetensors file.
        path: PathBuf,
        /// Expected number of rows.
        vocab_size: usize,
        /// Expected number of columns.
        hidden_size: usize,
        /// Names and shapes of the tensors found.
        found: String,
    },
}

/// Failure of a predictor.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PredictError {
    /// The evaluator's error.
    #[error(transparent)]
    Evaluator(#[from] EvalError),
    /// The system framework's error, as it describes it.
    #[error("{0}")]
    Framework(String),
    /// The package has no state or cache input of that name.
    #[error("no state `{0}`")]
    NoState(String),
}
