//! CPU arithmetic of Qwen3.5 on plain slices: products with packed weights, norms, convolution, delta rule, attention, and
//! the thread pool that runs them. The only home of SIMD; it knows no files, no tensor names and no models.
//!
//! Every result is batch-invariant and equal, bit for bit, on all instruction sets. `docs/performance/kernels.md` records
//! which optimisations were tried and their effect.
//!
//! ```
//! use q35_kernels::{FloatType, Floats, Isa, Matrix, Mode, PackedActivations, Pool, Product, multiply};
//!
//! // A [2, 32] INT4 matrix in one group: all codes are 3, w = 0.5 * 3 - 1 = 0.5.
//! let (codes, scales, biases) = ([0x33; 32], [0.5f32, 0.5].map(f32::to_le_bytes), [-1.0f32, -1.0].map(f32::to_le_bytes));
//! let floats = |bytes| Floats::new(FloatType::F32, bytes);
//! let matrix = Matrix::affine(2, 32, 4, 32, &codes, floats(scales.as_flattened()), floats(biases.as_flattened()))?;
//!
//! let (isa, pool, mode) = (Isa::detect(), Pool::new(2), Mode::Exact);
//! let (x, mut out) = ([1.0; 32], [0.0; 2]);
//! let mut activations = PackedActivations::default();
//! activations.pack(isa, &pool, mode, &x, 32, [&matrix]);
//! multiply(isa, &pool, mode, &activations, &mut [Product { matrix: &matrix, out: &mut out }]);
//! assert_eq!(out, [16.0, 16.0]);
//! # Ok::<(), q35_kernels::MatrixError>(())
//! ```
#![deny(missing_docs)]

mod aligned;
mod attention;
mod column_block;
mod delta;
mod dense;
mod elementwise;
mod huge_pages;
mod int16_split;
mod kv_cache;
mod matmul;
mod pool;
mod rotary;
mod simd;

pub use attention::{
    BLOCKS_PER_TASK, BlockSum, BlockWeights, accumulate_blocks, attend, normalize_blocks, reduce_blocks,
    score_blocks,
};
pub use column_block::ColumnBlock;
pub use delta::{DeltaHead, DeltaLayer, DeltaShape, delta_head};
pub use dense::{Strided, multiply_dense};
pub use elementwise::{add_assign, exponential, rms_norm, round_to_f16, silu_multiply, softmax};
pub use huge_pages::{ArenaSlice, HugePageArena};
pub use kv_cache::{KV_BLOCK, KvCache};
pub use matmul::{Floats, Matrix, MatrixError, Mode, PackedActivations, Product, multiply};
pub use pool::Pool;
pub use q35_quant::FloatType;
pub use rotary::{Rotation, norm_and_rotate, sigmoid_multiply};
pub use simd::Isa;
