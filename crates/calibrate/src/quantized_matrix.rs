//! A quantized matrix with unpacked codes, the form in which calibration changes it.

use std::ops::Range;

use q35_quant::FloatType;
use q35_quant::affine::{AffineSpec, PackedMatrix, pack_codes};
use rayon::prelude::*;

/// Weight (r, c) is `scale * code + bias` with its group's scale and bias (MLX affine). Scales and biases are
/// representable in `float` and held as f32.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedMatrix {
    /// Bits and group size.
    pub spec: AffineSpec,
    /// Storage type of scales and biases.
    pub float: FloatType,
    /// Number of rows.
    pub rows: usize,
    /// Weights per row.
    pub cols: usize,
    /// Codes [rows, cols], one per byte.
    pub codes: Vec<u8>,
    /// Scales [rows, groups].
    pub scales: Vec<f32>,
    /// Biases [rows, groups].
    pub biases: Vec<f32>,
}

impl QuantizedMatrix {
    /// Returns the weights [rows, cols].
    pub fn dequantize(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.codes.len()];
        let group = self.spec.group_size();
        values.par_chunks_mut(group).zip(self.codes.par_chunks(group)).enumerate().for_each(
            |(index, (values, codes))| {
                let (scale, bias) = (self.scales[index], self.biases[index]);
                values.iter_mut().zip(codes).for_each(|(v, c)| *v = scale * f32::from(*c) + bias);
            },
        );
        values
    }

    /// Packs some rows in MLX's layout.
    ///
    /// # Panics
    /// When `rows` is out of range.
    pub fn pack_rows(&self, rows: Range<usize>) -> PackedMatrix {
        let mut packed = PackedMatrix::zeroed(self.spec, self.float, rows.len(), self.cols);
        let row_bytes = packed.words.len() / rows.len().max(1);
        packed
            .words
            .par_chunks_mut(row_bytes.max(1))
            .zip(self.codes[rows.start * self.cols..rows.end * self.cols].par_chunks(self.cols))
            .for_each(|(words, codes)| pack_codes(self.spec.bits(), codes, words));
        let groups = self.cols / self.spec.group_size();
        let groups = rows.start * groups..rows.end * groups;
        packed.scales.clear();
        packed.biases.clear();
        self.float.narrow(&self.scales[groups.clone()], &mut packed.scales);
        self.float.narrow(&self.biases[groups], &mut packed.biases);
        packed
    }

    /// Rounds `values` [rows, cols] to nearest. Scale and bias of each group are searched for the least squared error
    /// weighted by `importance` `[cols]`.
    pub fn round(spec: AffineSpec, float: FloatType, values: &[f32], importance: &[f32]) -> Self {
        let (cols, group) = (importance.len(), spec.group_size());
        let rows = values.len() / cols;
        let mut codes = vec![0; values.len()];
        let ranges: Vec<(f32, f32)> = codes
            .par_chunks_mut(group)
            .zip(values.par_chunks(group))
            .enumerate()
            .map(|(index, (codes, values))| {
                let start = index * group % cols;
                let fit = fit_group(spec, float, values, &importance[start..start + group]);
                fit.encode_all(values, codes);
                (fit.scale, fit.bias)
            })
            .collect();
        let (scales, biases) = ranges.into_iter().unzip();
        Self { spec, float, rows, cols, codes, scales, biases }
    }
}

/// Scale and bias of one group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct GroupFit {
    pub(crate) scale: f32,
    pub(crate) bias: f32,
    float: FloatType,
    inverse: f32,
    largest: f32,
}

impl GroupFit {
    fn new(spec: AffineSpec, float: FloatType, scale: f32, bias: f32) -> Self {
        let (scale, bias) = (float.round(scale), float.round(bias));
        let inverse = if scale == 0.0 { 0.0 } else { scale.recip() };
        Self { scale, bias, float, inverse, largest: f32::from(spec.largest_code()) }
    }

    /// The code nearest to `value`.
    #[inline]
    pub(crate) fn code(self, value: f32) -> f32 {
        // Adding and subtracting 1.5 * 2^23 rounds to nearest, ties to even, and vectorises.
        const ROUND: f32 = 12_582_912.0;
        (((value - self.bias) * self.inverse).clamp(0.0, self.largest) + ROUND) - ROUND
    }

    /// The weight of `code`.
    #[inline]
    pub(crate) fn value(self, code: f32) -> f32 {
        self.scale * code + self.bias
    }

    fn encode_all(self, values: &[f32], codes: &mut [u8]) {
        codes.iter_mut().zip(values).for_each(|(code, value)| *code = self.code(*value) as u8);
    }

    fn error(self, values: &[f32], importance: &[f32]) -> f32 {
        let error = |value: f32, weight: f32| {
            let e = value - self.value(self.code(value));
            weight * e * e
        };
        values.iter().zip(importance).map(|(v, w)| error(*v, *w)).sum()
    }

    /// Refits scale and bias to the codes of the current fit by weighted least squares. `None` if all codes are equal.
    fn refit(self, spec: AffineSpec, values: &[f32], importance: &[f32]) -> Option<Self> {
        let (mut n, mut c, mut cc, mut v, mut cv) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for (value, weight) in values.iter().zip(importance) {
            let code = self.code(*value);
            n += weight;
            c += weight * code;
            cc += weight * code * code;
            v += weight * value;
            cv += weight * code * value;
        }
        let determinant = n * cc - c * c;
        if determinant <= 1e-6 * n * cc {
            return None;
        }
        let scale = (n * cv - c * v) / determinant;
        Some(Self::new(spec, self.float, scale, (v - scale * c) / n))
    }
}

/// Candidate clipping factors of the range on either side of its middle.
const CLIP_FACTORS: [f32; 5] = [1.0, 0.93, 0.86, 0.78, 0.7];

/// Fits scale and bias of one group of `values` for the least squared error weighted by `importance`: a grid search over
/// clipped ranges, each refitted, then up to three more refits of the best.
pub(crate) fn fit_group(spec: AffineSpec, float: FloatType, values: &[f32], importance: &[f32]) -> GroupFit {
    let (low, high) = values.iter().fold((f32::MAX, f32::MIN), |(low, high), v| (low.min(*v), high.max(*v)));
    let middle = 0.5 * (low + high);
    let levels = f32::from(spec.largest_code());
    let mut best = GroupFit::new(spec, float, (high - low) / levels, low);
    let mut least = best.error(values, importance);
    for low_factor in CLIP_FACTORS {
        for high_factor in CLIP_FACTORS {
            let (low, high) = (middle + (low - middle) * low_factor, middle + (high - middle) * high_factor);
            let clipped = GroupFit::new(spec, float, (high - low) / levels, low);
            let Some(fit) = clipped.refit(spec, values, importance) else { continue };
            let error = fit.error(values, importance);
            if error < least {
                (best, least) = (fit, error);
            }
        }
    }
    for _ in 0..3 {
        let Some(fit) = best.refit(spec, values, importance) else { break };
        let error = fit.error(values, importance);
        if error >= least {
            break;
        }
        (best, least) = (fit, error);
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use q35_quant::affine::{dequantize_rows, group_parameters};
    use q35_testkit::Random;

    const BF16: FloatType = FloatType::Bf16;

    fn values(count: usize) -> Vec<f32> {
        let mut random = Random::new(8);
        (0..count).map(|_| BF16.round(random.normal())).collect()
    }

    #[test]
    fn packing_keeps_every_weight() {
        for (bits, group) in [(2, 32), (3, 64), (4, 128), (5, 32), (6, 64), (8, 128)] {
            let spec = AffineSpec::new(bits, group).unwrap();
            let matrix = QuantizedMatrix::round(spec, BF16, &values(3 * 256), &[1.0; 256]);
            let packed = matrix.pack_rows(1..3);
            let mut back = vec![0.0; 2 * 256];
            dequantize_rows(&packed.view(), 0..2, &mut back);
            assert_eq!(back, matrix.dequantize()[256..]);
        }
    }

    #[test]
    fn a_searched_range_errs_less_than_the_nearest() {
        for bits in [2, 3, 4, 5] {
            let spec = AffineSpec::new(bits, 64).unwrap();
            let (mut plain, mut searched) = (0.0, 0.0);
            for group in values(64 * 50).chunks(64) {
                let (scale, bias) = group_parameters(spec, group);
                plain += GroupFit::new(spec, BF16, scale, bias).error(group, &[1.0; 64]);
                searched += fit_group(spec, BF16, group, &[1.0; 64]).error(group, &[1.0; 64]);
            }
            assert!(searched < 0.9 * plain, "{bits} bits: {searched} against {plain}");
        }
    }

    #[test]
    fn a_constant_group_stays_exact() {
        let spec = AffineSpec::new(4, 32).unwrap();
        let fit = fit_group(spec, BF16, &[0.75; 32], &[1.0; 32]);
        assert_eq!(fit.value(fit.code(0.75)), 0.75);
    }
}
