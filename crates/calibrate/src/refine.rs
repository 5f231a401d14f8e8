//! Improves a rounded matrix under the measure of the layer's output, tr((W - Q) H (W - Q)^T).
//!
//! Feedback decides column after column and never looks back. Here every group's scale and bias are set, by turns, to
//! the least squares of all that is left of the error, and every code to the best value given all others: coordinate
//! descent, by which the error can only fall.

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

use crate::grid::Grid;

/// Goes over all groups of `grid`, which stands for `values` [rows, cols], `passes` times. `moments` [cols, cols] are
/// those that it was rounded with, damping included.
pub(crate) fn refine(grid: &mut Grid, values: &[f32], moments: &Tensor, passes: usize) -> Result<()> {
    let (rows, cols, group) = (grid.rows, grid.cols, grid.spec.group_size());
    let groups = cols / group;
    let errors: Vec<f32> = values.iter().zip(grid.dequantize()).map(|(v, q)| v - q).collect();
    let errors = Tensor::from_vec(errors, (rows, cols), &Device::Cpu)?;
    // Half the derivative of the error by the weights, with its sign turned: [rows, cols].
    let mut pull = errors.matmul(moments)?.flatten_all()?.to_vec1::<f32>()?;
    drop(errors);
    for _ in 0..passes {
        for index in 0..groups {
            let start = index * group;
            let strip = moments.narrow(0, start, group)?.contiguous()?;
            let block = strip.narrow(1, start, group)?.flatten_all()?.to_vec1::<f32>()?;
            let mut moved = vec![0.0; rows * group];
            let (spec, float) = (grid.spec, grid.float);
            moved
                .par_chunks_mut(group)
                .zip(pull.par_chunks(cols))
                .zip(grid.codes.par_chunks_mut(cols))
                .zip(grid.scales.par_chunks_mut(groups).zip(grid.biases.par_chunks_mut(groups)))
                .for_each(|(((moved, pull), codes), (scales, biases))| {
                    let line = Line { scale: scales[index], bias: biases[index] };
                    let mut pull = pull[start..start + group].to_vec();
                    let codes = &mut codes[start..start + group];
                    let line = line.refit(float, codes, &mut pull, moved, &block);
                    line.move_codes(f32::from(spec.largest_code()), codes, &mut pull, moved, &block);
                    (scales[index], biases[index]) = (line.scale, line.bias);
                });
            let change = Tensor::from_vec(moved, (rows, group), &Device::Cpu)?.matmul(&strip)?;
            let change = change.flatten_all()?.to_vec1::<f32>()?;
            pull.par_iter_mut().zip(change.par_iter()).for_each(|(pull, change)| *pull -= change);
        }
    }
    Ok(())
}

/// A group's scale and bias. In the methods `pull` [group] is what is left of the error times the moments, `moved`
/// [group] gathers how far the weights went, and `block` [group, group] are the group's own moments.
#[derive(Clone, Copy)]
struct Line {
    scale: f32,
    bias: f32,
}

impl Line {
    /// The scale and bias of least error for these codes and all other groups as they are.
    fn refit(
        self,
        float: q35_quant::FloatType,
        codes: &[u8],
        pull: &mut [f32],
        moved: &mut [f32],
        block: &[f32],
    ) -> Self {
        let group = codes.len();
        // Of the block's product with the codes, and with ones.
        let (mut by_codes, mut by_ones) = (vec![0.0f32; group], vec![0.0f32; group]);
        for (code, row) in codes.iter().zip(block.chunks(group)) {
            let code = f32::from(*code);
            for ((by_codes, by_ones), h) in by_codes.iter_mut().zip(&mut by_ones).zip(row) {
                *by_codes += code * h;
                *by_ones += h;
            }
        }
        let dot = |a: &[f32]| -> f64 {
            a.iter().zip(codes).map(|(a, code)| f64::from(*a) * f64::from(*code)).sum()
        };
        let sum = |a: &[f32]| -> f64 { a.iter().map(|a| f64::from(*a)).sum() };
        let (cc, c, n) = (dot(&by_codes), dot(&by_ones), sum(&by_ones));
        let (pull_codes, pull_ones) = (dot(pull), sum(pull));
        let determinant = cc * n - c * c;
        if determinant <= 1e-6 * cc * n {
            return self;
        }
        let scale = (pull_codes * n - pull_ones * c) / determinant;
        let bias = (pull_ones * cc - pull_codes * c) / determinant;
        let next = Self {
            scale: float.round(self.scale + scale as f32),
            bias: float.round(self.bias + bias as f32),
        };
        // Rounding to the file's type can make it worse than it was.
        let (scale, bias) = (f64::from(next.scale - self.scale), f64::from(next.bias - self.bias));
        let gain = 2.0 * (scale * pull_codes + bias * pull_ones)
            - (scale * scale * cc + 2.0 * scale * bias * c + bias * bias * n);
        if gain <= 0.0 {
            return self;
        }
        let (scale, bias) = (scale as f32, bias as f32);
        for k in 0..group {
            moved[k] += scale * f32::from(codes[k]) + bias;
            pull[k] -= scale * by_codes[k] + bias * by_ones[k];
        }
        next
    }

    /// Sets every code in turn to the best one.
    fn move_codes(self, largest: f32, codes: &mut [u8], pull: &mut [f32], moved: &mut [f32], block: &[f32]) {
        if self.scale == 0.0 {
            return;
        }
        let group = codes.len();
        for k in 0..group {
            let row = &block[k * group..][..group];
            let code = f32::from(codes[k]);
            let best = (code + pull[k] / (row[k] * self.scale)).round_ties_even().clamp(0.0, largest);
            if best != code && row[k] > 0.0 {
                let step = (best - code) * self.scale;
                codes[k] = best as u8;
                moved[k] += step;
                pull.iter_mut().zip(row).for_each(|(pull, h)| *pull -= step * h);
            }
        }
    }
}
