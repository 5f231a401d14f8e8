//! Auxiliary files: tokenizer, chat template and generation settings, copied beside the weights.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::{Checkpoint, CheckpointError, read_json};

const CHAT_TEMPLATE: &str = "chat_template.jinja";
const TEMPLATE_JSON: &str = "chat_template.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const TOOL_TEMPLATE: &str = "additional_chat_templates/tool_use.jinja";

/// Copies the source's auxiliary files to `out` and returns their names. config.json, weights and index belong to the
/// format. A chat template that only chat_template.json or tokenizer_config.json contains gets a file of its own too, where
/// newer tools look for it, and so does the template for conversations with tools.
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
    for source in [TEMPLATE_JSON, TOKENIZER_CONFIG] {
        if has(&copied, CHAT_TEMPLATE) || !has(&copied, source) {
            continue;
        }
        let json = read_json(&checkpoint.dir().join(source))?;
        if let Some(template) = embedded_chat_template(&json, "default") {
            for (name, template) in
                [(CHAT_TEMPLATE, Some(template)), (TOOL_TEMPLATE, named(&json, "tool_use"))]
            {
                let Some(template) = template else { continue };
                write_file(out, name, template.as_bytes())?;
                copied.push(name.to_owned());
            }
        }
    }
    Ok(copied)
}

/// The chat template of a JSON file: its only one, or the one of a list that is called `name`.
fn embedded_chat_template<'a>(json: &'a Value, name: &str) -> Option<&'a str> {
    json.get("chat_template")?.as_str().or_else(|| named(json, name))
}

/// The chat template called `name` in a list of them.
fn named<'a>(json: &'a Value, name: &str) -> Option<&'a str> {
    let list = json.get("chat_template")?.as_array()?;
    list.iter().find(|entry| entry["name"] == name)?.get("template")?.as_str()
}

fn write_file(out: &Path, name: &str, bytes: &[u8]) -> Result<(), CheckpointError> {
    let path = out.join(name);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)
            .map_err(|source| CheckpointError::Io { path: parent.to_owned(), source })?;
    }
    fs::write(&path, bytes).map_err(|source| CheckpointError::Io { path, source })
}
