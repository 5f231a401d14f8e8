//! chat_config.json, the configuration that speech-swift reads beside its Core ML packages.

use q35_architecture::{LayerKind, TextConfig};
use q35_checkpoint::{Checkpoint, CheckpointError, read_json};
use serde_json::{Value, json};

use crate::options::Options;

/// Contents of the file. `source` is the name of the source model.
pub(crate) fn chat_config(
    checkpoint: &Checkpoint,
    options: &Options,
    source: &str,
) -> Result<Value, CheckpointError> {
    let config = checkpoint.config();
    let path = checkpoint.dir().join("tokenizer.json");
    let tokenizer = if path.is_file() { read_json(&path)? } else { Value::Null };
    let mut json = sizes(config, options, source);
    for (key, token) in [("eos_token_id", "<|im_end|>"), ("pad_token_id", "<|endoftext|>")] {
        if let Some(id) = special_token(&tokenizer, token) {
            json[key] = id.into();
        }
    }
    Ok(json)
}

fn sizes(config: &TextConfig, options: &Options, source: &str) -> Value {
    let layers = |kind| config.layers_of(kind).collect::<Vec<_>>();
    let (linear, full) = (layers(LayerKind::LinearAttention), layers(LayerKind::FullAttention));
    let mut deltanet = json!({
        "num_layers": linear.len(),
        "layer_indices": linear,
        "num_heads": config.linear_num_value_heads,
        "head_dim": config.linear_value_head_dim,
        "conv_kernel": config.linear_conv_kernel_dim,
        "qkv_dim": config.linear_conv_dim(),
        "gate_dim": config.linear_value_dim(),
    });
    // speech-swift's own models have equal numbers and widths of key and value heads, and no keys for other shapes.
    for (key, size, expected) in [
        ("num_key_heads", config.linear_num_key_heads, config.linear_num_value_heads),
        ("key_head_dim", config.linear_key_head_dim, config.linear_value_head_dim),
    ] {
        if size != expected {
            deltanet[key] = size.into();
        }
    }
    json!({
        "model_type": "qwen3.5-hybrid",
        "source_model": source,
        "architecture": "deltanet+gated_attention",
        "max_seq_length": options.context,
        "hidden_size": config.hidden_size,
        "num_layers": config.num_hidden_layers,
        "vocab_size": config.vocab_size,
        "intermediate_size": config.intermediate_size,
        "rms_norm_eps": config.rms_norm_eps,
        "tied_embeddings": config.tie_word_embeddings,
        "deltanet": deltanet,
        "gated_attention": {
            "num_layers": full.len(),
            "layer_indices": full,
            "num_heads": config.num_attention_heads,
            "num_kv_heads": config.num_key_value_heads,
            "head_dim": config.head_dim,
            "rope_theta": config.rope_theta,
            "partial_rotary_factor": config.partial_rotary_factor,
        },
        "quantization": "int8",
        "files": { "embedding": "embedding.mlpackage", "decoder": "decoder.mlpackage" },
    })
}

/// The id of the special token `content` in a tokenizer.json.
fn special_token(tokenizer: &Value, content: &str) -> Option<u64> {
    let added = tokenizer.get("added_tokens")?.as_array()?;
    added.iter().find(|token| token["content"] == content).and_then(|token| token["id"].as_u64())
}
