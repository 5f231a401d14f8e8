//! Configuration of a text model, read from `config.json`.

use serde_json::Value;

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

/// A `config.json` that does not describe a supported model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A field is absent.
    #[error("config.json has no `{field}`")]
    Missing {
        /// The field's name.
        field: &'static str,
    },
    /// A field has a value that cannot be used.
    #[error("config.json: `{field}`\n  expected: {expected}\n  found:    {found}")]
    Invalid {
        /// The field's name.
        field: &'static str,
        /// Accepted values.
        expected: String,
        /// Value found, as JSON.
        found: String,
    },
    /// Another architecture.
    #[error(
        "unsupported architecture `{found}`\n  expected: model_type `qwen3_5` (nested text_config) or `qwen3_5_text`\n\
         hint: only dense Qwen3.5 text models can be converted"
    )]
    Architecture {
        /// `model_type` as found.
        found: String,
    },
}

impl TextConfig {
    /// Reads the text model's sizes from a whole `config.json`: nested under `text_config`, or flat.
    ///
    /// Accepts the forms of Hugging Face (nested and text-only), of mlx-lm and of speech-swift. `rope_theta` and
    /// `partial_rotary_factor` may be under `rope_parameters`, `rope_scaling` or at the top.
    ///
    /// # Errors
    /// Another architecture, an absent field, sizes of zero, or sizes that do not fit each other.
    pub fn from_json(root: &Value) -> Result<Self, ConfigError> {
        let text = root.get("text_config").unwrap_or(root);
        let kind =
            text.get("model_type").or_else(|| root.get("model_type")).and_then(Value::as_str).unwrap_or("");
        if kind != "qwen3_5" && kind != "qwen3_5_text" {
            return Err(ConfigError::Architecture { found: kind.to_owned() });
        }
        let fields = Fields { text, root };
        fields.refuse_unsupported_settings()?;
        let num_hidden_layers = fields.integer("num_hidden_layers", MAX_LAYERS)?;
        let head_dim = fields.size("head_dim")?;
        let config = Self {
            hidden_size: fields.size("hidden_size")?,
            num_hidden_layers,
            layer_types: fields.layer_types(num_hidden_layers)?,
            vocab_size: fields.size("vocab_size")?,
            intermediate_size: fields.size("intermediate_size")?,
            num_attention_heads: fields.size("num_attention_heads")?,
            num_key_value_heads: fields.size("num_key_value_heads")?,
            head_dim,
            linear_num_key_heads: fields.size("linear_num_key_heads")?,
            linear_num_value_heads: fields.size_or("linear_num_value_heads", "linear_num_key_heads")?,
            linear_key_head_dim: fields.size("linear_key_head_dim")?,
            linear_value_head_dim: fields.size_or("linear_value_head_dim", "linear_key_head_dim")?,
            linear_conv_kernel_dim: fields.size("linear_conv_kernel_dim")?,
            rms_norm_eps: fields.positive("rms_norm_eps", 1e-6)?,
            rope_theta: fields.positive("rope_theta", 10_000_000.0)?,
            partial_rotary_factor: fields.positive("partial_rotary_factor", 0.25)?,
            tie_word_embeddings: fields.tied(),
            max_position_embeddings: fields
                .size("max_position_embeddings")
                .or_else(|_| fields.size("max_seq_len"))
                .unwrap_or(262_144),
        };
        config.check()?;
        Ok(config)
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

    fn check(&self) -> Result<(), ConfigError> {
        let divides = |field, large: usize, small: usize, other: &str| {
            if large.is_multiple_of(small) {
                Ok(())
            } else {
                Err(ConfigError::Invalid {
                    field,
                    expected: format!("a multiple of {other} ({small})"),
                    found: large.to_string(),
                })
            }
        };
        divides(
            "num_attention_heads",
            self.num_attention_heads,
            self.num_key_value_heads,
            "num_key_value_heads",
        )?;
        divides(
            "linear_num_value_heads",
            self.linear_num_value_heads,
            self.linear_num_key_heads,
            "linear_num_key_heads",
        )?;
        let rotary = self.rotary_dim();
        if rotary == 0 || !rotary.is_multiple_of(2) || rotary > self.head_dim {
            return Err(ConfigError::Invalid {
                field: "partial_rotary_factor",
                expected: format!("an even, non-zero part of head_dim {}", self.head_dim),
                found: format!("{} (rotates {rotary})", self.partial_rotary_factor),
            });
        }
        Ok(())
    }
}

/// Fields of the text section, or of the top level where it has none.
struct Fields<'a> {
    text: &'a Value,
    root: &'a Value,
}

/// Limit of every size, far above any real model's; keeps products of sizes from overflow.
const MAX_SIZE: u64 = 1 << 24;

/// Limit of the number of layers: the tensor table is built before any weight file is opened.
const MAX_LAYERS: u64 = 4096;

impl<'a> Fields<'a> {
    fn find(&self, field: &str) -> Option<&'a Value> {
        let places = [self.text, self.root];
        places.into_iter().find_map(|place| {
            let nested = ["rope_parameters", "rope_scaling"].into_iter().filter_map(|outer| place.get(outer));
            std::iter::once(place).chain(nested).find_map(|v| v.get(field)).filter(|v| !v.is_null())
        })
    }

    fn size(&self, field: &'static str) -> Result<usize, ConfigError> {
        self.integer(field, MAX_SIZE)
    }

    fn integer(&self, field: &'static str, largest: u64) -> Result<usize, ConfigError> {
        let value = self.find(field).ok_or(ConfigError::Missing { field })?;
        match value.as_u64() {
            Some(size) if (1..=largest).contains(&size) => Ok(size as usize),
            _ => Err(ConfigError::Invalid {
                field,
                expected: format!("a whole number from 1 to {largest}"),
                found: value.to_string(),
            }),
        }
    }

    fn size_or(&self, field: &'static str, fallback: &'static str) -> Result<usize, ConfigError> {
        if self.find(field).is_some() { self.size(field) } else { self.size(fallback) }
    }

    fn positive(&self, field: &'static str, default: f64) -> Result<f64, ConfigError> {
        let Some(value) = self.find(field) else { return Ok(default) };
        match value.as_f64() {
            Some(number) if number.is_finite() && number > 0.0 => Ok(number),
            _ => Err(ConfigError::Invalid {
                field,
                expected: "a positive number".into(),
                found: value.to_string(),
            }),
        }
    }

    /// transformers reads `tie_word_embeddings` of a multimodal checkpoint at the top, of a text-only one in place.
    fn tied(&self) -> bool {
        let at = |v: &Value| v.get("tie_word_embeddings").and_then(Value::as_bool);
        at(self.root).or_else(|| at(self.text)).unwrap_or(true)
    }

    fn layer_types(&self, count: usize) -> Result<Vec<LayerKind>, ConfigError> {
        let Some(value) = self.find("layer_types") else {
            let interval = self.size("full_attention_interval").or_else(|error| match error {
                ConfigError::Missing { .. } => Ok(4),
                other => Err(other),
            })?;
            let kind = |i: usize| match (i + 1) % interval {
                0 => LayerKind::FullAttention,
                _ => LayerKind::LinearAttention,
            };
            return Ok((0..count).map(kind).collect());
        };
        let invalid = |found: String| ConfigError::Invalid {
            field: "layer_types",
            expected: format!("{count} entries (num_hidden_layers), each linear_attention or full_attention"),
            found,
        };
        let entries = value.as_array().ok_or_else(|| invalid(value.to_string()))?;
        if entries.len() != count {
            return Err(invalid(format!("{} entries", entries.len())));
        }
        entries
            .iter()
            .map(|entry| match entry.as_str() {
                Some("linear_attention") => Ok(LayerKind::LinearAttention),
                Some("full_attention") => Ok(LayerKind::FullAttention),
                _ => Err(invalid(entry.to_string())),
            })
            .collect()
    }

    /// Refuses settings that would change the arithmetic.
    fn refuse_unsupported_settings(&self) -> Result<(), ConfigError> {
        let must_be = |field: &'static str, wanted: Value| match self.find(field) {
            Some(found) if *found != wanted => {
                Err(ConfigError::Invalid { field, expected: wanted.to_string(), found: found.to_string() })
            }
            _ => Ok(()),
        };
        must_be("hidden_act", "silu".into())?;
        must_be("attention_bias", false.into())?;
        must_be("attn_output_gate", true.into())?;
        must_be("rope_type", "default".into())?;
        if self.find("num_experts").and_then(Value::as_u64).unwrap_or(0) > 0 {
            return Err(ConfigError::Invalid {
                field: "num_experts",
                expected: "a dense model".into(),
                found: "a mixture of experts".into(),
            });
        }
        Ok(())
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
}
