//! The weight files of a directory: a single file, or the shards that an index lists.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use crate::CheckpointError;

pub(crate) const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";

/// The weight files of a directory, with its index.
#[derive(Debug)]
pub struct Shards {
    /// File names, ascending.
    pub files: Vec<String>,
    /// File of each tensor according to the index, if there is one.
    pub index: Option<BTreeMap<String, String>>,
}

/// Finds the weight files of a directory: those that its index lists, or the only one there is. An index wins over a
/// lone model.safetensors, which it may list.
///
/// # Errors
/// No weights, an index that cannot be read, or a shard of it that is absent.
pub fn find_shards(dir: &Path) -> Result<Shards, CheckpointError> {
    let index_path = dir.join(INDEX);
    if index_path.is_file() {
        let index = read_index(&index_path)?;
        let files: BTreeSet<&String> = index.values().collect();
        for file in &files {
            if !dir.join(file).is_file() {
                return Err(CheckpointError::MissingShard { path: dir.to_owned(), shard: (*file).clone() });
            }
        }
        return Ok(Shards { files: files.into_iter().cloned().collect(), index: Some(index) });
    }
    if dir.join(SINGLE).is_file() {
        return Ok(Shards { files: vec![SINGLE.to_owned()], index: None });
    }
    let present = weight_files(dir)?;
    match present.as_slice() {
        [file] if !is_shard(file) => Ok(Shards { files: present, index: None }),
        _ => Err(CheckpointError::NoWeights { path: dir.to_owned(), hint: hint(dir, &present) }),
    }
}

fn hint(dir: &Path, present: &[String]) -> String {
    match present {
        [] if dir.join("pytorch_model.bin").exists() => {
            "hint: pickled weights are not read; save the model as safetensors".to_owned()
        }
        [] => "hint: name the directory that holds config.json and the weights".to_owned(),
        some => format!("hint: {} are there, but without {INDEX}; fetch it too", some.join(", ")),
    }
}

/// True if the name has the form `…-00001-of-00002.safetensors`.
fn is_shard(name: &str) -> bool {
    name.strip_suffix(".safetensors").is_some_and(|stem| stem.contains("-of-"))
}

fn weight_files(dir: &Path) -> Result<Vec<String>, CheckpointError> {
    let io = |source| CheckpointError::Io { path: dir.to_owned(), source };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io)? {
        let name = entry.map_err(io)?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".safetensors") {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn read_index(path: &Path) -> Result<BTreeMap<String, String>, CheckpointError> {
    let invalid = |message: String| CheckpointError::Index { path: path.to_owned(), message };
    let root = read_json(path)?;
    let map = root
        .get("weight_map")
        .and_then(Value::as_object)
        .ok_or_else(|| invalid("it has no object `weight_map`".into()))?;
    if map.is_empty() {
        return Err(invalid("its `weight_map` is empty".into()));
    }
    let mut index = BTreeMap::new();
    for (tensor, file) in map {
        let file = file.as_str().filter(|file| is_plain_name(file)).ok_or_else(|| {
            invalid(format!(
                "`{tensor}` is placed in {file}\n  expected: the name of a file beside the index"
            ))
        })?;
        index.insert(tensor.clone(), file.to_owned());
    }
    Ok(index)
}

/// True for a file name without a directory: an index must not point outside of its own directory.
fn is_plain_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(_)), None))
        && !name.contains('\\')
}

/// Reads a JSON file.
///
/// # Errors
/// It cannot be read, or is not JSON.
pub fn read_json(path: &Path) -> Result<Value, CheckpointError> {
    let text =
        std::fs::read(path).map_err(|source| CheckpointError::Io { path: PathBuf::from(path), source })?;
    serde_json::from_slice(&text)
        .map_err(|error| CheckpointError::Json { path: PathBuf::from(path), message: error.to_string() })
}
