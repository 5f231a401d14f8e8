//! The operators of iOS 18 that are known here: their parameters, and the types of their results.
//!
//! One table serves everyone: the builder fills defaults from it and refuses what it refuses, the checker holds files
//! against it, and the evaluator may rely on what it let through.

mod infer;
mod shapes;
mod signature;
#[cfg(test)]
mod tests;

pub use infer::{Constant, InferError, Operand, Problem, infer};
pub use signature::{Default, Need, Parameter, Signature, signature, signatures};
