//! Recognises directories that were converted or quantized already.
//!
//! MLX conversions store `1 + w` for every zero-centred norm. The values cannot prove it, and converting such a
//! directory again would add 1 twice, so any one of the signs below is enough to refuse.

use std::path::Path;

use q35_architecture::{Role, TensorSpec};
use serde_json::Value;

use crate::{CheckpointError, SafetensorsFile};

/// Refuses a directory whose config.json declares quantized weights.
pub(crate) fn refuse_by_config(dir: &Path, config: &Value) -> Result<(), CheckpointError> {
    let section = |key: &str| {
        let nested = config.get("text_config").and_then(|text| text.get(key));
        config.get(key).or(nested).filter(|value| !value.is_null())
    };
    if section("quantization").is_some() {
        return Err(already_converted(dir, "its config.json has a `quantization` entry"));
    }
    match section("quantization_config") {
        None => Ok(()),
        Some(settings) => match settings.get("quant_method") {
            Some(method) => Err(CheckpointError::Quantized {
                path: dir.to_owned(),
                method: method.as_str().map_or_else(|| method.to_string(), str::to_owned),
            }),
            None => Err(already_converted(
                dir,
                "its config.json has a `quantization_config` without `quant_method`",
            )),
        },
    }
}

/// Refuses files that MLX wrote, or that hold packed weights.
pub(crate) fn refuse_by_files(dir: &Path, files: &[SafetensorsFile]) -> Result<(), CheckpointError> {
    for file in files {
        if file.metadata().get("format").is_some_and(|format| format == "mlx") {
            let name = file.path().file_name().unwrap_or_default().to_string_lossy();
            return Err(already_converted(dir, &format!("the metadata of {name} says format `mlx`")));
        }
        let packed = file.tensors().find(|tensor| {
            let stem = tensor.name.strip_suffix(".scales");
            stem.is_some_and(|stem| file.tensor(&format!("{stem}.biases")).is_some())
        });
        if let Some(scales) = packed {
            return Err(already_converted(dir, &format!("it has packed weights with `{}`", scales.name)));
        }
    }
    Ok(())
}

/// True if `found` is the shape of `spec`, a convolution, in MLX's order of axes: [channels, taps, 1].
pub(crate) fn is_mlx_convolution(spec: &TensorSpec, found: &[usize]) -> bool {
    let [channels, middle, taps] = spec.shape[..] else { return false };
    spec.role == Role::Convolution && middle != taps && found == [channels, taps, middle]
}

pub(crate) fn already_converted(dir: &Path, evidence: &str) -> CheckpointError {
    CheckpointError::AlreadyConverted { path: dir.to_owned(), evidence: evidence.to_owned() }
}
