//! Reading config.json as transformers reads it.
//!
//! The rules are those of transformers 5.23, `Qwen3_5TextConfig` and `RotaryEmbeddingConfigMixin`. A configuration that
//! transformers would compute differently is refused. `docs/checkpoints.md` describes the rules for every key.

use std::fmt;

use serde_json::{Map, Value};

use super::keys::{
    FOREIGN, Neutral, ONE_VALUE, OnlyValue, READ, READ_FOR_ROPE, ROPE_READ, ROPE_WITHOUT_EFFECT,
    SAVED_DEFAULTS, WITHOUT_EFFECT,
};
use super::{ConfigError, LayerKind, TextConfig};

/// Limit of every size, far above any real model's; keeps products of sizes from overflow.
const MAX_SIZE: u64 = 1 << 24;

/// Limit of the number of layers: the tensor table is built before any weight file is opened.
const MAX_LAYERS: u64 = 4096;

/// Defaults of transformers' `Qwen3_5TextConfig`.
mod default {
    pub(super) const HEAD_DIM: usize = 256;
    pub(super) const LINEAR_NUM_KEY_HEADS: usize = 16;
    pub(super) const LINEAR_NUM_VALUE_HEADS: usize = 32;
    pub(super) const LINEAR_KEY_HEAD_DIM: usize = 128;
    pub(super) const LINEAR_VALUE_HEAD_DIM: usize = 128;
    pub(super) const LINEAR_CONV_KERNEL_DIM: usize = 4;
    pub(super) const RMS_NORM_EPS: f64 = 1e-6;
    pub(super) const ROPE_THETA: f64 = 10_000.0;
    pub(super) const PARTIAL_ROTARY_FACTOR: f64 = 0.25;
    pub(super) const FULL_ATTENTION_INTERVAL: usize = 4;
    pub(super) const MAX_POSITION_EMBEDDINGS: usize = 32_768;
}

/// A configuration as read from config.json, with remarks about keys that were not used.
#[derive(Clone, Debug, PartialEq)]
pub struct ConfigReading {
    /// The configuration. `tie_word_embeddings` is true where config.json has no such flag: the weights decide.
    pub config: TextConfig,
    /// `tie_word_embeddings` of config.json, if it has the flag.
    pub tie_word_embeddings: Option<bool>,
    /// Keys that were not used, and defaults that matter.
    pub notes: Vec<ConfigNote>,
}

/// A remark about config.json: a key that has no effect although it looks as if it had one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfigNote {
    /// A value that another key overrides.
    Overridden {
        /// The key without effect.
        key: String,
        /// Its value, as JSON.
        value: String,
        /// The key that is used instead, and its value.
        by: String,
    },
    /// A default that changes arithmetic.
    Default {
        /// The absent key.
        key: &'static str,
        /// The value used.
        value: String,
    },
    /// Keys of unknown meaning.
    Unknown {
        /// The keys, in the order of the file.
        keys: Vec<String>,
    },
}

impl fmt::Display for ConfigNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Overridden { key, value, by } => {
                write!(f, "config.json: `{key}` ({value}) has no effect beside {by}")
            }
            Self::Default { key, value } => {
                write!(f, "config.json has no `{key}`: transformers' default, {value}, is used")
            }
            Self::Unknown { keys } => {
                write!(f, "config.json: keys of unknown meaning, ignored: {}", keys.join(", "))
            }
        }
    }
}

impl ConfigReading {
    /// Reads the configuration of the text model from a whole `config.json`.
    ///
    /// Accepted forms: Hugging Face's multimodal form (`model_type` `qwen3_5`, the text model under `text_config`), its
    /// text-only form (`qwen3_5_text`, flat), and those of mlx-lm and speech-swift, which are nested and flat likewise.
    /// The text model's keys are read from the text section alone; `tie_word_embeddings` from the top level first.
    ///
    /// # Errors
    /// Another architecture, an absent or unusable field, sizes that do not fit each other, or a key that selects
    /// arithmetic which is not implemented.
    pub fn from_json(root: &Value) -> Result<Self, ConfigError> {
        let text = text_section(root)?;
        let mut reader = Reader { text, notes: Vec::new() };
        reader.refuse_unsupported()?;
        if !std::ptr::eq(root, text) {
            // transformers does not read these at the top level, but they say how the model is to be run.
            for name in ["rope_scaling", "rope_parameters"] {
                root.get(name)
                    .and_then(Value::as_object)
                    .map_or(Ok(()), |object| refuse_rope_type(name, object))?;
            }
        }
        let num_hidden_layers = reader.integer("num_hidden_layers", MAX_LAYERS)?;
        let head_dim = reader.size_or("head_dim", default::HEAD_DIM)?;
        let rope = reader.rope()?;
        let tie_word_embeddings = tied_flag(root)?.or(tied_flag(text)?);
        let config = TextConfig {
            hidden_size: reader.size("hidden_size")?,
            num_hidden_layers,
            layer_types: reader.layer_types(num_hidden_layers)?,
            vocab_size: reader.size("vocab_size")?,
            intermediate_size: reader.size("intermediate_size")?,
            num_attention_heads: reader.size("num_attention_heads")?,
            num_key_value_heads: reader.size("num_key_value_heads")?,
            head_dim,
            linear_num_key_heads: reader.size_or("linear_num_key_heads", default::LINEAR_NUM_KEY_HEADS)?,
            linear_num_value_heads: reader
                .size_or("linear_num_value_heads", default::LINEAR_NUM_VALUE_HEADS)?,
            linear_key_head_dim: reader.size_or("linear_key_head_dim", default::LINEAR_KEY_HEAD_DIM)?,
            linear_value_head_dim: reader.size_or("linear_value_head_dim", default::LINEAR_VALUE_HEAD_DIM)?,
            linear_conv_kernel_dim: reader
                .size_or("linear_conv_kernel_dim", default::LINEAR_CONV_KERNEL_DIM)?,
            rms_norm_eps: match reader.text.get("rms_norm_eps") {
                None => default::RMS_NORM_EPS,
                Some(value) => positive("rms_norm_eps", value)?,
            },
            rope_theta: rope.theta,
            partial_rotary_factor: rope.partial_rotary_factor,
            tie_word_embeddings: tie_word_embeddings.unwrap_or(true),
            max_position_embeddings: reader.max_position_embeddings()?,
        };
        check(&config)?;
        reader.note_unknown_keys(root);
        Ok(Self { config, tie_word_embeddings, notes: reader.notes })
    }
}

/// The object that holds the text model's keys.
fn text_section(root: &Value) -> Result<&Value, ConfigError> {
    let model_type = |section: &Value| section.get("model_type").and_then(Value::as_str).map(str::to_owned);
    let nested = root.get("text_config").filter(|section| !section.is_null());
    if let Some(section) = nested.filter(|section| !section.is_object()) {
        return Err(ConfigError::Invalid {
            field: "text_config",
            expected: "an object".to_owned(),
            found: section.to_string(),
        });
    }
    if nested.is_some() && model_type(root).as_deref() == Some("qwen3_5_text") {
        return Err(ConfigError::Invalid {
            field: "text_config",
            expected: "no such section where model_type is qwen3_5_text, the flat form".to_owned(),
            found: "both forms".to_owned(),
        });
    }
    let text = nested.unwrap_or(root);
    // speech-swift's flat form may have either type.
    for (section, is_root) in [(root, true), (text, false)] {
        match (model_type(section).as_deref(), is_root && nested.is_some()) {
            (Some("qwen3_5" | "qwen3_5_text"), _) => {}
            // One of the two is enough.
            (None, true) if model_type(text).is_some() => {}
            (None, false) if nested.is_some() && model_type(root).is_some() => {}
            (found, _) => {
                return Err(ConfigError::Architecture { found: found.unwrap_or_default().to_owned() });
            }
        }
    }
    Ok(text)
}

fn tied_flag(section: &Value) -> Result<Option<bool>, ConfigError> {
    match section.get("tie_word_embeddings") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(tied)) => Ok(Some(*tied)),
        Some(other) => Err(ConfigError::Invalid {
            field: "tie_word_embeddings",
            expected: "true or false".to_owned(),
            found: other.to_string(),
        }),
    }
}

fn positive(field: &'static str, value: &Value) -> Result<f64, ConfigError> {
    match value.as_f64() {
        Some(number) if number.is_finite() && number > 0.0 => Ok(number),
        _ => Err(ConfigError::Invalid {
            field,
            expected: "a positive number".into(),
            found: value.to_string(),
        }),
    }
}

/// Parameters of the rotary position embedding.
struct Rope {
    theta: f64,
    partial_rotary_factor: f64,
}

/// The text section, and the remarks about it.
struct Reader<'a> {
    text: &'a Value,
    notes: Vec<ConfigNote>,
}

impl<'a> Reader<'a> {
    fn size(&self, field: &'static str) -> Result<usize, ConfigError> {
        self.integer(field, MAX_SIZE)
    }

    /// A size with a default. An explicit null is an error, as it is for transformers.
    fn size_or(&self, field: &'static str, default: usize) -> Result<usize, ConfigError> {
        if self.text.get(field).is_some() { self.size(field) } else { Ok(default) }
    }

    fn integer(&self, field: &'static str, largest: u64) -> Result<usize, ConfigError> {
        let value = self.text.get(field).filter(|value| !value.is_null());
        let value = value.ok_or(ConfigError::Missing { field })?;
        match value.as_u64() {
            Some(size) if (1..=largest).contains(&size) => Ok(size as usize),
            _ => Err(ConfigError::Invalid {
                field,
                expected: format!("a whole number from 1 to {largest}"),
                found: value.to_string(),
            }),
        }
    }

    /// speech-swift calls it `max_seq_len`.
    fn max_position_embeddings(&self) -> Result<usize, ConfigError> {
        let own = self.size_or("max_position_embeddings", 0)?;
        let other = self.size_or("max_seq_len", default::MAX_POSITION_EMBEDDINGS)?;
        Ok(if own == 0 { other } else { own })
    }

    fn layer_types(&mut self, count: usize) -> Result<Vec<LayerKind>, ConfigError> {
        let interval = self.size_or("full_attention_interval", default::FULL_ATTENTION_INTERVAL);
        let Some(value) = self.text.get("layer_types").filter(|value| !value.is_null()) else {
            let interval = interval?;
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
                // The second names are older ones that transformers still reads.
                Some("linear_attention" | "mamba") => Ok(LayerKind::LinearAttention),
                Some("full_attention" | "attention") => Ok(LayerKind::FullAttention),
                _ => Err(invalid(entry.to_string())),
            })
            .collect()
    }

    /// `rope_scaling`, where it is not empty, replaces `rope_parameters` completely. Values that the object does not have
    /// are taken from beside it, then from the defaults.
    fn rope(&mut self) -> Result<Rope, ConfigError> {
        let scaling = self.rope_object("rope_scaling")?.filter(|object| !object.is_empty());
        let parameters = self.rope_object("rope_parameters")?;
        let (name, object) = match (scaling, parameters) {
            (Some(scaling), _) => ("rope_scaling", Some(scaling)),
            (None, parameters) => ("rope_parameters", parameters),
        };
        if let Some(object) = object {
            refuse_rope_type(name, object)?;
        }
        let theta = match self.rope_value(name, object, "rope_theta") {
            Some(value) => positive("rope_theta", value)?,
            None => {
                self.notes
                    .push(ConfigNote::Default { key: "rope_theta", value: default::ROPE_THETA.to_string() });
                default::ROPE_THETA
            }
        };
        let partial_rotary_factor = match self.rope_value(name, object, "partial_rotary_factor") {
            // transformers rotates whole heads if the key beside the object is null.
            Some(Value::Null) if object.is_none_or(|o| !o.contains_key("partial_rotary_factor")) => 1.0,
            Some(value) => positive("partial_rotary_factor", value)?,
            None => default::PARTIAL_ROTARY_FACTOR,
        };
        if let (Some(_), Some(parameters)) = (scaling, parameters) {
            self.note_replaced_rope(parameters, theta, partial_rotary_factor);
        }
        if let Some(object) = object {
            let unknown = object
                .keys()
                .filter(|key| ![&ROPE_READ[..], &ROPE_WITHOUT_EFFECT[..]].concat().contains(&key.as_str()))
                .map(|key| format!("{name}.{key}"))
                .collect::<Vec<_>>();
            if !unknown.is_empty() {
                self.notes.push(ConfigNote::Unknown { keys: unknown });
            }
        }
        Ok(Rope { theta, partial_rotary_factor })
    }

    fn rope_object(&self, key: &'static str) -> Result<Option<&'a Map<String, Value>>, ConfigError> {
        match self.text.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(object)) => Ok(Some(object)),
            Some(other) => Err(ConfigError::Invalid {
                field: key,
                expected: "an object".to_owned(),
                found: other.to_string(),
            }),
        }
    }

    /// The value of `key` in the RoPE object called `name`, or beside it.
    fn rope_value(
        &mut self,
        name: &str,
        object: Option<&'a Map<String, Value>>,
        key: &'static str,
    ) -> Option<&'a Value> {
        let beside = self.text.get(key);
        let Some(inside) = object.and_then(|object| object.get(key)) else { return beside };
        if let Some(beside) = beside.filter(|beside| beside.as_f64() != inside.as_f64()) {
            self.notes.push(ConfigNote::Overridden {
                key: key.to_owned(),
                value: beside.to_string(),
                by: format!("`{name}.{key}` ({inside})"),
            });
        }
        Some(inside)
    }

    /// Notes the values of `rope_parameters` that `rope_scaling` replaces.
    fn note_replaced_rope(&mut self, parameters: &Map<String, Value>, theta: f64, factor: f64) {
        for (key, used) in [("rope_theta", theta), ("partial_rotary_factor", factor)] {
            if let Some(value) = parameters.get(key).filter(|value| value.as_f64() != Some(used)) {
                self.notes.push(ConfigNote::Overridden {
                    key: format!("rope_parameters.{key}"),
                    value: value.to_string(),
                    by: format!("`rope_scaling`, which replaces rope_parameters ({used})"),
                });
            }
        }
    }

    /// Refuses keys that select arithmetic which is not implemented.
    fn refuse_unsupported(&self) -> Result<(), ConfigError> {
        for OnlyValue { key, neutral } in &ONE_VALUE {
            if let Some(found) = self.text.get(key).filter(|found| !neutral.accepts(found)) {
                return Err(ConfigError::Invalid {
                    field: key,
                    expected: neutral.describe(),
                    found: found.to_string(),
                });
            }
        }
        for OnlyValue { key, neutral } in &FOREIGN {
            let found = self.text.get(key).filter(|found| !found.is_null() && !neutral.accepts(found));
            let Some(found) = found else { continue };
            return Err(if key.contains("experts") {
                ConfigError::Invalid {
                    field: key,
                    expected: "a dense model".into(),
                    found: format!("a mixture of experts ({found})"),
                }
            } else {
                ConfigError::Unsupported {
                    key: (*key).to_owned(),
                    expected: neutral.describe(),
                    found: found.to_string(),
                    hint: "transformers ignores this key for Qwen3.5; remove it if the model was not trained with it",
                }
            });
        }
        Ok(())
    }

    /// Notes keys of unknown meaning, and keys of the text model outside of its section.
    fn note_unknown_keys(&mut self, root: &Value) {
        let known = |key: &str| {
            READ.contains(&key)
                || READ_FOR_ROPE.contains(&key)
                || WITHOUT_EFFECT.contains(&key)
                || SAVED_DEFAULTS.contains(&key)
                || FOREIGN.iter().any(|only| only.key == key)
        };
        let keys = |section: &Value| -> Vec<String> {
            section.as_object().map(|object| object.keys().cloned().collect()).unwrap_or_default()
        };
        let mut unknown: Vec<String> = keys(self.text).into_iter().filter(|key| !known(key)).collect();
        if !std::ptr::eq(root, self.text) {
            for key in keys(root) {
                let is_text_key = READ_FOR_ROPE.contains(&key.as_str())
                    || READ.contains(&key.as_str())
                    || FOREIGN.iter().any(|only| only.key == key);
                let shared = ["model_type", "text_config", "tie_word_embeddings"].contains(&key.as_str());
                if !known(&key) {
                    unknown.push(key);
                } else if is_text_key
                    && !shared
                    && !root[&key].is_null()
                    && self.text.get(&key) != root.get(&key)
                {
                    self.notes.push(ConfigNote::Overridden {
                        value: root[&key].to_string(),
                        by: "`text_config`, the section of the text model".to_owned(),
                        key,
                    });
                }
            }
        }
        if !unknown.is_empty() {
            self.notes.push(ConfigNote::Unknown { keys: unknown });
        }
    }
}

/// Refuses every kind of RoPE but the default one.
fn refuse_rope_type(name: &str, object: &Map<String, Value>) -> Result<(), ConfigError> {
    let unsupported = |key: String, found: &Value, hint| {
        Err(ConfigError::Unsupported {
            key,
            expected: "\"default\"".to_owned(),
            found: found.to_string(),
            hint,
        })
    };
    const SCALED: &str = "RoPE with context extension is not implemented; without this entry the model has its \
                          original context and other logits";
    let layered =
        object.iter().find(|(key, _)| matches!(key.as_str(), "full_attention" | "linear_attention"));
    if let Some((key, value)) = layered {
        return Err(ConfigError::Unsupported {
            key: format!("{name}.{key}"),
            expected: "one set of parameters for all layers".to_owned(),
            found: value.to_string(),
            hint: "transformers' Qwen3.5 has no parameters by kind of layer either",
        });
    }
    let (key, kind) = match (object.get("rope_type"), object.get("type")) {
        (Some(kind), _) => ("rope_type", kind),
        (None, Some(kind)) => ("type", kind),
        (None, None) => return Ok(()),
    };
    if !Neutral::Text(&["default"]).accepts(kind) {
        return unsupported(format!("{name}.{key}"), kind, SCALED);
    }
    Ok(())
}

/// Checks that sizes fit each other.
fn check(config: &TextConfig) -> Result<(), ConfigError> {
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
        config.num_attention_heads,
        config.num_key_value_heads,
        "num_key_value_heads",
    )?;
    divides(
        "linear_num_value_heads",
        config.linear_num_value_heads,
        config.linear_num_key_heads,
        "linear_num_key_heads",
    )?;
    let rotary = config.rotary_dim();
    if rotary == 0 || !rotary.is_multiple_of(2) || rotary > config.head_dim {
        return Err(ConfigError::Invalid {
            field: "partial_rotary_factor",
            expected: format!("an even, non-zero part of head_dim {}", config.head_dim),
            found: format!("{} (rotates {rotary})", config.partial_rotary_factor),
        });
    }
    Ok(())
}
