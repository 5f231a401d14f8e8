//! Configuration of a text model, read from `config.json`.

mod error;
mod keys;
mod read;

use serde_json::Value;

pub use error::ConfigError;
pub use read::{ConfigNote, ConfigReading};

/// The kind of a decoder layer's mixer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerKind {
    /// Gated DeltaNet: a causal convolution and a recurrent state, `linear_attn.*`.
    LinearAttention,
    /// Gated softmax attention over a key/value cache, `self_attn.*`.
    FullAttention,
}

/// Every size of the text model. Field names are those of `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct TextConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of decoder layers, the length of `layer_types`.
    pub num_hidden_layers: usize,
    /// The mixer of each layer, first to last.
    pub layer_types: Vec<LayerKind>,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Query heads of full attention.
    pub num_attention_heads: usize,
    /// Key/value heads of full attention; divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Width of a full-attention head.
    pub head_dim: usize,
    /// Key (and query) heads of linear attention.
    pub linear_num_key_heads: usize,
    /// Value heads of linear attention; a multiple of `linear_num_key_heads`. Value head `v` is served by
    /// key head `v / (linear_num_value_heads / linear_num_key_heads)`.
    pub linear_num_value_heads: usize,
    /// Width of a linear-attention key head.
    pub linear_key_head_dim: usize,
    /// Width of a linear-attention value head.
    pub linear_value_head_dim: usize,
    /// Taps of the causal convolution.
    pub linear_conv_kernel_dim: usize,
    /// Epsilon of every RMSNorm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Fraction of `head_dim` that RoPE rotates.
    pub partial_rotary_factor: f64,
    /// True if the embedding is also the language-model head.
    pub tie_word_embeddings: bool,
    /// Longest context that the model was trained for, in tokens.
    pub max_position_embeddings: usize,
}

impl TextConfig {
    /// Reads the configuration of the text model from a whole `config.json`; see [`ConfigReading::from_json`].
    ///
    /// # Errors
    /// As [`ConfigReading::from_json`].
    pub fn from_json(root: &Value) -> Result<Self, ConfigError> {
        ConfigReading::from_json(root).map(|reading| reading.config)
    }

    /// Number of leading components of a head that RoPE rotates: even, at most `head_dim`.
    pub fn rotary_dim(&self) -> usize {
        (self.head_dim as f64 * self.partial_rotary_factor) as usize
    }

    /// Width of all linear-attention keys, `K` of the reference: key heads x key width.
    pub fn linear_key_dim(&self) -> usize {
        self.linear_num_key_heads * self.linear_key_head_dim
    }

    /// Width of all linear-attention values, `V`: value heads x value width.
    pub fn linear_value_dim(&self) -> usize {
        self.linear_num_value_heads * self.linear_value_head_dim
    }

    /// Channels of the causal convolution: queries, keys and values, `2 K + V`.
    pub fn linear_conv_dim(&self) -> usize {
        2 * self.linear_key_dim() + self.linear_value_dim()
    }

    /// Width of all attention queries (or gates): query heads x head width.
    pub fn attention_query_dim(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Width of all attention keys (or values): key/value heads x head width.
    pub fn attention_key_value_dim(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// Indices of the layers of one kind, ascending.
    pub fn layers_of(&self, kind: LayerKind) -> impl Iterator<Item = usize> + '_ {
        self.layer_types.iter().enumerate().filter(move |(_, k)| **k == kind).map(|(i, _)| i)
    }

    /// The text model's fields as JSON, flat and under their `config.json` names (`rope_parameters` nested).
    pub fn to_json(&self) -> Value {
        let layer_types: Vec<&str> = self
            .layer_types
            .iter()
            .map(|kind| match kind {
                LayerKind::LinearAttention => "linear_attention",
                LayerKind::FullAttention => "full_attention",
            })
            .collect();
        serde_json::json!({
            "model_type": "qwen3_5_text",
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers,
            "layer_types": layer_types,
            "vocab_size": self.vocab_size,
            "intermediate_size": self.intermediate_size,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "linear_num_key_heads": self.linear_num_key_heads,
            "linear_num_value_heads": self.linear_num_value_heads,
            "linear_key_head_dim": self.linear_key_head_dim,
            "linear_value_head_dim": self.linear_value_head_dim,
            "linear_conv_kernel_dim": self.linear_conv_kernel_dim,
            "rms_norm_eps": self.rms_norm_eps,
            "tie_word_embeddings": self.tie_word_embeddings,
            "max_position_embeddings": self.max_position_embeddings,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": self.rope_theta,
                "partial_rotary_factor": self.partial_rotary_factor,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn flat() -> Value {
        json!({
            "model_type": "qwen3_5_text", "hidden_size": 64, "num_hidden_layers": 4, "vocab_size": 100,
            "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
            "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16,
            "linear_value_head_dim": 8, "linear_conv_kernel_dim": 4, "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_theta": 5000.0, "partial_rotary_factor": 0.5, "rope_type": "default"},
        })
    }

    #[test]
    fn nested_and_flat_forms_read_the_same() {
        let from_flat = TextConfig::from_json(&flat()).unwrap();
        let nested = json!({"model_type": "qwen3_5", "text_config": flat(), "tie_word_embeddings": true});
        assert_eq!(from_flat, TextConfig::from_json(&nested).unwrap());
        assert_eq!(from_flat.rotary_dim(), 16);
        assert_eq!(from_flat.linear_conv_dim(), 2 * 32 + 32);
    }

    #[test]
    fn json_round_trips() {
        let config = TextConfig::from_json(&flat()).unwrap();
        assert_eq!(config, TextConfig::from_json(&config.to_json()).unwrap());
    }

    #[test]
    fn layer_types_win_over_the_interval() {
        let mut json = flat();
        json["layer_types"] =
            json!(["full_attention", "linear_attention", "linear_attention", "full_attention"]);
        json["full_attention_interval"] = json!(2);
        let config = TextConfig::from_json(&json).unwrap();
        assert_eq!(config.layers_of(LayerKind::FullAttention).collect::<Vec<_>>(), [0, 3]);
    }

    #[test]
    fn misfits_are_named() {
        let cases: [(&str, Value, &str); 10] = [
            ("model_type", json!("llama"), "unsupported architecture `llama`"),
            ("hidden_size", json!(0), "`hidden_size`"),
            ("hidden_size", json!(1u64 << 40), "`hidden_size`"),
            ("num_hidden_layers", json!(1_000_000), "from 1 to 4096"),
            ("vocab_size", Value::Null, "no `vocab_size`"),
            ("layer_types", json!(["linear_attention"]), "4 entries"),
            ("layer_types", json!(["a", "b", "c", "d"]), "linear_attention or full_attention"),
            ("linear_num_value_heads", json!(3), "multiple of linear_num_key_heads"),
            ("num_experts", json!(8), "dense"),
            ("hidden_act", json!("gelu"), "silu"),
        ];
        for (field, value, message) in cases {
            let mut json = flat();
            json[field] = value;
            let error = TextConfig::from_json(&json).unwrap_err().to_string();
            assert!(error.contains(message), "{field}: {error}");
        }
    }

    #[test]
    fn the_documentation_lists_every_key() {
        use super::keys::{
            FOREIGN, ONE_VALUE, READ, READ_FOR_ROPE, ROPE_READ, ROPE_WITHOUT_EFFECT, SAVED_DEFAULTS,
            WITHOUT_EFFECT,
        };
        let text = include_str!("../../../../docs/checkpoints.md");
        let lists: [&[&str]; 6] =
            [&READ, &READ_FOR_ROPE, &ROPE_READ, &ROPE_WITHOUT_EFFECT, &SAVED_DEFAULTS, &WITHOUT_EFFECT];
        let single = ONE_VALUE.iter().chain(&FOREIGN).map(|only| only.key);
        let keys = lists.into_iter().flatten().copied().chain(single);
        let absent: Vec<&str> = keys.filter(|key| !text.contains(&format!("`{key}`"))).collect();
        assert!(absent.is_empty(), "docs/checkpoints.md does not mention {absent:?}");
    }

    #[test]
    fn keys_without_effect_are_noted() {
        let notes = |change: &dyn Fn(&mut Value)| {
            let mut json = json!({"model_type": "qwen3_5", "text_config": flat()});
            change(&mut json);
            let reading = ConfigReading::from_json(&json).unwrap();
            reading.notes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
        };
        assert_eq!(notes(&|_| {}), "");
        type Change<'a> = &'a dyn Fn(&mut Value);
        let cases: [(Change<'_>, &str); 5] = [
            (
                &|json| json["text_config"]["rope_theta"] = 1e4.into(),
                "`rope_theta` (10000.0) has no effect beside",
            ),
            (
                &|json| json["rms_norm_eps"] = 0.1.into(),
                "`rms_norm_eps` (0.1) has no effect beside `text_config`",
            ),
            (&|json| json["text_config"]["magic"] = 1.into(), "unknown meaning, ignored: magic"),
            (&|json| json["text_config"]["rope_parameters"]["factor"] = 4.into(), "rope_parameters.factor"),
            (
                &|json| json["text_config"]["rope_scaling"] = json!({"rope_type": "default"}),
                "has no `rope_theta`: transformers' default, 10000, is used",
            ),
        ];
        for (change, expected) in cases {
            let found = notes(change);
            assert!(found.contains(expected), "{expected}: {found}");
        }
    }
}
