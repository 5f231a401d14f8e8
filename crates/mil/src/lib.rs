//! Core ML's mlprogram packages as a file format: protobuf messages ([`proto`]), types and values, the operators'
//! signatures ([`ops`]), a typed builder ([`build`]), and packages written record by record ([`PackageWriter`]).
//!
//! Knows the format and the operators' types, not what any model computes.
#![deny(missing_docs)]

mod blob;
pub mod build;
pub mod ops;
mod package;
pub mod proto;
mod types;
mod value;

pub use blob::{ALIGNMENT, RecordWriter, SENTINEL, VERSION, WeightWriteError, WeightWriter};
pub use package::{PackageWeights, PackageWriteError, PackageWriter};
pub use types::{DType, Immediate, TensorType, Type, TypeError};
pub use value::{BlobRef, Data, Value, ValueError, WEIGHT_FILE};
