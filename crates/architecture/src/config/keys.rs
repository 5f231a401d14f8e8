//! The keys of config.json by their meaning for the arithmetic of the text model. `docs/checkpoints.md` has the same
//! tables, and a test compares them.

use serde_json::Value;

/// Keys of the text section that are read.
pub(super) const READ: [&str; 23] = [
    "attention_bias",
    "full_attention_interval",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "layer_types",
    "linear_conv_kernel_dim",
    "linear_key_head_dim",
    "linear_num_key_heads",
    "linear_num_value_heads",
    "linear_value_head_dim",
    "max_position_embeddings",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "text_config",
    "tie_word_embeddings",
    "vocab_size",
];

/// Keys of the text section that are read where the RoPE object does not have them.
pub(super) const READ_FOR_ROPE: [&str; 2] = ["partial_rotary_factor", "rope_theta"];

/// Keys without effect on the arithmetic of inference: training settings, ids, storage types, other parts of the model.
pub(super) const WITHOUT_EFFECT: [&str; 67] = [
    "_attn_implementation",
    "_commit_hash",
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "attn_implementation",
    "audio_config",
    "audio_token_id",
    "auto_map",
    "bos_token_id",
    "chunk_size_feed_forward",
    "decoder_sparse_step",
    "dtype",
    "eos_token_id",
    "finetuning_task",
    "gradient_checkpointing",
    "hidden_dropout",
    "id2label",
    "image_token_id",
    "image_token_index",
    "initializer_range",
    "is_decoder",
    "is_encoder_decoder",
    "keys_to_ignore_at_inference",
    "label2id",
    "language_model_only",
    "mamba_ssm_dtype",
    "max_seq_len",
    "max_window_layers",
    "mlp_only_layers",
    "moe_intermediate_size",
    "mtp_layer_types",
    "mtp_num_hidden_layers",
    "mtp_use_dedicated_embeddings",
    "norm_topk_prob",
    "num_experts_per_tok",
    "num_labels",
    "num_nextn_predict_layers",
    "original_max_position_embeddings",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "pad_token_id",
    "pretraining_tp",
    "problem_type",
    "quantization",
    "quantization_bits",
    "quantization_config",
    "quantization_group_size",
    "return_dict",
    "router_aux_loss_coef",
    "shared_expert_intermediate_size",
    "sliding_window",
    "task_specific_params",
    "tokenizer_class",
    "torch_dtype",
    "transformers_version",
    "unsloth_fixed",
    "unsloth_version",
    "use_cache",
    "use_return_dict",
    "video_token_id",
    "video_token_index",
    "vision_config",
    "vision_end_token_id",
    "vision_start_token_id",
    "vision_token_id",
];

/// Settings of generation and of class hierarchies that older versions of transformers saved in config.json.
pub(super) const SAVED_DEFAULTS: [&str; 36] = [
    "add_cross_attention",
    "bad_words_ids",
    "begin_suppress_tokens",
    "cross_attention_hidden_size",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "is_composition",
    "length_penalty",
    "max_length",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_scores",
    "prefix",
    "pruned_heads",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict_in_generate",
    "sep_token_id",
    "suppress_tokens",
    "temperature",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "top_k",
    "top_p",
    "torchscript",
    "typical_p",
    "use_bfloat16",
];

/// Keys of the RoPE object without effect on text: every token has the same position on all three axes of M-RoPE.
pub(super) const ROPE_WITHOUT_EFFECT: [&str; 2] = ["mrope_interleaved", "mrope_section"];

/// Keys of the RoPE object that are read.
pub(super) const ROPE_READ: [&str; 4] = ["partial_rotary_factor", "rope_theta", "rope_type", "type"];

/// The only supported value of a key that changes arithmetic. transformers' Qwen3.5 reads the first two; it ignores the
/// others, which have a meaning in other software or for other architectures. A checkpoint that relies on one of them
/// would be computed wrongly, so another value than the neutral one is refused. Null is neutral for all but the first two.
pub(super) struct OnlyValue {
    pub(super) key: &'static str,
    pub(super) neutral: Neutral,
}

/// A neutral value.
#[derive(Clone, Copy)]
pub(super) enum Neutral {
    Text(&'static [&'static str]),
    Flag(bool),
    Number(f64),
    /// Only null.
    Null,
}

impl Neutral {
    pub(super) fn accepts(self, value: &Value) -> bool {
        match self {
            Self::Text(texts) => value.as_str().is_some_and(|value| texts.contains(&value)),
            Self::Flag(flag) => value.as_bool() == Some(flag),
            Self::Number(number) => value.as_f64() == Some(number),
            Self::Null => value.is_null(),
        }
    }

    pub(super) fn describe(self) -> String {
        match self {
            Self::Text(texts) => {
                texts.iter().map(|text| format!("\"{text}\"")).collect::<Vec<_>>().join(" or ")
            }
            Self::Flag(flag) => flag.to_string(),
            Self::Number(number) => number.to_string(),
            Self::Null => "no such key".to_owned(),
        }
    }
}

const fn only(key: &'static str, neutral: Neutral) -> OnlyValue {
    OnlyValue { key, neutral }
}

/// Keys that transformers' Qwen3.5 reads and of which q35 implements one value.
pub(super) const ONE_VALUE: [OnlyValue; 2] =
    [only("hidden_act", Neutral::Text(&["silu", "swish"])), only("attention_bias", Neutral::Flag(false))];

/// Keys that transformers' Qwen3.5 does not read, but that change arithmetic elsewhere.
pub(super) const FOREIGN: [OnlyValue; 44] = [
    only("alibi", Neutral::Flag(false)),
    only("attention_multiplier", Neutral::Null),
    only("attn_logit_softcapping", Neutral::Null),
    only("attn_output_gate", Neutral::Flag(true)),
    only("clip_qkv", Neutral::Null),
    only("dim_model_base", Neutral::Null),
    only("embedding_multiplier", Neutral::Number(1.0)),
    only("final_logit_softcapping", Neutral::Null),
    only("hidden_activation", Neutral::Text(&["silu", "swish"])),
    only("kv_lora_rank", Neutral::Null),
    only("layer_norm_eps", Neutral::Null),
    only("layer_norm_epsilon", Neutral::Null),
    only("layers_block_type", Neutral::Null),
    only("linear_conv_bias", Neutral::Flag(false)),
    only("logit_scale", Neutral::Number(1.0)),
    only("logits_scaling", Neutral::Number(1.0)),
    only("mlp_bias", Neutral::Flag(false)),
    only("mup_width_multiplier", Neutral::Number(1.0)),
    only("n_routed_experts", Neutral::Number(0.0)),
    only("no_rope_layers", Neutral::Null),
    only("norm_eps", Neutral::Null),
    only("norm_epsilon", Neutral::Null),
    only("num_experts", Neutral::Number(0.0)),
    only("num_local_experts", Neutral::Number(0.0)),
    only("parallel_attn", Neutral::Flag(false)),
    only("per_layer_config", Neutral::Null),
    only("position_embedding_type", Neutral::Text(&["rope"])),
    only("q_lora_rank", Neutral::Null),
    only("qk_norm", Neutral::Flag(true)),
    only("qkv_bias", Neutral::Flag(false)),
    only("query_pre_attn_scalar", Neutral::Null),
    only("residual_multiplier", Neutral::Number(1.0)),
    only("rope_base", Neutral::Null),
    only("rope_interleave", Neutral::Flag(false)),
    only("rope_interleaved", Neutral::Flag(false)),
    only("rope_local_base_freq", Neutral::Null),
    only("rope_type", Neutral::Text(&["default"])),
    only("rotary_dim", Neutral::Null),
    only("rotary_emb_base", Neutral::Null),
    only("rotary_pct", Neutral::Null),
    only("scale_emb", Neutral::Number(1.0)),
    only("transformers_weights", Neutral::Null),
    only("use_qk_norm", Neutral::Flag(true)),
    only("use_sliding_window", Neutral::Flag(false)),
];
