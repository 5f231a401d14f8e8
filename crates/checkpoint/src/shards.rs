//! The weight files of a directory: a single file, or the shards that an index lists.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use crate::{CheckpointError, foreign};

pub(crate) const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";

/// The weight files of a directory, with its index.
#[derive(Debug)]
pub struct Shards {
    /// File names, ascending.
    pub files: Vec<String>,
    /// File of each tensor according to the index, if the index is used.
    pub index: Option<BTreeMap<String, String>>,
    /// True if there is an index that is not used, because model.safetensors takes precedence.
    pub index_ignored: bool,
    /// Names of other safetensors files in the directory, ascending.
    pub unused: Vec<String>,
}

/// Finds the weight files of a directory, as transformers does: model.safetensors, or the shards that the index lists,
/// or the only other safetensors file. An index that lists model.safetensors among its shards is used.
///
/// # Errors
/// No weights, an index that cannot be read, or a shard of it that does not exist.
pub fn find_shards(dir: &Path) -> Result<Shards, CheckpointError> {
    let present = weight_files(dir)?;
    let single = dir.join(SINGLE).is_file();
    let has_index = dir.join(INDEX).is_file();
    let index = has_index.then(|| read_index(&dir.join(INDEX)));
    let lists_single = |index: &BTreeMap<String, String>| index.values().any(|file| file == SINGLE);
    let (files, index) = match index {
        Some(Ok(index)) if !single || lists_single(&index) => {
            let files: BTreeSet<&String> = index.values().collect();
            if let Some(absent) = files.iter().find(|file| !dir.join(file).is_file()) {
                return Err(CheckpointError::MissingShard {
                    path: dir.to_owned(),
                    shard: (**absent).clone(),
                });
            }
            (files.into_iter().cloned().collect(), Some(index))
        }
        Some(Err(error)) if !single => return Err(error),
        _ if single => (vec![SINGLE.to_owned()], None),
        _ => match present.as_slice() {
            [file] if !is_shard(file) => (present.clone(), None),
            _ => return Err(no_weights(dir, &present)),
        },
    };
    let unused = present.into_iter().filter(|name| !files.contains(name)).collect();
    Ok(Shards { index_ignored: has_index && index.is_none(), files, index, unused })
}

fn no_weights(dir: &Path, present: &[String]) -> CheckpointError {
    let hint = match present {
        [] => foreign::weights_hint(dir),
        some => format!("hint: {} are there, but without {INDEX}; fetch it too", some.join(", ")),
    };
    CheckpointError::NoWeights { path: dir.to_owned(), hint }
}

/// True if the name has the form `…-00001-of-00002.safetensors` and is not the only shard.
fn is_shard(name: &str) -> bool {
    name.strip_suffix(".safetensors")
        .is_some_and(|stem| stem.contains("-of-") && !stem.ends_with("-00001-of-00001"))
}

/// Names of the safetensors files, without hidden files: macOS writes `._model.safetensors` beside `model.safetensors`.
fn weight_files(dir: &Path) -> Result<Vec<String>, CheckpointError> {
    let io = |source| CheckpointError::Io { path: dir.to_owned(), source };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io)? {
        let name = entry.map_err(io)?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".safetensors") && !name.starts_with('.') {
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
/// It cannot be read, is not JSON, or is a Git LFS pointer.
pub fn read_json(path: &Path) -> Result<Value, CheckpointError> {
    let text =
        std::fs::read(path).map_err(|source| CheckpointError::Io { path: PathBuf::from(path), source })?;
    if foreign::is_lfs_pointer(&text) {
        return Err(CheckpointError::LfsPointer { path: PathBuf::from(path) });
    }
    serde_json::from_slice(&text)
        .map_err(|error| CheckpointError::Json { path: PathBuf::from(path), message: error.to_string() })
}
