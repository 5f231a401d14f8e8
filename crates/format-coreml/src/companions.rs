//! The files that travel with the packages: configuration, tokenizer, chat template, generation settings.

use std::fs;
use std::path::Path;

use q35_checkpoint::{Checkpoint, CheckpointError, read_json};
use q35_output_dir::BundleError;
use serde_json::Value;

use crate::ConvertError;

const TEMPLATE: &str = "chat_template.jinja";

/// Copies what the source has, weights and their index apart. A chat template that stands in tokenizer_config.json
/// alone gets its own file too. Returns the names written.
pub(crate) fn copy(checkpoint: &Checkpoint, out: &Path) -> Result<Vec<String>, ConvertError> {
    let weights: Vec<&Path> = checkpoint.weight_files().iter().map(|file| file.path()).collect();
    let mut written = Vec::new();
    for source in checkpoint.source_files() {
        if weights.contains(&source.path.as_path()) || source.name.ends_with(".index.json") {
            continue;
        }
        let bytes = fs::read(&source.path)
            .map_err(|error| CheckpointError::Io { path: source.path.clone(), source: error })?;
        put(out, &source.name, &bytes)?;
        written.push(source.name.clone());
    }
    let tokenizer_config = "tokenizer_config.json".to_owned();
    if !written.iter().any(|name| name == TEMPLATE)
        && written.contains(&tokenizer_config)
        && let Some(template) = template(&read_json(&checkpoint.dir().join(tokenizer_config))?)
    {
        put(out, TEMPLATE, template.as_bytes())?;
        written.push(TEMPLATE.to_owned());
    }
    Ok(written)
}

/// The `default` one, where there are several by name.
fn template(tokenizer_config: &Value) -> Option<&str> {
    match tokenizer_config.get("chat_template")? {
        Value::String(template) => Some(template),
        Value::Array(named) => {
            named.iter().find(|entry| entry["name"] == "default").and_then(|entry| entry["template"].as_str())
        }
        _ => None,
    }
}

/// Writes the file `name`.
pub(crate) fn put(out: &Path, name: &str, bytes: &[u8]) -> Result<(), ConvertError> {
    let path = out.join(name);
    fs::write(&path, bytes).map_err(|error| BundleError::io(&path, error).into())
}
