//! The protobuf messages of a Core ML model, as far as mlprogram packages need them.
//!
//! Written by hand from the published schema: field numbers and types are the format, names follow it in Rust's
//! spelling. Maps are ordered, so that equal models have equal bytes. Fields that are not listed are skipped when
//! reading. Most code should use [`crate::Type`] and [`crate::Value`], which these convert to and from.

mod description;
mod program;

pub use description::*;
pub use program::*;
