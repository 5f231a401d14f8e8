//! Core ML's mlprogram packages as a file format: protobuf messages ([`proto`]), types and values, operator signatures
//! and type inference ([`ops`]), a typed builder ([`build`]), readers ([`Package`]), writers ([`PackageWriter`]) and a
//! checker ([`check`](fn@check)).
//!
//! ```no_run
//! let package = q35_format_mil::Package::open("model.mlpackage".as_ref())?;
//! q35_format_mil::check(&package).into_result()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The crate defines the format and the operators' types. It must not know about any model or execute programs.
#![deny(missing_docs)]

mod blob;
pub mod build;
mod check;
mod inspect;
mod neural_engine;
pub mod ops;
mod package;
pub mod proto;
mod read;
mod records;
#[cfg(test)]
mod sample;
mod types;
mod value;
mod visit;

pub use blob::{ALIGNMENT, RecordWriter, SENTINEL, VERSION, WeightWriteError, WeightWriter};
pub use check::{CheckError, Defect, Finding, Report, check};
pub use inspect::{InspectedFunction, Inspection, inspect};
pub use neural_engine::{Limit, Risk};
pub use package::{PackageWeights, PackageWriteError, PackageWriter};
pub use read::{Content, MAX_MODEL_BYTES, Package, ReadError, decode};
pub use records::{Bytes, Record, RecordError, WeightFile, unpack_bits};
pub use types::{DType, Immediate, TensorType, Type, TypeError};
pub use value::{BlobRef, Data, Value, ValueError, WEIGHT_FILE};
