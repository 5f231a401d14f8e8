//! Comparison of all tensors with the source, without running anything.

mod compare;
mod likely_cause;
mod report;
mod tensor_statistics;

pub use compare::compare_weights;
pub(crate) use report::tensor_class;
pub use report::{TensorReport, WeightCheck, WorstElement};
