//! MLX model directories of Qwen3.5: read from any maker ([`MlxDirectory`]), written from a checkpoint.
//!
//! Reading knows three forms: this project's own, which is mlx-lm's with a manifest; mlx-lm's, with its per-tensor
//! table under `quantization`; and the origin system's flat one, with bare names and a label for the bits. Files are
//! memory-mapped, and every shape is checked against the sizes in config.json and the bits it states. How a model is
//! run is not known here.
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
//! Writing ([`write()`]) streams the tensors of a checkpoint, quantized as a [`Recipe`] says, into a directory that the
//! caller publishes ([`q35_output_dir::Staging`]); with [`RoundToNearest`] every tensor equals what mlx-lm itself writes.
//!
//! Numbers are taken at their word: whatever a zero-centred norm's tensor holds is `1 + w`, also where another maker
//! forgot to add the one.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

#[cfg(target_endian = "big")]
compile_error!("packed words are mapped as little-endian integers");

mod card;
mod companions;
mod config_json;
mod directory;
mod error;
mod layout;
mod names;
mod plan;
mod recipe;
mod settings;
mod weights;
mod write;

pub use directory::{FloatTensor, MlxDirectory, MlxTensor, PackedTensor};
pub use error::{MlxError, TensorProblem, WriteError};
pub use recipe::{Recipe, RoundToNearest, Treatment};
pub use write::{Form, Progress, Summary, WriteOptions, Written, write};
