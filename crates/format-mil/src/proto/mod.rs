//! The protobuf messages of Core ML models that mlprogram packages use.
//!
//! Written by hand from the published schema: field numbers and types are the schema's, names are its names in Rust
//! spelling. Maps are ordered, so that equal models have equal bytes. Other fields are skipped when reading. Most code
//! should use [`crate::Type`] and [`crate::Value`], which convert from and to these messages.

mod description;
mod program;

pub use description::*;
pub use program::*;
