//! Random tiny checkpoints in the layout of the real one, for tests without Python or downloads.
//!
//! [`TinyCheckpoint`] is a Qwen3.5 model of a few hundred thousand parameters: nested or text-only `config.json`, one
//! file or shards with an index, tied or untied head, more value heads than key heads, vision tower and MTP block
//! beside the text model, any float type. It has a byte tokenizer and a chat template, so that chat tests can use it.
//! The same seed yields the same bytes on every machine: no platform `exp` or `ln` is involved.
//!
//! [`HubServer`] is a hub on the loopback interface that serves such a checkpoint and simulates faults.
//!
//! Only for `[dev-dependencies]`: it panics where a test would unwrap. It must not know the crates that are tested with
//! it.
//!
//! ```
//! use q35_testkit::TinyCheckpoint;
//! let dir = tempfile::tempdir().unwrap();
//! let checkpoint = TinyCheckpoint::new().untied().shards(2);
//! checkpoint.write_to(dir.path());
//! assert!(dir.path().join("model.safetensors.index.json").exists());
//!
//! use q35_inference::Weights;
//! let weights = checkpoint.weights(); // the same weights, without files
//! assert!(!weights.config().tie_word_embeddings);
//! ```
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod checkpoint;
mod config;
mod hub;
mod memory;
mod random;
mod safetensors_edit;
mod tokenizer;

pub use checkpoint::{Precision, TinyCheckpoint};
pub use config::{tiny, tiny_more_value_heads};

pub use hub::{Fault, HubRequest, HubServer};
pub use memory::MemoryWeights;
pub use random::Random;
pub use safetensors_edit::{EditableTensor, rewrite_tensors};
pub use tokenizer::{END_OF_TEXT, MESSAGE_END, MESSAGE_START, write_tokenizer};
