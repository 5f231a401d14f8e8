//! Weights against weights, without running anything.

mod cause;
mod compare;

pub(crate) use compare::class_of;
pub use compare::{TensorReport, WeightCheck, WorstElement, compare_weights};
