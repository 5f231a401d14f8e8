//! The source files of a conversion, for its manifest.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::CheckpointError;

/// Files besides config.json, index and weights that a text conversion copies or reads.
pub(crate) const AUXILIARY_FILES: [&str; 10] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/tool_use.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
];

/// One file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFile {
    /// Name in the checkpoint's directory.
    pub name: String,
    /// Path.
    pub path: PathBuf,
    /// Length in bytes.
    pub bytes: u64,
}

impl SourceFile {
    pub(crate) fn stat(dir: &Path, name: &str) -> Result<Self, CheckpointError> {
        let path = dir.join(name);
        match std::fs::metadata(&path) {
            Ok(metadata) => Ok(Self { name: name.to_owned(), path, bytes: metadata.len() }),
            Err(source) => Err(CheckpointError::Io { path, source }),
        }
    }
}

/// SHA-256 of `bytes`, in lower-case hexadecimal.
pub fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
