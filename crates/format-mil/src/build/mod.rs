//! Typed builder of programs.
//!
//! A [`FunctionBuilder`] checks each operation against the table in [`crate::ops`] when it is added, writes the defaults
//! that coremltools writes explicitly, makes names unique, and stores constants of ten or more elements in the weight
//! file, as coremltools does. [`model`](fn@model) combines finished functions to a `model.mlmodel` message.

mod function;
mod model;
mod operators;
#[cfg(test)]
mod tests;

pub use function::{Argument, BuildError, FunctionBuilder, Tensor};
pub use model::{Feature, FinishedFunction, model};
