//! Products of activations with weight matrices.
//!
//! One token is a gemv ([`gemv`]), several are a gemm of tiles of sixteen rows ([`gemm`]). `README.md` beside this file shows
//! how codes lie in memory, how rows and tokens lie in registers, and in which order sums are reduced.
//!
//! Imports go one way: `floats`, `unpack` <- `matrix` <- `layout` <- `quantize`, `activations` <- `rows` <- `gemv_*` <- `gemv`,
//! and `activations` <- `tile` <- `amx` <- `gemm`.

mod activations;
mod amx;
mod floats;
mod format;
mod gemm;
mod gemv;
mod gemv_int4;
mod gemv_int8;
mod layout;
mod matrix;
mod quantize;
mod rows;
mod tile;
mod unpack;

pub use activations::PackedActivations;
pub use floats::Floats;
pub use layout::Mode;
pub use matrix::{Matrix, MatrixError};

use std::cell::RefCell;

use crate::column_block::ColumnBlock;
use crate::pool::Pool;
use crate::simd::Isa;

use gemm::{Gemm, GemmScratch};
use gemv::{Gemv, GemvScratch};
use layout::ActivationLayout;

/// One product: `out` [tokens, rows] = x [tokens, columns] times the transpose of `matrix` [rows, columns].
#[derive(Debug)]
pub struct Product<'a> {
    /// Weights [rows, columns].
    pub matrix: &'a Matrix<'a>,
    /// Result [tokens, rows].
    pub out: &'a mut [f32],
}

/// Scratch buffers of a thread.
#[derive(Debug, Default)]
struct Scratch {
    gemv: GemvScratch,
    gemm: GemmScratch,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Blocks of rows per thread: several even out cores of unequal speed.
const BLOCKS_PER_THREAD: usize = 8;

/// Computes products of the same activations in one parallel region.
///
/// The result is batch-invariant: the arithmetic of an output element depends on its row and its token alone, not on the
/// number of tokens, the instruction set or the threads. In either mode the products of a group are summed (in the fast
/// mode exactly, as integers; in the exact mode in f32, in a fixed tree), scaled, and added to one of sixteen lanes (group g
/// to lane g mod 16, in sequence); the lanes are then reduced as `Simd::reduce_add` does.
///
/// # Panics
/// If `activations` were not packed for one of the matrices in this mode and for this instruction set, or an output has the
/// wrong size.
pub fn multiply(
    isa: Isa,
    pool: &Pool,
    mode: Mode,
    activations: &PackedActivations,
    products: &mut [Product<'_>],
) {
    assert_eq!(activations.isa, Some(isa), "instruction sets of a product and its activations");
    let total: usize = products.iter().map(|product| product.matrix.rows).sum();
    // Sixteen rows are a tile, and two tiles may be computed together.
    let block = total.div_ceil(pool.threads() * BLOCKS_PER_THREAD).next_multiple_of(32);
    let mut work = Vec::with_capacity(total / block + products.len());
    for product in products {
        let matrix = product.matrix;
        assert_eq!(product.out.len(), activations.tokens * matrix.rows, "[tokens, rows] of a product");
        assert_eq!(matrix.columns, activations.columns, "columns of a matrix and its activations");
        if activations.tokens == 0 || matrix.rows == 0 {
            continue;
        }
        let x = activations.in_layout(ActivationLayout::of(matrix, mode));
        work.extend(ColumnBlock::split(product.out, matrix.rows, block).map(|out| (matrix, x, out)));
    }
    pool.for_each(&mut work, |(matrix, x, out)| {
        SCRATCH.with_borrow_mut(|scratch| {
            if out.rows() == 1 {
                let (first, scratch) = (out.start(), &mut scratch.gemv);
                isa.run(Gemv { matrix, x, first, out: out.row(0), scratch });
            } else {
                isa.run(Gemm { matrix, x, out, scratch: &mut scratch.gemm, amx: isa.amx() });
            }
        });
    });
}
