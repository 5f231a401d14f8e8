//! Products of activations with weight matrices.

use std::cell::RefCell;

use crate::columns::ColumnBlock;
use crate::input::{Form, Inputs, Mode};
use crate::matrix::Matrix;
use crate::pool::Pool;
use crate::row::{Rows, Scratch};
use crate::simd::Isa;
use crate::tile::Tiles;

/// One product: `out` [tokens, rows] = x [tokens, columns] times the transpose of `matrix` [rows, columns].
#[derive(Debug)]
pub struct Product<'a> {
    /// The weights.
    pub matrix: &'a Matrix<'a>,
    /// Where the result goes.
    pub out: &'a mut [f32],
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Computes products of the same activations in one parallel region.
///
/// The arithmetic of an output number depends on its row and its token alone: not on the number of tokens, on the
/// instruction set or on threads. With n groups, in either mode: the products of a group are summed up (in the fast
/// mode exactly, as integers; in the exact mode in f32, in a fixed tree), scaled, added to one of sixteen slots (group
/// g to slot g mod 16, in turn), and the slots are summed as `Simd::sum` does.
///
/// # Panics
/// If `inputs` were not prepared for one of the matrices in this mode and by this instruction set, or an output has
/// another size.
pub fn multiply(isa: Isa, pool: &Pool, mode: Mode, inputs: &Inputs, products: &mut [Product<'_>]) {
    assert_eq!(inputs.isa, Some(isa), "instruction sets of a product and its activations");
    let total: usize = products.iter().map(|product| product.matrix.rows).sum();
    // A few blocks for each thread even out unequal cores; sixteen rows make a tile, and two tiles may
    // go together.
    let block = total.div_ceil(pool.threads() * BLOCKS_PER_THREAD).next_multiple_of(32);
    let mut work = Vec::with_capacity(total / block + products.len());
    for product in products {
        let matrix = product.matrix;
        assert_eq!(product.out.len(), inputs.tokens * matrix.rows, "[tokens, rows] of a product");
        assert_eq!(matrix.columns, inputs.columns, "columns of a matrix and its activations");
        if inputs.tokens == 0 || matrix.rows == 0 {
            continue;
        }
        let x = inputs.find(Form::of(matrix, mode));
        work.extend(ColumnBlock::split(product.out, matrix.rows, block).map(|out| (matrix, x, out)));
    }
    pool.for_each(&mut work, |(matrix, x, out)| {
        SCRATCH.with_borrow_mut(|scratch| {
            if out.rows() == 1 {
                let first = out.start();
                isa.run(Rows { matrix, x, first, out: out.row(0), scratch });
            } else {
                isa.run(Tiles { matrix, x, out, scratch, unit: isa.matrix_unit() });
            }
        });
    });
}

const BLOCKS_PER_THREAD: usize = 8;
