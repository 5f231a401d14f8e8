//! Errors of opening a checkpoint.

use std::fmt;
use std::path::PathBuf;

use q35_architecture::ConfigError;

use crate::SafetensorsError;

/// A directory that is not a usable checkpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// A file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Error of the system.
        source: std::io::Error,
    },
    /// A JSON file does not parse.
    #[error("{} is not valid JSON: {message}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Position and reason.
        message: String,
    },
    /// A file is a Git LFS pointer: the repository was cloned without its large files.
    #[error(
        "{} is a Git LFS pointer, not the file itself\nhint: run `git lfs pull` in its directory, or download the file",
        path.display()
    )]
    LfsPointer {
        /// The file.
        path: PathBuf,
    },
    /// No config.json.
    #[error("no config.json in {}\n  expected: a Hugging Face checkpoint directory\n{hint}", path.display())]
    NoConfig {
        /// The directory, or the file that was named in place of one.
        path: PathBuf,
        /// The remedy, as a hint.
        hint: String,
    },
    /// The directory holds a LoRA adapter, alone or beside a model.
    #[error(
        "{} holds a LoRA adapter for {base} (adapter_config.json)\n\
         hint: merge it (`merge_and_unload` of peft) and save the merged model; if the weights beside it are merged \
         already, remove adapter_config.json", path.display()
    )]
    Adapter {
        /// The directory.
        path: PathBuf,
        /// The base model that the adapter names.
        base: String,
    },
    /// Weights of an adapter among those of the model.
    #[error(
        "{} has unmerged LoRA weights (`{name}`)\nhint: merge them (`merge_and_unload` of peft) and save the merged model",
        path.display()
    )]
    UnmergedAdapter {
        /// The directory.
        path: PathBuf,
        /// A tensor of the adapter.
        name: String,
    },
    /// The configuration is not one of a dense Qwen3.5 text model.
    #[error("{}: {source}", path.display())]
    Config {
        /// The config.json.
        path: PathBuf,
        /// The field and the reason.
        source: ConfigError,
    },
    /// The weights are quantized already.
    #[error(
        "{} is already quantized ({method})\n\
         hint: start from the original checkpoint in bf16, f16 or f32, or dequantize it with the software that \
         quantized it and remove the entry from config.json", path.display()
    )]
    Quantized {
        /// The directory.
        path: PathBuf,
        /// The `quant_method` of its config.json, or the tensor that shows it.
        method: String,
    },
    /// The directory is an MLX conversion: its norms hold `1 + w` and its convolutions are transposed.
    #[error(
        "{} is an MLX conversion already ({evidence})\n\
         hint: converting it again would shift its norms twice; start from the original Hugging Face checkpoint",
        path.display()
    )]
    AlreadyConverted {
        /// The directory.
        path: PathBuf,
        /// The sign by which it was recognised.
        evidence: String,
    },
    /// No weight files.
    #[error(
        "no weights in {}\n  expected: model.safetensors, or model.safetensors.index.json with its shards\n\
         {hint}", path.display()
    )]
    NoWeights {
        /// The directory.
        path: PathBuf,
        /// Files found instead, or the remedy, as a hint.
        hint: String,
    },
    /// The index is not what transformers writes.
    #[error("{}: {message}", path.display())]
    Index {
        /// The index file.
        path: PathBuf,
        /// The defect.
        message: String,
    },
    /// A shard that the index lists does not exist.
    #[error(
        "shard `{shard}` is missing\n  expected: in {}, as model.safetensors.index.json lists it\n\
         hint: the download is incomplete; fetch the checkpoint again",
        path.display()
    )]
    MissingShard {
        /// The directory.
        path: PathBuf,
        /// The file's name.
        shard: String,
    },
    /// A weight file breaks the format.
    #[error(transparent)]
    Safetensors(#[from] SafetensorsError),
    /// The tensors are not those of the model that config.json describes.
    #[error("the tensors in {} do not fit its config.json:{}", path.display(), Listed(problems))]
    Misfit {
        /// The directory.
        path: PathBuf,
        /// Every tensor that does not fit; never empty.
        problems: Vec<Problem>,
    },
    /// A weight is NaN or infinite.
    #[error(
        "tensor `{name}` in {} holds {value} at element {element}\nhint: the file is damaged, or the model diverged in training",
        path.display()
    )]
    NonFinite {
        /// The tensor, as its file calls it.
        name: String,
        /// The file.
        path: PathBuf,
        /// The value found.
        value: f32,
        /// Index in the tensor, row-major.
        element: usize,
    },
}

/// A defect of one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// Part of the model, but in no file.
    Missing {
        /// Name in the tensor table.
        name: String,
        /// Shape that config.json implies.
        expected: Vec<usize>,
    },
    /// In a file, but no part of a supported checkpoint.
    Unknown {
        /// Name in the file.
        name: String,
        /// The file's name.
        file: String,
        /// Shape.
        shape: Vec<usize>,
    },
    /// Stored twice: in two files, or under two names.
    Duplicate {
        /// Name in the tensor table.
        name: String,
        /// File and name of the first copy.
        first: String,
        /// File and name of the second copy.
        second: String,
    },
    /// A tensor of an unexpected shape.
    Shape {
        /// Name in the file.
        name: String,
        /// The file's name.
        file: String,
        /// Shape that config.json implies.
        expected: Vec<usize>,
        /// Shape in the file.
        found: Vec<usize>,
    },
    /// A tensor of an unsupported element type.
    Type {
        /// Name in the file.
        name: String,
        /// The file's name.
        file: String,
        /// The type found.
        found: String,
    },
    /// Listed by the index in a file that does not have it.
    NotInShard {
        /// Name in the index.
        name: String,
        /// The file's name.
        file: String,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { name, expected } => write!(f, "missing `{name}` {expected:?}"),
            Self::Unknown { name, file, shape } => write!(f, "unknown `{name}` {shape:?} in {file}"),
            Self::Duplicate { name, first, second } => {
                write!(f, "duplicate `{name}`: in {first} and again in {second}")
            }
            Self::Shape { name, file, expected, found } => {
                write!(f, "mis-shaped `{name}` in {file}: expected {expected:?}, found {found:?}")
            }
            Self::Type { name, file, found } => {
                write!(f, "mistyped `{name}` in {file}: expected BF16, F16 or F32, found {found}")
            }
            Self::NotInShard { name, file } => {
                write!(f, "missing `{name}`: the index places it in {file}, which does not have it")
            }
        }
    }
}

/// Formats the first problems, one a line, and the number of the others.
struct Listed<'a>(&'a [Problem]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 10;
        self.0.iter().take(SHOWN).try_for_each(|problem| write!(f, "\n  {problem}"))?;
        match self.0.len().checked_sub(SHOWN) {
            Some(more) if more > 0 => write!(f, "\n  and {more} more"),
            _ => Ok(()),
        }
    }
}
