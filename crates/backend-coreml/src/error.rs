//! Why a directory cannot be driven, and why a prediction failed.

use std::path::PathBuf;

use q35_architecture::ConfigError;
use q35_checkpoint::SafetensorsError;
use q35_mil_eval::EvalError;

/// Why a directory cannot be opened as a Core ML model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// None of the known sets of packages is there.
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
        /// What is wrong with it.
        message: String,
    },
    /// The configuration is not of a model that is known.
    #[error("{path}: {source}")]
    Config {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ConfigError,
    },
    /// A package cannot be loaded by whoever should execute it.
    #[error("{package}: {source}")]
    Package {
        /// The package.
        package: PathBuf,
        /// Why.
        source: PredictError,
    },
    /// A function has not the inputs and outputs of any known form.
    #[error("{package}: function `{function}`: {what}")]
    Form {
        /// The package.
        package: PathBuf,
        /// The function.
        function: String,
        /// What is missing or does not fit.
        what: String,
    },
    /// The host's embedding table cannot be read.
    #[error(transparent)]
    Table(#[from] SafetensorsError),
    /// The host's embedding table is missing or of another size.
    #[error(
        "{path}: no embedding table\n  expected: one tensor [{vocab_size}, {hidden_size}] of floats, or of int8 with scales\n  found:    {found}"
    )]
    TableShape {
        /// The file, or the directory without one.
        path: PathBuf,
        /// Rows it must have.
        vocab_size: usize,
        /// Columns it must have.
        hidden_size: usize,
        /// What is there.
        found: String,
    },
}

/// Why a predictor failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PredictError {
    /// The evaluator.
    #[error(transparent)]
    Evaluator(#[from] EvalError),
    /// The system's framework.
    #[error("{0}")]
    Framework(String),
    /// There is no state of that name.
    #[error("no state `{0}`")]
    NoState(String),
}
