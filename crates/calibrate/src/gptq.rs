//! GPTQ: rounding with error feedback, so that errors cancel in the layer's output.
//!
//! For weights W and input second moments H = E[x x^T], the output's squared error is tr((W - Q) H (W - Q)^T). With
//! H = R R^T, R upper triangular, it is the sum over columns k of R_kk^2 times the squared error of column k *after* the
//! errors of the columns before were fed into it: q_k = round(w_k + sum_{j<k} (w_j - q_j) R_jk / R_kk). This is GPTQ
//! (Frantar et al., 2022) in the form that factors H instead of its inverse. Scale and bias of a group are fitted when its
//! first column is reached, to the weights with feedback, each column weighted by its R_kk^2.

use candle_core::{Device, Result, Tensor};
use q35_quant::FloatType;
use q35_quant::affine::AffineSpec;
use rayon::prelude::*;

use crate::cholesky::upper_factor;
use crate::coordinate_descent::refine;
use crate::quantized_matrix::{QuantizedMatrix, fit_group};

/// Feedback factors of a matrix, computed from the second moments of its inputs.
#[derive(Clone, Debug)]
pub struct Feedback {
    /// [cols, cols]: R_jk / R_kk above the diagonal, zero elsewhere.
    shares: Vec<f32>,
    /// [cols]: R_kk^2.
    pub(crate) importance: Vec<f32>,
    /// [cols, cols]: the damped moments.
    moments: Tensor,
}

impl Feedback {
    /// Factors second moments [cols, cols] after adding `damping` times the mean of the diagonal to the diagonal.
    ///
    /// # Errors
    /// A failure of candle.
    pub fn new(moments: &[f32], cols: usize, damping: f64) -> Result<Self> {
        let mut h: Vec<f64> = moments.iter().map(|m| f64::from(*m)).collect();
        let mean = (0..cols).map(|k| h[k * cols + k]).sum::<f64>() / cols as f64;
        // If all inputs are zero, any positive diagonal keeps the factor finite.
        let mean = if mean > 0.0 { mean } else { 1.0 };
        (0..cols).for_each(|k| h[k * cols + k] += damping * mean);
        let damped: Vec<f32> = h.iter().map(|h| *h as f32).collect();
        let damped = Tensor::from_vec(damped, (cols, cols), &Device::Cpu)?;
        let factor = upper_factor(h, cols)?;
        let importance = (0..cols).map(|k| factor[k * cols + k].powi(2) as f32).collect();
        let mut shares = vec![0.0; cols * cols];
        shares.par_chunks_mut(cols).enumerate().for_each(|(j, row)| {
            for k in j + 1..cols {
                row[k] = (factor[j * cols + k] / factor[k * cols + k]) as f32;
            }
        });
        Ok(Self { shares, importance, moments: damped })
    }
}

/// Weights per chunk of rows; it limits the memory that a large table needs.
const WEIGHTS_PER_CHUNK: usize = 1 << 24;

/// Quantizes `values` [rows, cols] with error feedback, followed by `passes` of coordinate descent. Scales and biases are
/// rounded to `float`. Rows are independent of each other.
///
/// # Errors
/// A failure of candle.
pub fn round_with_feedback(
    spec: AffineSpec,
    float: FloatType,
    values: &[f32],
    feedback: &Feedback,
    passes: usize,
) -> Result<QuantizedMatrix> {
    let cols = feedback.importance.len();
    let (mut codes, mut scales, mut biases) = (Vec::new(), Vec::new(), Vec::new());
    for values in values.chunks((WEIGHTS_PER_CHUNK / cols).max(1) * cols) {
        let mut chunk = round_rows(spec, float, values, feedback)?;
        refine(&mut chunk, values, &feedback.moments, passes)?;
        codes.append(&mut chunk.codes);
        scales.append(&mut chunk.scales);
        biases.append(&mut chunk.biases);
    }
    Ok(QuantizedMatrix { spec, float, rows: values.len() / cols, cols, codes, scales, biases })
}

fn round_rows(
    spec: AffineSpec,
    float: FloatType,
    values: &[f32],
    feedback: &Feedback,
) -> Result<QuantizedMatrix> {
    let cols = feedback.importance.len();
    let rows = values.len() / cols;
    let (group, groups) = (spec.group_size(), cols / spec.group_size());
    let mut matrix = QuantizedMatrix {
        spec,
        float,
        rows,
        cols,
        codes: vec![0; values.len()],
        scales: vec![0.0; rows * groups],
        biases: vec![0.0; rows * groups],
    };
    let device = Device::Cpu;
    let shares = Tensor::from_slice(&feedback.shares, (cols, cols), &device)?;
    // Errors against the original weights, one tensor [rows, group] per finished group.
    let mut errors: Vec<Tensor> = Vec::with_capacity(groups);
    for index in 0..groups {
        let start = index * group;
        let fed = if errors.is_empty() {
            vec![0.0; rows * group]
        } else {
            let above = shares.narrow(0, 0, start)?.narrow(1, start, group)?.contiguous()?;
            Tensor::cat(&errors, 1)?.matmul(&above)?.flatten_all()?.to_vec1::<f32>()?
        };
        let importance = &feedback.importance[start..start + group];
        let mut block_errors = vec![0.0; rows * group];
        let fits: Vec<(f32, f32)> = block_errors
            .par_chunks_mut(group)
            .zip(fed.par_chunks(group))
            .zip(matrix.codes.par_chunks_mut(cols))
            .zip(values.par_chunks(cols))
            .map(|(((errors, fed), codes), values)| {
                let values = &values[start..start + group];
                let targets: Vec<f32> = values.iter().zip(fed).map(|(v, f)| v + f).collect();
                let fit = fit_group(spec, float, &targets, importance);
                let mut inner = vec![0.0; group];
                for k in 0..group {
                    let code = fit.code(targets[k] + inner[k]);
                    codes[start + k] = code as u8;
                    let error = values[k] - fit.value(code);
                    errors[k] = error;
                    let share = &feedback.shares[(start + k) * cols + start..][k + 1..group];
                    inner[k + 1..].iter_mut().zip(share).for_each(|(sum, s)| *sum += error * s);
                }
                (fit.scale, fit.bias)
            })
            .collect();
        for (row, (scale, bias)) in fits.into_iter().enumerate() {
            matrix.scales[row * groups + index] = scale;
            matrix.biases[row * groups + index] = bias;
        }
        errors.push(Tensor::from_vec(block_errors, (rows, group), &device)?);
    }
    Ok(matrix)
}

#[cfg(test)]
mod tests {
    use super::*;
    use q35_testkit::Random;

    /// tr((W - Q) H (W - Q)^T).
    fn output_error(values: &[f32], matrix: &QuantizedMatrix, moments: &[f32]) -> f64 {
        let cols = matrix.cols;
        let errors: Vec<f32> = values.iter().zip(matrix.dequantize()).map(|(v, q)| v - q).collect();
        let row_error = |e: &[f32]| -> f64 {
            (0..cols)
                .map(|i| {
                    let dot: f64 = (0..cols).map(|j| f64::from(moments[i * cols + j] * e[j])).sum();
                    f64::from(e[i]) * dot
                })
                .sum()
        };
        errors.chunks(cols).map(row_error).sum()
    }

    #[test]
    fn feedback_lowers_the_output_error() {
        let (rows, cols, samples) = (16, 128, 512);
        let mut random = Random::new(4);
        let values: Vec<f32> = (0..rows * cols).map(|_| random.normal()).collect();
        // Correlated inputs: a few directions and a little noise.
        let basis: Vec<f32> = (0..8 * cols).map(|_| random.normal()).collect();
        let mut moments = vec![0.0; cols * cols];
        for _ in 0..samples {
            let parts: Vec<f32> = (0..8).map(|_| random.normal()).collect();
            let x: Vec<f32> = (0..cols)
                .map(|c| (0..8).map(|b| parts[b] * basis[b * cols + c]).sum::<f32>() + 0.3 * random.normal())
                .collect();
            for i in 0..cols {
                (0..cols).for_each(|j| moments[i * cols + j] += x[i] * x[j] / samples as f32);
            }
        }
        let spec = AffineSpec::new(4, 32).unwrap();
        let plain = output_error(
            &values,
            &QuantizedMatrix::round(spec, FloatType::Bf16, &values, &[1.0; 128]),
            &moments,
        );
        let feedback = Feedback::new(&moments, cols, 0.01).unwrap();
        let at = |passes: usize| {
            let matrix = round_with_feedback(spec, FloatType::Bf16, &values, &feedback, passes).unwrap();
            output_error(&values, &matrix, &moments)
        };
        let (fed, refined) = (at(0), at(3));
        assert!(fed < 0.3 * plain, "with feedback {fed}, without {plain}");
        assert!(refined < 0.95 * fed, "refined {refined}, before {fed}");
    }

    #[test]
    fn without_correlation_it_is_rounding() {
        let mut moments = vec![0.0; 64 * 64];
        (0..64).for_each(|k| moments[k * 64 + k] = 2.0);
        let mut random = Random::new(5);
        let values: Vec<f32> = (0..4 * 64).map(|_| random.normal()).collect();
        let spec = AffineSpec::new(3, 32).unwrap();
        let feedback = Feedback::new(&moments, 64, 0.01).unwrap();
        let fed = round_with_feedback(spec, FloatType::Bf16, &values, &feedback, 0).unwrap();
        assert_eq!(fed, QuantizedMatrix::round(spec, FloatType::Bf16, &values, &feedback.importance));
    }
}
