//! The supported operators of iOS 18: their parameters, and inference of their result types.
//!
//! The builder, the checker and the evaluator share one table: the builder fills in its defaults and rejects invalid
//! operations, the checker compares files with it, and the evaluator relies on checked operations.

mod call;
mod infer;
mod shapes;
mod signature;
#[cfg(test)]
mod tests;

pub use call::{Constant, Operand, Problem};
pub use infer::{InferError, infer};
pub use signature::{Default, Need, Parameter, Signature, signature, signatures};
