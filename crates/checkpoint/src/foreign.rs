//! Recognises directories and files that hold no complete safetensors checkpoint, and says what to do about them.

use std::path::Path;

use serde_json::Value;

use crate::{CheckpointError, read_json};

const ADAPTER_CONFIG: &str = "adapter_config.json";

/// True if a file is a Git LFS pointer: the text that git stores in place of a large file.
pub(crate) fn is_lfs_pointer(contents: &[u8]) -> bool {
    contents.starts_with(b"version https://git-lfs.github.com/spec/")
}

/// Refuses a directory with a LoRA adapter. transformers applies one that lies beside a model, so its weights alone are
/// not the model.
pub(crate) fn refuse_adapter(dir: &Path) -> Result<(), CheckpointError> {
    let path = dir.join(ADAPTER_CONFIG);
    if !path.is_file() {
        return Ok(());
    }
    let base = read_json(&path)
        .ok()
        .and_then(|json| json.get("base_model_name_or_path").and_then(Value::as_str).map(str::to_owned));
    Err(CheckpointError::Adapter {
        path: dir.to_owned(),
        base: base.unwrap_or_else(|| "its base model".to_owned()),
    })
}

/// The error for a path without config.json.
pub(crate) fn no_config(path: &Path) -> CheckpointError {
    let hint = if path.is_file() {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("gguf") => GGUF.to_owned(),
            Some("safetensors" | "json") => "hint: name the directory that holds the file".to_owned(),
            _ => "hint: name a directory".to_owned(),
        }
    } else if !path.exists() {
        "hint: the path does not exist".to_owned()
    } else {
        weights_hint(path)
    };
    CheckpointError::NoConfig { path: path.to_owned(), hint }
}

const GGUF: &str =
    "hint: GGUF is llama.cpp's format and is not read; start from the original Hugging Face checkpoint";

/// A hint for a directory without safetensors files, by what it has instead.
pub(crate) fn weights_hint(dir: &Path) -> String {
    let names: Vec<String> = std::fs::read_dir(dir)
        .map(|entries| {
            entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
        })
        .unwrap_or_default();
    // macOS writes `._name` beside `name` on foreign file systems.
    let names: Vec<&String> = names.iter().filter(|name| !name.starts_with('.')).collect();
    let has = |endings: &[&str]| names.iter().any(|name| endings.iter().any(|ending| name.ends_with(ending)));
    if has(&[".incomplete", ".part", ".crdownload", ".aria2"]) {
        "hint: the download is incomplete; fetch the checkpoint again".to_owned()
    } else if has(&[".gguf"]) {
        GGUF.to_owned()
    } else if has(&[".bin", ".pt", ".pth", ".ckpt"]) {
        "hint: pickled weights are not read; load them with transformers and save them again, which writes safetensors"
            .to_owned()
    } else if has(&[".h5", ".msgpack", ".onnx", ".tflite"]) {
        "hint: only safetensors weights are read; fetch the checkpoint's safetensors files".to_owned()
    } else if has(&[".safetensors"]) {
        "hint: the directory has weights but no config.json; fetch it too".to_owned()
    } else {
        "hint: name the directory that holds config.json and the weights".to_owned()
    }
}
