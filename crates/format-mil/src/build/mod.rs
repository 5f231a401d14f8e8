//! Building programs: typed values in, checked operations out.
//!
//! A [`FunctionBuilder`] holds every operation against the table in [`crate::ops`] when it is added, fills in the
//! defaults that coremltools would write out, keeps names unique, and sends constants of ten or more elements to the
//! weight file, as coremltools does. [`model`] puts finished functions into a `model.mlmodel`.

mod function;
mod model;
mod operators;
#[cfg(test)]
mod tests;

pub use function::{Argument, BuildError, FunctionBuilder, Tensor};
pub use model::{Feature, FinishedFunction, model};
