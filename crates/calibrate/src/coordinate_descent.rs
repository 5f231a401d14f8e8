//! Coordinate descent on the squared error of the layer's output, tr((W - Q) H (W - Q)^T).
//!
//! GPTQ decides column after column and never revisits one. Here, group after group, scale and bias are set to the least
//! squares solution for the current codes, then every code to its best value with all others fixed. The error never
//! increases.

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

use crate::quantized_matrix::QuantizedMatrix;

/// Improves `matrix`, the quantized form of `values` [rows, cols], in `passes` passes over all groups. `moments`
/// [cols, cols] are those of the rounding, damping included.
pub(crate) fn refine(
    matrix: &mut QuantizedMatrix,
    values: &[f32],
    moments: &Tensor,
    passes: usize,
) -> Result<()> {
    let (rows, cols, group) = (matrix.rows, matrix.cols, matrix.spec.group_size());
    let groups = cols / group;
    let errors: Vec<f32> = values.iter().zip(matrix.dequantize()).map(|(v, q)| v - q).collect();
    let errors = Tensor::from_vec(errors, (rows, cols), &Device::Cpu)?;
    // Half of the negative gradient of the error with respect to the weights, [rows, cols].
    let mut descent = errors.matmul(moments)?.flatten_all()?.to_vec1::<f32>()?;
    drop(errors);
    for _ in 0..passes {
        for index in 0..groups {
            let start = index * group;
            let strip = moments.narrow(0, start, group)?.contiguous()?;
            let block = strip.narrow(1, start, group)?.flatten_all()?.to_vec1::<f32>()?;
            let mut moved = vec![0.0; rows * group];
            let (spec, float) = (matrix.spec, matrix.float);
            moved
                .par_chunks_mut(group)
                .zip(descent.par_chunks(cols))
                .zip(matrix.codes.par_chunks_mut(cols))
                .zip(matrix.scales.par_chunks_mut(groups).zip(matrix.biases.par_chunks_mut(groups)))
                .for_each(|(((moved, descent), codes), (scales, biases))| {
                    let group_scale = GroupScale { scale: scales[index], bias: biases[index] };
                    let mut descent = descent[start..start + group].to_vec();
                    let codes = &mut codes[start..start + group];
                    let group_scale = group_scale.refit(float, codes, &mut descent, moved, &block);
                    group_scale.move_codes(
                        f32::from(spec.largest_code()),
                        codes,
                        &mut descent,
                        moved,
                        &block,
                    );
                    (scales[index], biases[index]) = (group_scale.scale, group_scale.bias);
                });
            let change = Tensor::from_vec(moved, (rows, group), &Device::Cpu)?.matmul(&strip)?;
            let change = change.flatten_all()?.to_vec1::<f32>()?;
            descent.par_iter_mut().zip(change.par_iter()).for_each(|(descent, change)| *descent -= change);
        }
    }
    Ok(())
}

/// Scale and bias of a group.
///
/// In the methods `descent` [group] is the remaining error times the moments (half of the negative gradient), `moved`
/// [group] accumulates the change of the weights, and `block` [group, group] are the moments within the group.
#[derive(Clone, Copy)]
struct GroupScale {
    scale: f32,
    bias: f32,
}

impl GroupScale {
    /// Returns the scale and bias of least error for these codes, all other groups fixed.
    fn refit(
        self,
        float: q35_quant::FloatType,
        codes: &[u8],
        descent: &mut [f32],
        moved: &mut [f32],
        block: &[f32],
    ) -> Self {
        let group = codes.len();
        // The products of the block with the codes and with ones.
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
        let (descent_codes, descent_ones) = (dot(descent), sum(descent));
        let determinant = cc * n - c * c;
        if determinant <= 1e-6 * cc * n {
            return self;
        }
        let scale = (descent_codes * n - descent_ones * c) / determinant;
        let bias = (descent_ones * cc - descent_codes * c) / determinant;
        let next = Self {
            scale: float.round(self.scale + scale as f32),
            bias: float.round(self.bias + bias as f32),
        };
        // Rounding to the storage type can increase the error.
        let (scale, bias) = (f64::from(next.scale - self.scale), f64::from(next.bias - self.bias));
        let gain = 2.0 * (scale * descent_codes + bias * descent_ones)
            - (scale * scale * cc + 2.0 * scale * bias * c + bias * bias * n);
        if gain <= 0.0 {
            return self;
        }
        let (scale, bias) = (scale as f32, bias as f32);
        for k in 0..group {
            moved[k] += scale * f32::from(codes[k]) + bias;
            descent[k] -= scale * by_codes[k] + bias * by_ones[k];
        }
        next
    }

    /// Sets each code in turn to its best value.
    fn move_codes(
        self,
        largest: f32,
        codes: &mut [u8],
        descent: &mut [f32],
        moved: &mut [f32],
        block: &[f32],
    ) {
        if self.scale == 0.0 {
            return;
        }
        let group = codes.len();
        for k in 0..group {
            let row = &block[k * group..][..group];
            let code = f32::from(codes[k]);
            let best = (code + descent[k] / (row[k] * self.scale)).round_ties_even().clamp(0.0, largest);
            if best != code && row[k] > 0.0 {
                let step = (best - code) * self.scale;
                codes[k] = best as u8;
                moved[k] += step;
                descent.iter_mut().zip(row).for_each(|(descent, h)| *descent -= step * h);
            }
        }
    }
}
