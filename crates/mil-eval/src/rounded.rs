//! Products with weights that are rounded to fp16 on their way: unpacked a block at a time, then multiplied by the fast
//! kernels, whose sums are in f32 and, as everywhere here, the same for a row whatever is computed beside it.

use std::sync::LazyLock;

use half::f16;
use q35_kernels::{FloatKind, Floats, Inputs, Isa, Matrix, MatrixError, Mode, Pool, Product, multiply};
use rayon::prelude::*;

use crate::Fault;
use crate::weight::Weight;

/// Rows of a weight that are unpacked at a time: in fp16 they stay in a core's cache.
const BLOCK: usize = 64;

/// Blocks are what is shared among threads; within one, the kernels work alone.
static ALONE: LazyLock<(Isa, Pool)> = LazyLock::new(|| (Isa::detect(), Pool::new(1)));

/// x [rows, inner] times the rows of a packed weight [outputs, inner]: out [rows, outputs].
pub(crate) fn rounded_rows(
    x: &[f32],
    weight: &Weight,
    inner: usize,
    outputs: usize,
    out: &mut [f32],
) -> Result<(), Fault> {
    let rows = out.len() / outputs.max(1);
    if rows == 0 || inner == 0 {
        return Ok(());
    }
    let (isa, pool) = &*ALONE;
    // What the kernels want of activations depends on the kind of weights alone.
    let example = vec![0; 2 * inner];
    let mut inputs = Inputs::default();
    inputs.prepare(*isa, pool, Mode::Exact, x, inner, [&matrix(1, inner, &example)?]);
    // [blocks][rows, outputs of the block].
    let mut blocks = vec![0.0; out.len()];
    blocks.par_chunks_mut(BLOCK * rows).enumerate().try_for_each(|(block, out)| {
        let count = out.len() / rows;
        let (mut halves, mut wide) = (vec![f16::ZERO; count * inner], vec![0.0; inner]);
        for (i, halves) in halves.chunks_exact_mut(inner).enumerate() {
            weight.row_halves(block * BLOCK + i, &mut wide, halves);
        }
        let matrix = matrix(count, inner, bytemuck::cast_slice(&halves))?;
        multiply(*isa, pool, Mode::Exact, &inputs, &mut [Product { matrix: &matrix, out }]);
        Ok::<(), Fault>(())
    })?;
    for (block, values) in blocks.chunks(BLOCK * rows).enumerate() {
        let count = values.len() / rows;
        for (row, values) in values.chunks_exact(count).enumerate() {
            out[row * outputs + block * BLOCK..][..count].copy_from_slice(values);
        }
    }
    Ok(())
}

fn matrix(rows: usize, columns: usize, halves: &[u8]) -> Result<Matrix<'_>, Fault> {
    let floats = Floats::new(FloatKind::F16, halves);
    Matrix::float(rows, columns, floats).map_err(|error: MatrixError| Fault::invalid(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Precision;
    use crate::weight::{Codes, Source};
    use q35_mil::{Bytes, DType};

    #[test]
    fn products_are_those_of_the_rounded_weights_alone_and_together() {
        let (rows, inner, outputs) = (3, 70, 150);
        let codes: Vec<u8> = (0..outputs * inner).map(|i| (i * 37 % 255) as u8).collect();
        let codes = Codes { bytes: Bytes::from_vec(codes), dtype: DType::I8, shape: vec![outputs, inner] };
        let scale = (0..outputs).map(|i| f16::from_f32(0.01 + i as f32 / 1e4).to_f32()).collect();
        let weight =
            Weight::scaled(Source::Codes(codes), &[outputs, 1], scale, None, Precision::Half).unwrap();
        let x: Vec<f32> = (0..rows * inner).map(|i| ((i * 53 % 97) as f32 - 48.0) / 31.0).collect();
        let mut together = vec![0.0; rows * outputs];
        rounded_rows(&x, &weight, inner, outputs, &mut together).unwrap();
        let mut w = vec![0.0; inner];
        for row in 0..rows {
            let x = &x[row * inner..(row + 1) * inner];
            let mut alone = vec![0.0; outputs];
            rounded_rows(x, &weight, inner, outputs, &mut alone).unwrap();
            assert_eq!(alone, together[row * outputs..(row + 1) * outputs]);
            for (output, found) in alone.iter().enumerate() {
                weight.row(output, &mut w);
                let exact: f64 = x.iter().zip(&w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                assert!((exact - f64::from(*found)).abs() < 1e-4, "{row} {output}: {found} for {exact}");
            }
        }
    }
}
