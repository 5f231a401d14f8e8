//! Configurations of tiny models, and `config.json` in the layout of the real checkpoint.

use q35_architecture::{LayerKind, TextConfig};
use serde_json::{Value, json};

/// Configuration of four layers (three linear, one full) with 0.6 M parameters. Every row length is a multiple of 128, so
/// that all group sizes fit; key and value heads differ in width, so that tests notice a transposed state.
pub fn tiny() -> TextConfig {
    use LayerKind::{FullAttention, LinearAttention};
    TextConfig {
        hidden_size: 128,
        num_hidden_layers: 4,
        layer_types: vec![LinearAttention, LinearAttention, LinearAttention, FullAttention],
        vocab_size: 320,
        intermediate_size: 256,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 32,
        linear_num_key_heads: 2,
        linear_num_value_heads: 2,
        linear_key_head_dim: 32,
        linear_value_head_dim: 64,
        linear_conv_kernel_dim: 4,
        rms_norm_eps: 1e-6,
        rope_theta: 10_000_000.0,
        partial_rotary_factor: 0.25,
        tie_word_embeddings: true,
        max_position_embeddings: 4096,
    }
}

/// As [`tiny`], with two value heads per key head and one key/value head for all queries.
pub fn tiny_more_value_heads() -> TextConfig {
    TextConfig {
        num_key_value_heads: 1,
        linear_num_value_heads: 4,
        linear_key_head_dim: 64,
        linear_value_head_dim: 32,
        ..tiny()
    }
}

/// Sizes of the vision tower in a nested checkpoint.
pub(crate) const VISION_HIDDEN: usize = 16;
pub(crate) const VISION_INTERMEDIATE: usize = 32;
pub(crate) const VISION_POSITIONS: usize = 16;

/// `config.json`, nested as in the multimodal checkpoint or flat as in text-only exports.
pub(crate) fn config_json(config: &TextConfig, nested: bool, end_of_text: u32) -> Value {
    let mut text = config.to_json();
    let half = config.rotary_dim() / 2;
    let third = half / 3;
    let rope = &mut text["rope_parameters"];
    rope["mrope_interleaved"] = json!(true);
    rope["mrope_section"] = json!([half - 2 * third, third, third]);
    for (key, value) in [
        ("attention_bias", json!(false)),
        ("attention_dropout", json!(0.0)),
        ("attn_output_gate", json!(true)),
        ("dtype", json!("bfloat16")),
        ("eos_token_id", json!(end_of_text)),
        ("full_attention_interval", json!(4)),
        ("hidden_act", json!("silu")),
        ("mamba_ssm_dtype", json!("float32")),
        ("mlp_only_layers", json!([])),
        ("mtp_num_hidden_layers", json!(1)),
        ("mtp_use_dedicated_embeddings", json!(false)),
        ("use_cache", json!(true)),
    ] {
        text[key] = value;
    }
    if !nested {
        text["architectures"] = json!(["Qwen3_5ForCausalLM"]);
        return text;
    }
    json!({
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "model_type": "qwen3_5",
        "tie_word_embeddings": config.tie_word_embeddings,
        "text_config": text,
        "vision_config": {
            "model_type": "qwen3_5", "depth": 1, "hidden_size": VISION_HIDDEN, "num_heads": 2,
            "intermediate_size": VISION_INTERMEDIATE, "hidden_act": "gelu_pytorch_tanh", "in_channels": 3,
            "patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2,
            "out_hidden_size": config.hidden_size, "num_position_embeddings": VISION_POSITIONS,
            "deepstack_visual_indexes": [], "initializer_range": 0.02,
        },
        "vision_start_token_id": config.vocab_size - 4, "vision_end_token_id": config.vocab_size - 3,
        "image_token_id": config.vocab_size - 2, "video_token_id": config.vocab_size - 1,
    })
}
