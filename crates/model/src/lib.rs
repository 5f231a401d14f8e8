//! What a Qwen3.5 text model is: its configuration ([`TextConfig`]), its tensors ([`tensor_table`]), and how a
//! loaded one is driven, whoever executes it ([`Model`], [`Sequence`]).
//!
//! Everything above agrees through this crate: checkpoints are checked against its table, converters decide each
//! tensor's treatment by its [`Role`], and the runtime, the parity check and the command line drive the float
//! reference, the CPU backend and the Core ML evaluator through the same two traits.
//!
//! It does no arithmetic and reads no file.
//!
//! ```
//! let json = serde_json::json!({
//!     "hidden_size": 64, "num_hidden_layers": 4, "vocab_size": 100, "intermediate_size": 96,
//!     "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
//!     "linear_num_key_heads": 2, "linear_num_value_heads": 4,
//!     "linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_conv_kernel_dim": 4,
//!     "rms_norm_eps": 1e-6, "tie_word_embeddings": true, "model_type": "qwen3_5_text",
//! });
//! let config = q35_model::TextConfig::from_json(&json)?;
//! assert_eq!(config.layer_types[3], q35_model::LayerKind::FullAttention);
//! let table = q35_model::tensor_table(&config);
//! assert_eq!(table[0].name, "embed_tokens.weight");
//! # Ok::<(), q35_model::ConfigError>(())
//! ```
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod config;
mod drive;
mod snapshot;
mod tensors;
mod weights;

pub use config::{ConfigError, LayerKind, TextConfig};
pub use drive::{
    CancelToken, Discard, Model, ModelMemory, Observer, RecurrentState, Rows, RunError, Sequence, Site,
};
pub use snapshot::{Snapshot, SnapshotTensor, StateType};
pub use tensors::{Role, TensorSpec, tensor_table};
pub use weights::{WeightError, Weights};
