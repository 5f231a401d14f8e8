//! Auxiliary files: tokenizer, chat template and generation settings, copied beside the weights.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::{Checkpoint, CheckpointError, read_json};

const CHAT_TEMPLATE: &str = "chat_template.jinja";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

/// Copies the source's auxiliary files to `out` and returns their names. config.json, weights and index belong to the
/// format. A chat template that only tokenizer_config.json contains gets a file of its own too, where newer tools look
/// for it.
///
/// # Errors
/// A file cannot be read or written.
pub fn copy_auxiliary_files(checkpoint: &Checkpoint, out: &Path) -> Result<Vec<String>, CheckpointError> {
    let weights: Vec<&Path> = checkpoint.weight_files().iter().map(|file| file.path()).collect();
    let mut copied = Vec::new();
    for source in checkpoint.source_files() {
        let belongs_to_format = source.name == "config.json"
            || source.name.ends_with(".index.json")
            || weights.contains(&source.path.as_path());
        if belongs_to_format {
            continue;
        }
        let bytes = fs::read(&source.path)
            .map_err(|error| CheckpointError::Io { path: source.path.clone(), source: error })?;
        write_file(out, &source.name, &bytes)?;
        copied.push(source.name.clone());
    }
    let has = |copied: &[String], name: &str| copied.iter().any(|copied| copied == name);
    if !has(&copied, CHAT_TEMPLATE)
        && has(&copied, TOKENIZER_CONFIG)
        && let Some(template) = embedded_chat_template(&read_json(&checkpoint.dir().join(TOKENIZER_CONFIG))?)
    {
        write_file(out, CHAT_TEMPLATE, template.as_bytes())?;
        copied.push(CHAT_TEMPLATE.to_owned());
    }
    Ok(copied)
}

/// The chat template of a tokenizer_config.json; of a list of named templates, the one called `default`.
fn embedded_chat_template(tokenizer_config: &Value) -> Option<&str> {
    match tokenizer_config.get("chat_template")? {
        Value::String(template) => Some(template),
        Value::Array(named) => {
            named.iter().find(|entry| entry["name"] == "default").and_then(|entry| entry["template"].as_str())
        }
        _ => None,
    }
}

fn write_file(out: &Path, name: &str, bytes: &[u8]) -> Result<(), CheckpointError> {
    let path = out.join(name);
    fs::write(&path, bytes).map_err(|source| CheckpointError::Io { path, source })
}
