//! CPU arithmetic of the model on plain slices: packed-weight products, norms, convolution, delta rule, attention,
//! and the thread pool that runs them.
//!
//! Knows nothing of files, tensors by name, or models.
#![deny(missing_docs)]

mod columns;
mod input;
mod matrix;
mod multiply;
mod pool;
mod row;
mod simd;
mod tile;

pub use columns::ColumnBlock;
pub use input::{Inputs, Mode};
pub use matrix::{FloatKind, Floats, Matrix, MatrixError};
pub use multiply::{Product, multiply};
pub use pool::Pool;
pub use simd::Isa;
