//! Remarks about a checkpoint that was opened: contents that are not used, and how contradictions were resolved.

use std::fmt;

use q35_architecture::ConfigNote;

/// A remark about a checkpoint. Its `Display` is one line for people.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CheckpointNote {
    /// A key of config.json without effect, or a default.
    Config(ConfigNote),
    /// `tie_word_embeddings` is true, but lm_head.weight differs from the embedding: the head is kept separate.
    HeadNotTied,
    /// config.json has no `tie_word_embeddings` and the files have no lm_head.weight: the embedding is the head.
    HeadAssumedTied,
    /// The embedding is absent, and the tied head replaces it.
    HeadUsedAsEmbedding,
    /// model.safetensors is used, and model.safetensors.index.json beside it is not.
    IndexIgnored,
    /// The index lists tensors of dropped parts that the files do not have.
    IndexStale {
        /// Number of those tensors.
        tensors: usize,
    },
    /// Weight files that are not used.
    FilesUnused {
        /// Their names.
        files: Vec<String>,
    },
    /// The names have an unknown prefix, which was stripped.
    UnknownPrefix {
        /// The prefix of the text model.
        prefix: String,
    },
}

impl fmt::Display for CheckpointNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(note) => note.fmt(f),
            Self::HeadNotTied => f.write_str(
                "tie_word_embeddings is true, but lm_head.weight differs from the embedding: the head is kept separate, \
                 as transformers does",
            ),
            Self::HeadAssumedTied => f.write_str(
                "config.json has no tie_word_embeddings and there is no lm_head.weight: the embedding is used as the head",
            ),
            Self::HeadUsedAsEmbedding => {
                f.write_str("there is no embed_tokens.weight: the tied lm_head.weight is used for both")
            }
            Self::IndexIgnored => f.write_str(
                "model.safetensors is used; model.safetensors.index.json beside it does not list it and is ignored",
            ),
            Self::IndexStale { tensors } => write!(
                f,
                "model.safetensors.index.json lists {tensors} tensors of dropped parts that the files do not have"
            ),
            Self::FilesUnused { files } => write!(f, "weight files that are not used: {}", files.join(", ")),
            Self::UnknownPrefix { prefix } => {
                write!(f, "tensor names begin with the unknown prefix `{prefix}`, which is stripped")
            }
        }
    }
}
