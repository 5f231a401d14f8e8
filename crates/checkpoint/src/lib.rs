//! Reads Hugging Face checkpoints of Qwen3.5 text models: memory-mapped, tensor by tensor, with every tensor accounted
//! for before the first is used ([`Checkpoint`]). One file or shards with an index, nested or text-only config.json,
//! any of the known name prefixes, bf16, f16 or f32.
//!
//! It says what is there and refuses what does not fit; it must not know what becomes of the tensors. Its
//! [`SafetensorsFile`] also serves those who read other people's safetensors files.
//!
//! ```no_run
//! use q35_checkpoint::Checkpoint;
//! let checkpoint = Checkpoint::open("Qwen3.5-0.8B".as_ref())?;
//! let embedding = checkpoint.tensor("embed_tokens.weight").unwrap();
//! println!("{:?} {:?}", embedding.dtype, embedding.shape());
//! println!("{} tensors left out", checkpoint.inventory().dropped_count());
//! # Ok::<(), q35_checkpoint::CheckpointError>(())
//! ```
//!
//! Weights are not looked at when a checkpoint is opened, so that opening costs milliseconds:
//! [`Checkpoint::check_finite`] and [`TensorView::check_finite`] do that, and converters call the latter on every
//! tensor that they read.
#![deny(missing_docs)]
#![deny(unsafe_code)]

mod checkpoint;
mod conversion_signs;
mod error;
mod inventory;
mod map;
mod names;
mod safetensors;
mod shards;
mod sources;

pub use checkpoint::{Checkpoint, TensorView};
pub use error::{CheckpointError, Problem};
pub use inventory::{Dropped, Inventory, Part};
pub use map::map_file;
pub use q35_quant::FloatType;
pub use safetensors::{SafetensorsError, SafetensorsFile, StoredTensor, StoredType};
pub use shards::{Shards, find_shards, read_json};
pub use sources::{SourceFile, sha256_hex};
