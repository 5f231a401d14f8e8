//! The model configuration of a directory of packages.

use std::path::Path;

use q35_architecture::TextConfig;
use serde_json::{Value, json};

use crate::OpenError;

/// Reads `config.json`, or `chat_config.json` (the file beside speech-swift's packages) if there is none.
pub(crate) fn read_config(dir: &Path) -> Result<TextConfig, OpenError> {
    let path = dir.join("config.json");
    if path.exists() {
        let json = read_json(&path)?;
        return TextConfig::from_json(&json).map_err(|source| OpenError::Config { path, source });
    }
    let path = dir.join("chat_config.json");
    let json = read_json(&path)?;
    let config = from_chat_config(&json).ok_or_else(|| OpenError::File {
        path: path.clone(),
        message: "expected the sizes of the model under `deltanet` and `gated_attention`".to_owned(),
    })?;
    TextConfig::from_json(&config).map_err(|source| OpenError::Config { path, source })
}

fn read_json(path: &Path) -> Result<Value, OpenError> {
    let wrong = |message: String| OpenError::File { path: path.to_owned(), message };
    let bytes = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
    serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))
}

/// Translates speech-swift's configuration to the keys of `config.json`; `None` if a key is missing. The format has one
/// number of heads and one width for both keys and values of linear attention.
fn from_chat_config(chat: &Value) -> Option<Value> {
    let (delta, attention) = (chat.get("deltanet")?, chat.get("gated_attention")?);
    let layers = chat.get("num_layers")?.as_u64()?;
    let full: Vec<u64> =
        attention.get("layer_indices")?.as_array()?.iter().map(Value::as_u64).collect::<Option<_>>()?;
    if layers > 1 << 16 {
        return None;
    }
    let kind = |index| if full.contains(&index) { "full_attention" } else { "linear_attention" };
    Some(json!({
        "model_type": "qwen3_5_text",
        "hidden_size": chat.get("hidden_size")?,
        "num_hidden_layers": layers,
        "layer_types": (0..layers).map(kind).collect::<Vec<_>>(),
        "vocab_size": chat.get("vocab_size")?,
        "intermediate_size": chat.get("intermediate_size")?,
        "num_attention_heads": attention.get("num_heads")?,
        "num_key_value_heads": attention.get("num_kv_heads")?,
        "head_dim": attention.get("head_dim")?,
        "linear_num_key_heads": delta.get("num_heads")?,
        "linear_num_value_heads": delta.get("num_heads")?,
        "linear_key_head_dim": delta.get("head_dim")?,
        "linear_value_head_dim": delta.get("head_dim")?,
        "linear_conv_kernel_dim": delta.get("conv_kernel")?,
        "rms_norm_eps": chat.get("rms_norm_eps")?,
        "tie_word_embeddings": chat.get("tied_embeddings").cloned().unwrap_or(Value::Bool(true)),
        "max_position_embeddings": chat.get("max_seq_length")?,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": attention.get("rope_theta")?,
            "partial_rotary_factor": attention.get("partial_rotary_factor")?,
        },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speech_swifts_config_has_the_same_sizes_under_other_names() {
        let chat = json!({
            "max_seq_length": 256, "hidden_size": 64, "num_layers": 4, "vocab_size": 100, "intermediate_size": 96,
            "rms_norm_eps": 1e-6, "tied_embeddings": true,
            "deltanet": {"num_heads": 2, "head_dim": 16, "conv_kernel": 4, "layer_indices": [0, 1, 2]},
            "gated_attention": {
                "layer_indices": [3], "num_heads": 2, "num_kv_heads": 1, "head_dim": 32,
                "rope_theta": 1e7, "partial_rotary_factor": 0.25,
            },
        });
        let config = TextConfig::from_json(&from_chat_config(&chat).unwrap()).unwrap();
        assert_eq!(config.linear_conv_dim(), 96);
        assert_eq!(config.layers_of(q35_architecture::LayerKind::FullAttention).collect::<Vec<_>>(), [3]);
        assert_eq!(from_chat_config(&json!({"hidden_size": 64})), None);
    }
}
