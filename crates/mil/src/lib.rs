//! Core ML's mlprogram packages as a file format: protobuf messages, weight blobs, a typed MIL builder, and checks.
//!
//! Knows the format and the operators' types, not what any model computes.
#![deny(missing_docs)]

pub mod ops;
pub mod proto;
mod types;
mod value;

pub use types::{DType, Immediate, TensorType, Type, TypeError};
pub use value::{BlobRef, Data, Value, ValueError, WEIGHT_FILE};
