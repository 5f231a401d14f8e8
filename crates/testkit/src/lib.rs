//! Random tiny checkpoints in the very layout of the real one, for tests that must not need Python or a download.
//!
//! [`TinyCheckpoint`] is a Qwen3.5 model of a few hundred thousand parameters: nested or text-only `config.json`, one
//! file or shards with an index, tied or untied head, more value heads than key heads, vision tower and MTP block
//! beside the text tower, any float type; with a tokenizer of bytes and a chat template, so that it can be "talked"
//! to. The same seed gives the same bytes on every machine: nothing here calls the platform's `exp` or `ln`.
//!
//! [`HubServer`] is a hub on loopback that serves such a checkpoint, and drops connections, lies and redirects on demand.
//!
//! Only for `[dev-dependencies]`. It panics where a test would unwrap.
//!
//! ```
//! use q35_testkit::TinyCheckpoint;
//! let dir = tempfile::tempdir().unwrap();
//! let checkpoint = TinyCheckpoint::new().untied().shards(2);
//! checkpoint.write_to(dir.path());
//! assert!(dir.path().join("model.safetensors.index.json").exists());
//!
//! use q35_inference::Weights;
//! let weights = checkpoint.weights(); // the same numbers, without files
//! assert!(!weights.config().tie_word_embeddings);
//! ```
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod checkpoint;
mod config;
mod damage;
mod hub;
mod memory;
mod random;
mod tokenizer;

pub use checkpoint::{Precision, TinyCheckpoint};
pub use config::{tiny, tiny_more_value_heads};
pub use damage::{Damage, rewrite_tensors};
pub use hub::{Fault, HubRequest, HubServer};
pub use memory::MemoryWeights;
pub use random::Random;
pub use tokenizer::{END_OF_TEXT, MESSAGE_END, MESSAGE_START, write_tokenizer};
