//! Reads Hugging Face checkpoints of Qwen3.5 text models: memory-mapped, tensor by tensor, with every tensor accounted
//! for before the first is used ([`Checkpoint`]). One file or shards with an index, nested or text-only config.json,
//! any of the known name prefixes or one unambiguous unknown one, bf16, f16, f32 or f64. Everything is read as transformers
//! reads it, or refused; see `docs/checkpoints.md`.
//!
//! It refuses tensors that do not fit the configuration; it must not know how the tensors are converted. Readers of
//! other safetensors files use its [`SafetensorsFile`].
//!
//! ```no_run
//! use q35_checkpoint::Checkpoint;
//! let checkpoint = Checkpoint::open("Qwen3.5-0.8B".as_ref())?;
//! let embedding = checkpoint.tensor("embed_tokens.weight").unwrap();
//! println!("{:?} {:?}", embedding.dtype, embedding.shape());
//! println!("{} tensors dropped", checkpoint.inventory().dropped_count());
//! # Ok::<(), q35_checkpoint::CheckpointError>(())
//! ```
//!
//! Opening a checkpoint does not read its weights and therefore takes milliseconds. [`Checkpoint::check_finite`] and
//! [`TensorView::check_finite`] read them; converters call the latter on every tensor that they convert.
#![deny(missing_docs)]
#![deny(unsafe_code)]

mod already_converted;
mod auxiliary_files;
mod checkpoint;
mod error;
mod foreign;
mod head;
mod inventory;
mod map;
mod note;
mod safetensors;
mod shards;
mod sources;

pub use auxiliary_files::copy_auxiliary_files;
pub use checkpoint::{Checkpoint, TensorView};
pub use error::{CheckpointError, Problem};
pub use inventory::{Dropped, Inventory, Part};
pub use map::map_file;
pub use note::CheckpointNote;
pub use q35_quant::FloatType;
pub use safetensors::{SafetensorsError, SafetensorsFile, StoredTensor, StoredType};
pub use shards::{Shards, find_shards, read_json};
pub use sources::{SourceFile, sha256_hex};
