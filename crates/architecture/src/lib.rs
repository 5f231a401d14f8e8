//! The architecture of a dense Qwen3.5 text model: its configuration ([`TextConfig`]), its tensors with their roles
//! ([`tensor_table`], [`Role`]) and their names in every known layout ([`part_of`], [`mlx_lm_name`]).
//!
//! Checkpoints are checked against the tensor table, and converters decide each tensor's treatment by its [`Role`].
//!
//! It must not know arithmetic, files, or how a loaded model is driven.
//!
//! ```
//! let json = serde_json::json!({
//!     "hidden_size": 64, "num_hidden_layers": 4, "vocab_size": 100, "intermediate_size": 96,
//!     "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
//!     "linear_num_key_heads": 2, "linear_num_value_heads": 4,
//!     "linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_conv_kernel_dim": 4,
//!     "rms_norm_eps": 1e-6, "tie_word_embeddings": true, "model_type": "qwen3_5_text",
//! });
//! let config = q35_architecture::TextConfig::from_json(&json)?;
//! assert_eq!(config.layer_types[3], q35_architecture::LayerKind::FullAttention);
//! let table = q35_architecture::tensor_table(&config);
//! assert_eq!(table[0].name, "embed_tokens.weight");
//! # Ok::<(), q35_architecture::ConfigError>(())
//! ```
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod config;
mod names;
mod tensors;

pub use config::{ConfigError, ConfigNote, ConfigReading, LayerKind, TextConfig};
pub use names::{NameScheme, NamedPart, mlx_lm_name, part_of};
pub use tensors::{Role, TensorSpec, tensor_table};
