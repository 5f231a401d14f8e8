//! MLX model directories of Qwen3.5: read ([`MlxDirectory`]) and written from a checkpoint ([`Plan`]).
//!
//! The reader accepts the directories of q35 and of mlx-lm (per-tensor settings under `quantization`) and those of
//! speech-swift (flat config.json, bare tensor names, a label such as `int4`). Files are memory-mapped; every shape is
//! checked against config.json. The crate must not know how a model is run.
//!
//! ```no_run
//! use q35_format_mlx::{MlxDirectory, MlxTensor};
//! let directory = MlxDirectory::open("Qwen3.5-0.8B-4bit".as_ref())?;
//! if let Some(MlxTensor::Packed(embedding)) = directory.tensor("embed_tokens.weight") {
//!     println!("{} bits, groups of {}", embedding.spec.bits(), embedding.spec.group_size());
//! }
//! # Ok::<(), q35_format_mlx::MlxError>(())
//! ```
//!
//! The writer streams weights, quantized by a [`Recipe`], and config.json into an existing directory. With
//! [`RoundToNearest`] every tensor equals mlx-lm's, bit for bit. Tokenizer files, manifest and model card are written by
//! q35-convert.
//!
//! The reader takes the tensor of a zero-centred norm as `1 + w`, even if the directory's writer forgot to add the one.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

#[cfg(target_endian = "big")]
compile_error!("packed words are mapped as little-endian integers");

mod config_json;
mod directory;
mod error;
mod layout;
mod manifest;
mod names;
mod options;
mod plan;
mod producer;
mod recipe;
mod resolver;
mod settings;
mod shard_writer;
mod step;
mod weights;
mod write;

pub use directory::{FloatTensor, MlxDirectory, MlxTensor, PackedTensor};
pub use error::{MlxError, TensorProblem, WriteError};
pub use options::{Form, WriteOptions};
pub use plan::{Plan, Summary};
pub use recipe::{Recipe, RoundToNearest, Treatment};
pub use write::{Written, write};
