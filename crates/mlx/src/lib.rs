//! MLX model directories of Qwen3.5: read from any maker ([`MlxDirectory`]), written from a checkpoint.
//!
//! Reading knows three forms: this project's own, which is mlx-lm's with a manifest; mlx-lm's, with its per-tensor
//! table under `quantization`; and the origin system's flat one, with bare names and a label for the bits. Files are
//! memory-mapped, and every shape is checked against the sizes in config.json and the bits it states. How a model is
//! run is not known here.
//!
//! ```no_run
//! use q35_mlx::{MlxDirectory, MlxTensor};
//! let directory = MlxDirectory::open("Qwen3.5-0.8B-4bit".as_ref())?;
//! if let Some(MlxTensor::Packed(embedding)) = directory.tensor("embed_tokens.weight") {
//!     println!("{} bits, groups of {}", embedding.spec.bits(), embedding.spec.group_size());
//! }
//! # Ok::<(), q35_mlx::MlxError>(())
//! ```
//!
//! Numbers are taken at their word: whatever a zero-centred norm's tensor holds is `1 + w`, also where another maker
//! forgot to add the one.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

#[cfg(target_endian = "big")]
compile_error!("packed words are mapped as little-endian integers");

mod directory;
mod error;
mod names;
mod settings;
mod weights;

pub use directory::{FloatTensor, MlxDirectory, MlxTensor, PackedTensor};
pub use error::{MlxError, TensorProblem};
