//! CPU arithmetic of the model on plain slices: packed-weight products, norms, convolution, delta rule, attention,
//! and the thread pool that runs them.
//!
//! Knows nothing of files, tensors by name, or models.
#![deny(missing_docs)]

mod attention;
mod columns;
mod delta;
mod elementwise;
mod input;
mod matrix;
mod multiply;
mod pool;
mod rotary;
mod row;
mod simd;
mod stream;
mod tile;

pub use attention::{BLOCK, HeadCache, SPAN, SpanResult, attend, attend_span, join_spans};
pub use columns::ColumnBlock;
pub use delta::{DeltaHead, DeltaLayer, DeltaShape, delta_head};
pub use elementwise::{add_assign, exponential, rms_norm, silu_multiply, softmax};
pub use input::{Inputs, Mode};
pub use matrix::{FloatKind, Floats, Matrix, MatrixError};
pub use multiply::{Product, multiply};
pub use pool::Pool;
pub use rotary::{Rotation, norm_and_rotate, sigmoid_multiply};
pub use simd::Isa;
