//! Recognises what a directory or a hub repository holds (a float checkpoint, an MLX model, Core ML packages), and opens
//! it as a model.
//!
//! The runtime, the parity check and every command ask this crate, so that they agree: [`find_model`] turns a name into a
//! directory, [`ArtefactDir::recognise`] is the only place that decides what a directory is and which of several variants
//! in it is meant, [`select_files`] the only list of the files that are fetched from a hub. [`quantize_checkpoint`] makes
//! an MLX model of a float checkpoint for those who want to talk with it at once, and caches it.
//!
//! | directory | [`ArtefactKind`] |
//! |---|---|
//! | holds `*.mlpackage` | `CoreMl` |
//! | holds `*.mlmodelc` and no `*.mlpackage` | `CompiledCoreMl`, which q35 refuses to run |
//! | weights and config.json with a `quantization`, or weights that say that MLX wrote them | `Mlx` |
//! | config.json or other weights | `Checkpoint`; opening it says what is missing |
//! | one sub-directory `int4/`, `int8/`, ... that holds a model | that model |
//! | several of them | an error that names them, unless a variant is requested |
//!
//! The crate must not know provenance and checks of a conversion, conversations, or the command line.
//!
//! ```no_run
//! use q35_artefact::ArtefactDir;
//! use q35_backend::RunOptions;
//!
//! let artefact = ArtefactDir::recognise("models/qwen".as_ref(), Some("int4"))?;
//! println!("{}: {}", artefact.dir.display(), artefact.kind.name());
//! println!("{}", artefact.open_model(&RunOptions::default())?.model.describe());
//! # Ok::<(), q35_artefact::ArtefactError>(())
//! ```
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod error;
mod files;
mod find;
mod kind;
mod open;
mod quantize;
mod recognise;

pub use error::ArtefactError;
pub use files::select_files;
pub use find::{FoundModel, NANO, find_model};
pub use kind::ArtefactKind;
pub use quantize::{QuantizeEvent, QuantizeOptions, QuantizedModel, quantize_checkpoint};
pub use recognise::ArtefactDir;
