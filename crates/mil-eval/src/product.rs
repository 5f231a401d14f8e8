//! Matrix products on all cores with the fast kernels. Sums are in f32, and each element is summed in a fixed order,
//! independent of the number of threads and of other rows (batch-invariant).

use std::ops::Range;
use std::sync::LazyLock;

use half::f16;
use q35_kernels::{
    FloatType, Floats, Isa, Matrix, MatrixError, Mode, PackedActivations, Pool, Product, Strided, multiply,
    multiply_dense,
};
use rayon::prelude::*;

use crate::Fault;
use crate::weight::Weight;

/// Products of fewer multiplications run on one thread.
const SERIAL: usize = 1 << 16;
/// Rows of a weight per task; unpacked, they fit in a core's cache.
const BLOCK: usize = 64;
/// Rows of a product of two dense matrices per task.
const DENSE_BLOCK: usize = 32;

/// Instruction set and single-threaded pool for the kernels: parallelism is over tasks.
static SINGLE_THREAD: LazyLock<(Isa, Pool)> = LazyLock::new(|| (Isa::detect(), Pool::new(1)));

/// Runs `task(index, chunk)` for each chunk of `out`, on all cores if `work` (multiplications) is large enough.
fn over_chunks(
    out: &mut [f32],
    chunk: usize,
    work: usize,
    task: impl Fn(usize, &mut [f32]) -> Result<(), Fault> + Sync,
) -> Result<(), Fault> {
    let chunk = chunk.max(1);
    if work < SERIAL {
        out.chunks_mut(chunk).enumerate().try_for_each(|(i, chunk)| task(i, chunk))
    } else {
        out.par_chunks_mut(chunk).enumerate().try_for_each(|(i, chunk)| task(i, chunk))
    }
}

/// The right operand, [outputs, inner]: its rows are multiplied with rows of activations.
#[derive(Clone, Copy)]
enum Right<'a> {
    Packed(&'a Weight),
    Dense(&'a [f32]),
}

/// Scratch buffer for unpacked rows.
#[derive(Default)]
struct UnpackedRows {
    halves: Vec<f16>,
    floats: Vec<f32>,
}

impl Right<'_> {
    /// Rows as a matrix for the kernels.
    fn matrix<'b>(
        &'b self,
        rows: Range<usize>,
        inner: usize,
        unpacked: &'b mut UnpackedRows,
    ) -> Result<Matrix<'b>, Fault> {
        let (first, count) = (rows.start, rows.len());
        let weight = match self {
            Self::Dense(values) => return floats(count, inner, &values[first * inner..rows.end * inner]),
            Self::Packed(weight) => weight,
        };
        if let Some(matrix) = weight.matrix_rows(rows) {
            return Ok(matrix);
        }
        let UnpackedRows { halves, floats: wide } = unpacked;
        if !weight.is_rounded() {
            wide.resize(count * inner, 0.0);
            wide.chunks_exact_mut(inner).enumerate().for_each(|(i, row)| weight.row(first + i, row));
            return floats(count, inner, wide);
        }
        halves.resize(count * inner, f16::ZERO);
        wide.resize(inner, 0.0);
        for (i, row) in halves.chunks_exact_mut(inner).enumerate() {
            weight.row_halves(first + i, wide, row);
        }
        Matrix::float(count, inner, Floats::new(FloatType::F16, bytemuck::cast_slice(halves))).map_err(misfit)
    }

    /// Product of x [rows, inner] with the rows: out [rows, outputs].
    fn times(self, x: &[f32], inner: usize, outputs: usize, out: &mut [f32]) -> Result<(), Fault> {
        let rows = out.len() / outputs.max(1);
        if rows == 0 || inner == 0 {
            return Ok(());
        }
        let (isa, pool) = &*SINGLE_THREAD;
        let mut activations = PackedActivations::default();
        // The layout of the activations depends only on the type of the rows.
        activations.pack(
            *isa,
            pool,
            Mode::Exact,
            x,
            inner,
            [&self.matrix(0..1, inner, &mut UnpackedRows::default())?],
        );
        let task = |block: usize, out: &mut [f32]| {
            let (first, mut unpacked) = (block * BLOCK, UnpackedRows::default());
            let matrix = self.matrix(first..first + out.len() / rows, inner, &mut unpacked)?;
            multiply(*isa, pool, Mode::Exact, &activations, &mut [Product { matrix: &matrix, out }]);
            Ok(())
        };
        let work = out.len() * inner;
        if rows == 1 {
            return over_chunks(out, BLOCK, work, task);
        }
        // [blocks][rows, outputs of the block].
        let mut blocks = vec![0.0; out.len()];
        over_chunks(&mut blocks, BLOCK * rows, work, task)?;
        for (block, values) in blocks.chunks(BLOCK * rows).enumerate() {
            let count = values.len() / rows;
            for (row, values) in values.chunks_exact(count).enumerate() {
                out[row * outputs + block * BLOCK..][..count].copy_from_slice(values);
            }
        }
        Ok(())
    }
}

fn floats(rows: usize, columns: usize, values: &[f32]) -> Result<Matrix<'_>, Fault> {
    Matrix::float(rows, columns, Floats::new(FloatType::F32, bytemuck::cast_slice(values))).map_err(misfit)
}

fn misfit(error: MatrixError) -> Fault {
    Fault::invalid(error.to_string())
}

/// Product of x [rows, inner] with the rows of a packed weight [outputs, inner]: out [rows, outputs].
pub(crate) fn weight_rows(
    x: &[f32],
    weight: &Weight,
    inner: usize,
    outputs: usize,
    out: &mut [f32],
) -> Result<(), Fault> {
    Right::Packed(weight).times(x, inner, outputs, out)
}

/// Product of x [rows, inner] with the rows of a dense weight [outputs, inner]: out [rows, outputs].
pub(crate) fn dense_rows(
    x: &[f32],
    weight: &[f32],
    inner: usize,
    outputs: usize,
    out: &mut [f32],
) -> Result<(), Fault> {
    Right::Dense(weight).times(x, inner, outputs, out)
}

/// Batched product: x [rows, inner] times y [inner, columns]; an operand is stored transposed if its flag is set.
/// `offsets` holds, per batch, the index of the matrix in `x` and in `y`.
pub(crate) fn matrix_product(
    (x, transpose_x): (&[f32], bool),
    (y, transpose_y): (&[f32], bool),
    (rows, inner, columns): (usize, usize, usize),
    offsets: &[[usize; 2]],
    out: &mut [f32],
) -> Result<(), Fault> {
    if out.is_empty() || inner == 0 {
        return Ok(());
    }
    let rows_per_task = DENSE_BLOCK.min(rows);
    let mut tasks = Vec::new();
    for (batch, mut out) in out.chunks_exact_mut(rows * columns).enumerate() {
        let mut first = 0;
        while first < rows {
            let count = rows_per_task.min(rows - first);
            let (head, tail) = out.split_at_mut(count * columns);
            tasks.push((offsets[batch], first, head));
            (out, first) = (tail, first + count);
        }
    }
    let work = tasks.len() * rows_per_task * inner * columns;
    let (isa, pool) = &*SINGLE_THREAD;
    let task = |([i, j], first, out): ([usize; 2], usize, &mut [f32])| {
        let (x, y) = (&x[i * rows * inner..][..rows * inner], &y[j * inner * columns..][..inner * columns]);
        let (x, strides) =
            if transpose_x { (&x[first..], [1, rows]) } else { (&x[first * inner..], [inner, 1]) };
        if !transpose_y {
            multiply_dense(*isa, Strided { values: x, strides }, y, columns, out);
            return Ok(());
        }
        let count = out.len() / columns;
        let gathered: Vec<f32>;
        let x = if transpose_x {
            gathered = (0..count * inner).map(|at| x[at / inner + at % inner * rows]).collect();
            &gathered
        } else {
            &x[..count * inner]
        };
        let matrix = floats(columns, inner, y)?;
        let mut activations = PackedActivations::default();
        activations.pack(*isa, pool, Mode::Exact, x, inner, [&matrix]);
        multiply(*isa, pool, Mode::Exact, &activations, &mut [Product { matrix: &matrix, out }]);
        Ok(())
    };
    if work < SERIAL {
        tasks.into_iter().try_for_each(task)
    } else {
        tasks.into_par_iter().try_for_each(task)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Precision;
    use crate::weight::{Codes, Source};
    use half::f16;
    use q35_format_mil::{Bytes, DType};

    #[test]
    fn products_with_packed_weights_equal_those_with_dequantized_weights() {
        // int8 with a scale per row, per 32 and per 5 elements; then uint8 with an offset.
        for (dtype, blocks) in [(DType::I8, 1), (DType::I8, 5), (DType::I8, 32), (DType::U8, 1)] {
            for precision in [Precision::Exact, Precision::Half] {
                packed_products(dtype, blocks, precision);
            }
        }
    }

    fn packed_products(dtype: DType, blocks: usize, precision: Precision) {
        let (rows, inner, outputs) = (3, 160, 150);
        let codes: Vec<u8> = (0..outputs * inner).map(|i| (i * 37 % 255) as u8).collect();
        let codes = Codes { bytes: Bytes::from_vec(codes), dtype, shape: vec![outputs, inner] };
        let count = outputs * blocks;
        let scale = (0..count).map(|i| f16::from_f32(0.01 + (i % 150) as f32 / 1e4).to_f32()).collect();
        let offset = (dtype == DType::U8).then(|| vec![128.0; count]);
        let weight =
            Weight::scaled(Source::Codes(codes), &[outputs, blocks], scale, offset, precision).unwrap();
        assert_eq!(weight.matrix_rows(0..1).is_some(), dtype == DType::I8 && blocks != 32);
        let x: Vec<f32> = (0..rows * inner).map(|i| ((i * 53 % 97) as f32 - 48.0) / 31.0).collect();
        let mut together = vec![0.0; rows * outputs];
        weight_rows(&x, &weight, inner, outputs, &mut together).unwrap();
        let mut w = vec![0.0; inner];
        for row in 0..rows {
            let x = &x[row * inner..(row + 1) * inner];
            let mut alone = vec![0.0; outputs];
            weight_rows(x, &weight, inner, outputs, &mut alone).unwrap();
            assert_eq!(alone, together[row * outputs..(row + 1) * outputs]);
            for (output, found) in alone.iter().enumerate() {
                weight.row(output, &mut w);
                let exact: f64 = x.iter().zip(&w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                assert!((exact - f64::from(*found)).abs() < 1e-4, "{row} {output}: {found} for {exact}");
            }
        }
    }

    fn numbers(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    #[test]
    fn products_are_right_for_transposed_operands() {
        let (rows, inner, columns) = (37, 21, 9);
        let (x, y) = (numbers(2 * rows * inner, 1), numbers(inner * columns, 2));
        let offsets = [[0, 0], [1, 0]];
        for (transpose_x, transpose_y) in [(false, false), (true, false), (false, true), (true, true)] {
            let mut out = vec![0.0; 2 * rows * columns];
            matrix_product((&x, transpose_x), (&y, transpose_y), (rows, inner, columns), &offsets, &mut out)
                .unwrap();
            for batch in 0..2 {
                for r in 0..rows {
                    for c in 0..columns {
                        let want: f64 = (0..inner)
                            .map(|k| {
                                let x_at = if transpose_x { k * rows + r } else { r * inner + k };
                                let y_at = if transpose_y { c * inner + k } else { k * columns + c };
                                f64::from(x[batch * rows * inner + x_at]) * f64::from(y[y_at])
                            })
                            .sum();
                        let got = out[(batch * rows + r) * columns + c];
                        assert!(
                            (f64::from(got) - want).abs() < 1e-5,
                            "{transpose_x} {transpose_y} {r} {c}: {got} {want}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_is_the_same_bits_alone_and_among_others() {
        let (rows, inner, outputs) = (5, 70, 38);
        let (x, weight) = (numbers(rows * inner, 3), numbers(outputs * inner, 4));
        let mut together = vec![0.0; rows * outputs];
        dense_rows(&x, &weight, inner, outputs, &mut together).unwrap();
        for row in 0..rows {
            let mut alone = vec![0.0; outputs];
            dense_rows(&x[row * inner..(row + 1) * inner], &weight, inner, outputs, &mut alone).unwrap();
            assert_eq!(alone, together[row * outputs..(row + 1) * outputs]);
        }
    }
}
