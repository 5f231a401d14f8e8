//! The files that travel with the weights: tokenizer, chat template, generation settings.

use std::fs;
use std::path::Path;

use q35_checkpoint::{Checkpoint, CheckpointError, read_json};
use q35_output_dir::BundleError;
use serde_json::Value;

use crate::WriteError;

/// Copied as they are when the source has them.
const COPIED: [&str; 8] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
];
const TEMPLATE: &str = "chat_template.jinja";

/// Copies what the source has to `out`. A chat template that stands in tokenizer_config.json alone gets its own file
/// too, where newer tools look for it. Returns the names written.
pub(crate) fn copy(checkpoint: &Checkpoint, out: &Path) -> Result<Vec<String>, WriteError> {
    let source = checkpoint.dir();
    let mut written = Vec::new();
    for name in COPIED {
        let from = source.join(name);
        if from.is_file() {
            let bytes = fs::read(&from).map_err(|error| CheckpointError::Io { path: from, source: error })?;
            put(out, name, &bytes)?;
            written.push(name.to_owned());
        }
    }
    if !source.join(TEMPLATE).is_file()
        && let Some(template) =
            optional(source, "tokenizer_config.json")?.as_ref().and_then(embedded_template)
    {
        put(out, TEMPLATE, template.as_bytes())?;
        written.push(TEMPLATE.to_owned());
    }
    Ok(written)
}

/// The `default` one, where there are several by name.
fn embedded_template(tokenizer_config: &Value) -> Option<&str> {
    match tokenizer_config.get("chat_template")? {
        Value::String(template) => Some(template),
        Value::Array(named) => {
            named.iter().find(|entry| entry["name"] == "default").and_then(|entry| entry["template"].as_str())
        }
        _ => None,
    }
}

/// Writes the file `name`.
pub(crate) fn put(out: &Path, name: &str, bytes: &[u8]) -> Result<(), WriteError> {
    let path = out.join(name);
    fs::write(&path, bytes).map_err(|error| BundleError::io(&path, error).into())
}

/// The JSON file `name` of the source, if it has one.
pub(crate) fn optional(source: &Path, name: &str) -> Result<Option<Value>, CheckpointError> {
    let path = source.join(name);
    if path.is_file() { read_json(&path).map(Some) } else { Ok(None) }
}

/// The id of the special token `content` in a tokenizer.json.
pub(crate) fn special_token(tokenizer: &Value, content: &str) -> Option<u64> {
    let added = tokenizer.get("added_tokens")?.as_array()?;
    added.iter().find(|token| token["content"] == content).and_then(|token| token["id"].as_u64())
}
