//! Reversed Cholesky factorization: the upper triangular R with H = R R^T.

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

const BLOCK: usize = 64;

/// Returns R [n, n] of a symmetric positive definite `h` [n, n]; entries below the diagonal are zero.
///
/// The usual blocked Cholesky factorization, started from the last row and column: factor the last diagonal block, solve
/// the columns above it, and subtract their outer product from the rest (a matrix product, and nearly all of the work).
/// Linear algebra crates offer only the lower factor H = L L^T; GPTQ's column order needs this one.
pub(crate) fn upper_factor(mut h: Vec<f64>, n: usize) -> Result<Vec<f64>> {
    let mut end = n;
    while end > 0 {
        let start = end.saturating_sub(BLOCK);
        let width = end - start;
        // The diagonal block, column by column from the right.
        for k in (start..end).rev() {
            let below: f64 = (k + 1..end).map(|m| h[k * n + m] * h[k * n + m]).sum();
            // In a direction that the inputs hardly span, rounding may leave a negative pivot.
            let pivot = (h[k * n + k] - below).max(f64::MIN_POSITIVE.sqrt()).sqrt();
            h[k * n + k] = pivot;
            for i in start..k {
                let dot: f64 = (k + 1..end).map(|m| h[i * n + m] * h[k * n + m]).sum();
                h[i * n + k] = (h[i * n + k] - dot) / pivot;
            }
        }
        // The columns above it: each row solves against the block.
        let (above, block) = h.split_at_mut(start * n);
        above.par_chunks_mut(n).for_each(|row| {
            for k in (start..end).rev() {
                let factor = &block[(k - start) * n..][..n];
                let dot: f64 = (k + 1..end).map(|m| row[m] * factor[m]).sum();
                row[k] = (row[k] - dot) / factor[k];
            }
        });
        if start > 0 {
            let panel: Vec<f64> = above.chunks(n).flat_map(|row| row[start..end].iter().copied()).collect();
            let panel = Tensor::from_vec(panel, (start, width), &Device::Cpu)?;
            let product = panel.matmul(&panel.t()?)?.flatten_all()?.to_vec1::<f64>()?;
            above.par_chunks_mut(n).zip(product.par_chunks(start)).for_each(|(row, product)| {
                row[..start].iter_mut().zip(product).for_each(|(h, p)| *h -= p);
            });
        }
        end = start;
    }
    h.par_chunks_mut(n).enumerate().for_each(|(i, row)| row[..i].fill(0.0));
    Ok(h)
}

#[cfg(test)]
mod tests {
    use super::*;
    use q35_testkit::Random;

    #[test]
    fn the_factor_multiplies_back() {
        for n in [1, 5, 64, 65, 150] {
            let mut random = Random::new(n as u64);
            let a: Vec<f64> = (0..n * n).map(|_| f64::from(random.normal())).collect();
            let product =
                |x: &[f64], i: usize, j: usize| -> f64 { (0..n).map(|k| x[i * n + k] * x[j * n + k]).sum() };
            let mut h: Vec<f64> = (0..n * n).map(|at| product(&a, at / n, at % n)).collect();
            (0..n).for_each(|k| h[k * n + k] += 0.5);
            let r = upper_factor(h.clone(), n).unwrap();
            for at in 0..n * n {
                let (i, j) = (at / n, at % n);
                assert!(i <= j || r[at] == 0.0);
                assert!((product(&r, i, j) - h[at]).abs() < 1e-9 * n as f64, "{n}: ({i}, {j})");
            }
        }
    }
}
