//! The checkpoints that this project was made for, as `manifests/` describes them: a source that claims to be one of
//! them is held to its description before anything is written.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail};
use q35_checkpoint::Checkpoint;
use serde::Deserialize;
use serde_json::Value;

use crate::source::Source;

/// The description of a checkpoint.
#[derive(Clone, Debug, Deserialize)]
pub struct Known {
    /// Its hub id, or the name of the embedded model.
    pub id: String,
    /// The text model's sizes, by their names in config.json.
    pub dimensions: BTreeMap<String, Value>,
    /// Shapes of the text model's tensors, by their names in the files.
    pub tensors: BTreeMap<String, Vec<usize>>,
    /// Number of tensors that text conversions leave out.
    pub left_out: usize,
    /// SHA-256 of the weight files, where these are pinned.
    #[serde(default)]
    pub sha256: BTreeMap<String, String>,
}

const MANIFESTS: [&str; 2] =
    [include_str!("../../../manifests/qwen3.5-0.8b.json"), include_str!("../../../manifests/q35-nano.json")];

/// The description of the checkpoint called `id`, if there is one.
///
/// # Errors
/// A description in this program is not valid.
pub fn find(id: &str) -> anyhow::Result<Option<Known>> {
    for text in MANIFESTS {
        let known: Known = serde_json::from_str(text).context("a description in manifests/ is invalid")?;
        if known.id == id {
            return Ok(Some(known));
        }
    }
    Ok(None)
}

/// Holds `checkpoint` to the description of `source`, if there is one.
///
/// # Errors
/// The sizes, the tensors or the files are others than those described.
pub fn check(source: &Source, checkpoint: &Checkpoint) -> anyhow::Result<()> {
    let Some(known) = source.id.as_deref().map(find).transpose()?.flatten() else { return Ok(()) };
    let misfits = misfits(&known, checkpoint);
    if misfits.is_empty() {
        return Ok(());
    }
    let shown: Vec<String> = misfits.iter().take(8).map(|misfit| format!("\n  {misfit}")).collect();
    bail!(
        "{} is not the checkpoint that this program knows under this name: {} differences{}\n\
         hint: pin a --revision, or convert it from a local directory to leave out this check",
        known.id,
        misfits.len(),
        shown.concat()
    )
}

fn misfits(known: &Known, checkpoint: &Checkpoint) -> Vec<String> {
    let sizes = checkpoint.config().to_json();
    let mut misfits = Vec::new();
    for (field, expected) in &known.dimensions {
        let found = sizes.get(field).unwrap_or(&Value::Null);
        if found != expected {
            misfits.push(format!("config.json: `{field}` expected {expected}, found {found}"));
        }
    }
    let found: BTreeMap<&str, &[usize]> =
        checkpoint.tensors().map(|tensor| (tensor.source_name, tensor.shape())).collect();
    for (name, shape) in &known.tensors {
        match found.get(name.as_str()) {
            None => misfits.push(format!("`{name}` is missing")),
            Some(found) if found != shape => {
                misfits.push(format!("`{name}` expected {shape:?}, found {found:?}"))
            }
            Some(_) => {}
        }
    }
    misfits.extend(
        found
            .keys()
            .filter(|name| !known.tensors.contains_key(**name))
            .map(|name| format!("`{name}` is new")),
    );
    let left_out = checkpoint.inventory().dropped_count();
    if left_out != known.left_out {
        misfits.push(format!("expected {} tensors besides the text model, found {left_out}", known.left_out));
    }
    for (file, expected) in &known.sha256 {
        let weights = checkpoint.weight_files().iter().find(|weights| weights.path().ends_with(file));
        match weights.map(|weights| q35_checkpoint::sha256_hex(weights.bytes())) {
            Some(found) if found == *expected => {}
            found => misfits
                .push(format!("{file}: expected sha256 {expected}, found {}", found.unwrap_or_default())),
        }
    }
    misfits
}
