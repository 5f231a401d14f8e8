//! Pinned checkpoints: a source with the name of a checkpoint in `manifests/` must match its sizes, tensors and hashes
//! before anything is written.

use std::collections::BTreeMap;

use q35_checkpoint::Checkpoint;
use serde::Deserialize;
use serde_json::Value;

use crate::{ConvertError, Source};

/// Description of a pinned checkpoint.
#[derive(Clone, Debug, Deserialize)]
pub struct PinnedCheckpoint {
    /// Hub id, or the name of the embedded model.
    pub id: String,
    /// Sizes of the text model, by their keys in config.json.
    pub dimensions: BTreeMap<String, Value>,
    /// Shapes of the text model's tensors, by their names in the files.
    pub tensors: BTreeMap<String, Vec<usize>>,
    /// Number of dropped tensors.
    #[serde(rename = "left_out")]
    pub dropped_tensors: usize,
    /// SHA-256 of weight files, where they are pinned.
    #[serde(default)]
    pub sha256: BTreeMap<String, String>,
}

const MANIFESTS: [&str; 2] =
    [include_str!("../../../manifests/qwen3.5-0.8b.json"), include_str!("../../../manifests/q35-nano.json")];

impl PinnedCheckpoint {
    /// The pinned checkpoint called `id`, if there is one.
    pub fn find(id: &str) -> Option<Self> {
        let parse = |text: &&str| serde_json::from_str::<Self>(text).ok();
        MANIFESTS.iter().filter_map(parse).find(|pinned| pinned.id == id)
    }

    /// Every difference between the description and `checkpoint`, one line each.
    pub fn differences(&self, checkpoint: &Checkpoint) -> Vec<String> {
        let sizes = checkpoint.config().to_json();
        let mut differences = Vec::new();
        for (field, expected) in &self.dimensions {
            let found = sizes.get(field).unwrap_or(&Value::Null);
            if found != expected {
                differences.push(format!("config.json: `{field}` expected {expected}, found {found}"));
            }
        }
        let found: BTreeMap<&str, &[usize]> =
            checkpoint.tensors().map(|tensor| (tensor.source_name, tensor.shape())).collect();
        for (name, shape) in &self.tensors {
            match found.get(name.as_str()) {
                None => differences.push(format!("`{name}` is missing")),
                Some(found) if found != shape => {
                    differences.push(format!("`{name}` expected {shape:?}, found {found:?}"))
                }
                Some(_) => {}
            }
        }
        let unknown = found.keys().filter(|name| !self.tensors.contains_key(**name));
        differences.extend(unknown.map(|name| format!("`{name}` is new")));
        let dropped = checkpoint.inventory().dropped_count();
        if dropped != self.dropped_tensors {
            let expected = self.dropped_tensors;
            differences.push(format!("expected {expected} tensors besides the text model, found {dropped}"));
        }
        for (file, expected) in &self.sha256 {
            let weights = checkpoint.weight_files().iter().find(|weights| weights.path().ends_with(file));
            match weights.map(|weights| q35_checkpoint::sha256_hex(weights.bytes())) {
                Some(found) if found == *expected => {}
                found => differences
                    .push(format!("{file}: expected sha256 {expected}, found {}", found.unwrap_or_default())),
            }
        }
        differences
    }
}

/// Checks `checkpoint` against the pinned checkpoint of the source's name, if there is one.
pub(crate) fn check(source: &Source, checkpoint: &Checkpoint) -> Result<(), ConvertError> {
    let Some(pinned) = source.id.as_deref().and_then(PinnedCheckpoint::find) else { return Ok(()) };
    match pinned.differences(checkpoint) {
        differences if differences.is_empty() => Ok(()),
        differences => Err(ConvertError::NotPinned { id: pinned.id, differences }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_description_is_valid_and_the_embedded_model_matches_its_own() {
        for text in MANIFESTS {
            serde_json::from_str::<PinnedCheckpoint>(text).unwrap();
        }
        let source = Source::embedded().unwrap();
        let checkpoint = Checkpoint::open(&source.dir).unwrap();
        check(&source, &checkpoint).unwrap();
        let mut pinned = PinnedCheckpoint::find("q35-nano").unwrap();
        pinned.dropped_tensors += 1;
        assert_eq!(pinned.differences(&checkpoint).len(), 1);
    }
}
