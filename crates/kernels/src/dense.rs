//! Products of two f32 matrices, neither of which is a weight.

use crate::elementwise::store_partial;
use crate::simd::{Isa, Kernel, Simd};

/// Rows of the result computed together.
const TILE_ROWS: usize = 4;
/// Products summed in sequence before their sum is added to the total: long sums lose less precision that way.
const SUM_CHUNK: usize = 64;

/// A matrix [rows, inner] with arbitrary strides.
#[derive(Clone, Copy, Debug)]
pub struct Strided<'a> {
    /// Elements.
    pub values: &'a [f32],
    /// Elements from one row to the next, and from one element of a row to the next.
    pub strides: [usize; 2],
}

/// `out` [rows, columns] = x [rows, inner] times y [inner, columns], y and `out` row-major. Every element is summed in one
/// fixed order of `inner`, whatever the shape and the instruction set.
///
/// # Panics
/// If the sizes do not fit.
pub fn multiply_dense(isa: Isa, x: Strided<'_>, y: &[f32], columns: usize, out: &mut [f32]) {
    if out.is_empty() {
        return;
    }
    assert!(y.len().is_multiple_of(columns) && out.len().is_multiple_of(columns), "columns of a product");
    isa.run(Dense { x, y, columns, out });
}

struct Dense<'a> {
    x: Strided<'a>,
    y: &'a [f32],
    columns: usize,
    out: &'a mut [f32],
}

impl Kernel for Dense<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { x, y, columns, out } = self;
        let inner = y.len() / columns;
        let mut packed = vec![[0.0; TILE_ROWS]; inner];
        for (block, out) in out.chunks_mut(TILE_ROWS * columns).enumerate() {
            let rows = out.len() / columns;
            // [inner][TILE_ROWS], zero beyond the last row.
            for (k, packed) in packed.iter_mut().enumerate() {
                for (row, value) in packed.iter_mut().enumerate() {
                    *value = if row < rows {
                        x.values[(TILE_ROWS * block + row) * x.strides[0] + k * x.strides[1]]
                    } else {
                        0.0
                    };
                }
            }
            let mut from = 0;
            while from < columns {
                let count = (columns - from).min(16);
                let sums = if rows == 1 {
                    let [sum] = tile::<S, 1>(simd, &packed, y, columns, from, count);
                    [sum; TILE_ROWS]
                } else {
                    tile::<S, TILE_ROWS>(simd, &packed, y, columns, from, count)
                };
                for (out, sums) in out.chunks_exact_mut(columns).zip(sums) {
                    store_partial(simd, sums, &mut out[from..from + count]);
                }
                from += count;
            }
        }
    }
}

/// Columns `from..from + count`, at most sixteen, of the first `R` rows.
#[inline(always)]
fn tile<S: Simd, const R: usize>(
    simd: S,
    packed: &[[f32; TILE_ROWS]],
    y: &[f32],
    columns: usize,
    from: usize,
    count: usize,
) -> [S::F32; R] {
    let mut totals = [simd.splat(0.0); R];
    let mut last = [0.0; 16];
    for (chunk, packed) in packed.chunks(SUM_CHUNK).enumerate() {
        let mut sums = [simd.splat(0.0); R];
        let y = &y[chunk * SUM_CHUNK * columns..];
        for (k, x) in packed.iter().enumerate() {
            let y = &y[k * columns + from..];
            let y = match y.first_chunk() {
                Some(y) if count == 16 => simd.load(y),
                _ => {
                    last[..count].copy_from_slice(&y[..count]);
                    simd.load(&last)
                }
            };
            for r in 0..R {
                sums[r] = simd.fma(simd.splat(x[r]), y, sums[r]);
            }
        }
        for r in 0..R {
            totals[r] = simd.add(totals[r], sums[r]);
        }
    }
    totals
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize) -> Vec<f32> {
        (0..count).map(|i| (i * 7919 % 1009) as f32 / 512.0 - 1.0).collect()
    }

    #[test]
    fn all_instruction_sets_agree_and_rows_do_not_depend_on_each_other() {
        for (rows, inner, columns) in [(1, 1, 1), (1, 200, 17), (3, 64, 16), (6, 65, 40), (9, 130, 5)] {
            let (x, y) = (numbers(rows * inner), numbers(inner * columns));
            let across: Vec<f32> = (0..inner)
                .flat_map(|k| (0..rows).map(move |row| (row, k)))
                .map(|(r, k)| x[r * inner + k])
                .collect();
            let mut first: Option<Vec<f32>> = None;
            for isa in Isa::available() {
                for (values, strides) in [(&x, [inner, 1]), (&across, [1, rows])] {
                    let mut out = vec![f32::NAN; rows * columns];
                    multiply_dense(isa, Strided { values, strides }, &y, columns, &mut out);
                    assert_eq!(first.get_or_insert_with(|| out.clone()), &out, "{}", isa.name());
                }
            }
            let together = first.unwrap();
            for (row, x) in x.chunks_exact(inner).enumerate() {
                let mut alone = vec![f32::NAN; columns];
                multiply_dense(
                    Isa::detect(),
                    Strided { values: x, strides: [inner, 1] },
                    &y,
                    columns,
                    &mut alone,
                );
                assert_eq!(alone, together[row * columns..][..columns]);
                for (column, found) in alone.iter().enumerate() {
                    let terms = (0..inner).map(|k| f64::from(x[k]) * f64::from(y[k * columns + column]));
                    assert!((terms.sum::<f64>() - f64::from(*found)).abs() < 1e-4);
                }
            }
        }
    }
}
