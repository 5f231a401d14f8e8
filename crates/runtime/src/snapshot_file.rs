//! Snapshot files: the state after a long system prompt, saved so that it is computed only once.
//!
//! The file is safetensors: the prompt's ids under `ids` (u32), each tensor of the state under `state.NAME`, and in its
//! metadata the format's version, the state's layout, and the identity of the model. A file of another model or
//! version is refused: a state is valid only for the weights that computed it.

use std::collections::HashMap;
use std::path::Path;

use q35_inference::{Snapshot, SnapshotTensor, StateType};
use q35_output_dir::hash_file;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use sha2::{Digest, Sha256};

use crate::ChatError;

const FORMAT: &str = "q35-prompt";
const VERSION: &str = "1";

/// The identity of a model: SHA-256 over the hashes of its weights, configuration and tokenizer.
pub(crate) fn identity(dir: &Path) -> Result<String, ChatError> {
    let mut names = Vec::new();
    collect(dir, dir, &mut names).map_err(|source| file_error(dir, source))?;
    names.sort();
    let mut hash = Sha256::new();
    for name in names {
        let record = hash_file(&dir.join(&name), &name)
            .map_err(|error| file_error(&dir.join(&name), std::io::Error::other(error.to_string())))?;
        hash.update(format!("{} {}\n", record.sha256, record.path));
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn collect(root: &Path, dir: &Path, names: &mut Vec<String>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().replace('\\', "/");
        if path.is_dir() {
            collect(root, &path, names)?;
        } else if [".safetensors", ".bin", ".mlmodel"].iter().any(|end| name.ends_with(end))
            || ["config.json", "tokenizer.json"].contains(&name.as_str())
        {
            names.push(name);
        }
    }
    Ok(())
}

fn file_error(path: &Path, source: std::io::Error) -> ChatError {
    ChatError::File { path: path.to_owned(), source }
}

/// Writes a snapshot and the ids that it has consumed.
pub(crate) fn save(path: &Path, identity: &str, ids: &[u32], snapshot: &Snapshot) -> Result<(), ChatError> {
    let failed = |message: String| file_error(path, std::io::Error::other(message));
    let metadata = HashMap::from([
        ("format".to_owned(), FORMAT.to_owned()),
        ("version".to_owned(), VERSION.to_owned()),
        ("layout".to_owned(), snapshot.layout.clone()),
        ("model".to_owned(), identity.to_owned()),
    ]);
    let id_bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    let mut tensors = vec![(
        "ids".to_owned(),
        TensorView::new(Dtype::U32, vec![ids.len()], &id_bytes).map_err(|error| failed(error.to_string()))?,
    )];
    for tensor in &snapshot.tensors {
        let dtype = match tensor.dtype {
            StateType::F32 => Dtype::F32,
            StateType::F16 => Dtype::F16,
            StateType::I8 => Dtype::I8,
        };
        let view = TensorView::new(dtype, tensor.shape.clone(), &tensor.data);
        tensors.push((format!("state.{}", tensor.name), view.map_err(|error| failed(error.to_string()))?));
    }
    let bytes = safetensors::serialize(tensors, Some(metadata)).map_err(|error| failed(error.to_string()))?;
    // Written to a temporary sibling and renamed, so that a crash leaves the old file or the new one.
    let temporary = path.with_extension("partial");
    std::fs::write(&temporary, bytes)
        .and_then(|()| std::fs::rename(&temporary, path))
        .map_err(|error| file_error(path, error))
}

/// Reads a file that [`save`] wrote for the same model.
pub(crate) fn load(path: &Path, identity: &str) -> Result<(Vec<u32>, Snapshot), ChatError> {
    let bytes = std::fs::read(path).map_err(|error| file_error(path, error))?;
    let refused = |expected: &str, found: &str| ChatError::SnapshotFile {
        path: path.to_owned(),
        expected: expected.to_owned(),
        found: found.to_owned(),
    };
    let broken = |error: safetensors::SafeTensorError| refused("a safetensors file", &error.to_string());
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(broken)?;
    let metadata = header.metadata().clone().unwrap_or_default();
    let field = |name: &str| metadata.get(name).map_or("nothing", String::as_str);
    for (name, expected) in [("format", FORMAT), ("version", VERSION), ("model", identity)] {
        if field(name) != expected {
            return Err(refused(&format!("{name} {expected}"), &format!("{name} {}", field(name))));
        }
    }
    let (mut ids, mut tensors) = (Vec::new(), Vec::new());
    for (name, view) in SafeTensors::deserialize(&bytes).map_err(broken)?.tensors() {
        let dtype = match (name.as_str(), view.dtype()) {
            ("ids", Dtype::U32) => {
                let words = view.data().chunks_exact(4);
                ids = words
                    .map(|word| word.iter().rev().fold(0, |id, byte| id << 8 | u32::from(*byte)))
                    .collect();
                continue;
            }
            (_, Dtype::F32) => StateType::F32,
            (_, Dtype::F16) => StateType::F16,
            (_, Dtype::I8) => StateType::I8,
            (_, other) => return Err(refused("f32, f16 or i8 states", &format!("{name} of {other:?}"))),
        };
        let Some(name) = name.strip_prefix("state.") else { return Err(refused("states and ids", &name)) };
        let (name, shape, data) = (name.to_owned(), view.shape().to_vec(), view.data().to_vec());
        tensors.push(SnapshotTensor { name, dtype, shape, data });
    }
    if ids.is_empty() {
        return Err(refused("the prompt's ids", "none"));
    }
    let snapshot = Snapshot { position: ids.len(), layout: field("layout").to_owned(), tensors };
    Ok((ids, snapshot))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot() -> Snapshot {
        let tensor = |name: &str, dtype, shape: Vec<usize>, bytes: usize| SnapshotTensor {
            name: name.into(),
            dtype,
            shape,
            data: (0..bytes).map(|byte| byte as u8).collect(),
        };
        let tensors = vec![
            tensor("a", StateType::F32, vec![2, 3], 24),
            tensor("b", StateType::I8, vec![5], 5),
            tensor("c", StateType::F16, vec![1, 2], 4),
        ];
        Snapshot { position: 3, layout: "test-1".into(), tensors }
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("prompt.safetensors");
        save(&path, "abc", &[7, 70_000, 9], &snapshot()).unwrap();
        let (ids, mut loaded) = load(&path, "abc").unwrap();
        loaded.tensors.sort_by(|a, b| a.name.cmp(&b.name));
        assert_eq!((ids, loaded), (vec![7, 70_000, 9], snapshot()));
    }

    #[test]
    fn what_does_not_belong_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("prompt.safetensors");
        save(&path, "abc", &[1], &snapshot()).unwrap();
        let error = load(&path, "other").unwrap_err().to_string();
        assert!(error.contains("expected: model other") && error.contains("found:    model abc"), "{error}");
        let bytes = std::fs::read(&path).unwrap();
        for length in [0, 7, 40, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..length]).unwrap();
            assert!(matches!(load(&path, "abc"), Err(ChatError::SnapshotFile { .. })), "{length} bytes");
        }
        let other = safetensors::serialize::<String, TensorView<'_>, Vec<_>>(vec![], None).unwrap();
        std::fs::write(&path, other).unwrap();
        assert!(load(&path, "abc").unwrap_err().to_string().contains("found:    format nothing"));
    }

    #[test]
    fn the_identity_is_that_of_the_files() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("model.safetensors"), "weights").unwrap();
        let first = identity(dir.path()).unwrap();
        std::fs::write(dir.path().join("README.md"), "no matter").unwrap();
        assert_eq!(identity(dir.path()).unwrap(), first);
        std::fs::write(dir.path().join("model.safetensors"), "others").unwrap();
        assert_ne!(identity(dir.path()).unwrap(), first);
    }
}
