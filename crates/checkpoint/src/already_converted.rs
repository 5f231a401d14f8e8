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
    if section("compression_config").is_some() {
        return Err(quantized(dir, "compressed-tensors"));
    }
    if dir.join("hf_quant_config.json").is_file() {
        return Err(quantized(dir, "modelopt, hf_quant_config.json"));
    }
    match section("quantization_config") {
        None => Ok(()),
        Some(settings) => match settings.get("quant_method") {
            Some(method) => {
                Err(quantized(dir, &method.as_str().map_or_else(|| method.to_string(), str::to_owned)))
            }
            None => Err(already_converted(
                dir,
                "its config.json has a `quantization_config` without `quant_method`",
            )),
        },
    }
}

/// Endings of the tensors that quantization methods store beside, or in place of, a matrix.
const QUANTIZED_ENDINGS: [(&str, &str); 14] = [
    (".weight_scale_inv", "fp8 with block scales"),
    (".weight_scale", "fp8 or compressed-tensors"),
    (".input_scale", "fp8 or modelopt"),
    (".weight_packed", "compressed-tensors"),
    (".weight_zero_point", "compressed-tensors"),
    (".weight_shape", "compressed-tensors"),
    (".qweight", "GPTQ or AWQ"),
    (".qzeros", "GPTQ or AWQ"),
    (".g_idx", "GPTQ"),
    (".absmax", "bitsandbytes"),
    (".quant_map", "bitsandbytes"),
    (".SCB", "bitsandbytes"),
    (".weight_format", "bitsandbytes"),
    (".W_q", "HQQ"),
];

/// Refuses weights that are quantized although config.json does not say so, and unmerged adapters.
pub(crate) fn refuse_by_tensors(dir: &Path, files: &[SafetensorsFile]) -> Result<(), CheckpointError> {
    for tensor in files.iter().flat_map(SafetensorsFile::tensors) {
        let name = tensor.name;
        if name.contains(".lora_A.") || name.contains(".lora_B.") {
            return Err(CheckpointError::UnmergedAdapter { path: dir.to_owned(), name: name.to_owned() });
        }
        let method =
            QUANTIZED_ENDINGS.iter().find(|(ending, _)| name.ends_with(ending)).map(|(_, method)| *method);
        let method = method.or_else(|| name.contains(".quant_state.bitsandbytes").then_some("bitsandbytes"));
        let method = method.or_else(|| tensor.dtype.to_string().starts_with("F8_").then_some("fp8"));
        if let Some(method) = method {
            return Err(quantized(dir, &format!("{method}, `{name}`")));
        }
    }
    Ok(())
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

fn quantized(dir: &Path, method: &str) -> CheckpointError {
    CheckpointError::Quantized { path: dir.to_owned(), method: method.to_owned() }
}

pub(crate) fn already_converted(dir: &Path, evidence: &str) -> CheckpointError {
    CheckpointError::AlreadyConverted { path: dir.to_owned(), evidence: evidence.to_owned() }
}
