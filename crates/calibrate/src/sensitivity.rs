//! How much the model's predictions suffer from errors in each tensor, and the bits that follow from it.
//!
//! For small errors E of a tensor the KL divergence is half of sum_ij F_ij E_ij^2, errors of different weights being
//! taken as independent, where F is the Fisher information: the mean square of the gradient of log p(label) with labels
//! drawn from the model itself. Of F only the sums over rows and over columns are kept and F_ij taken as their product
//! over the total: two vectors instead of a matrix. Gradients of many tokens are squared in sum, which is right because
//! labels drawn at different tokens are uncorrelated.

use std::collections::BTreeMap;

use q35_model::TensorSpec;
use q35_quant::FloatType;
use q35_quant::affine::AffineSpec;
use rayon::prelude::*;

use crate::allocate::{Choice, allocate};
use crate::grid::Grid;
use crate::passes::gradients;
use crate::random::Random;
use crate::softmax::softmax_in_place;
use crate::tower::Tower;
use crate::{CalibrateError, Decision};

/// Bits and group sizes that a tensor may be stored with.
const BITS: [u32; 5] = [3, 4, 5, 6, 8];
const GROUP_SIZES: [usize; 3] = [32, 64, 128];

/// Rows of a tensor on which its rounding errors are tried out.
const SAMPLED_ROWS: usize = 128;

/// The sums of a tensor's Fisher information per token.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct Marginals {
    pub(crate) by_row: Vec<f64>,
    pub(crate) by_col: Vec<f64>,
}

/// The Fisher information of every quantizable tensor, from `batches` of windows.
pub(crate) fn fisher(
    tower: &Tower<'_>,
    batches: &[Vec<&[u32]>],
    seed: u64,
    done: &mut dyn FnMut(usize) -> Result<(), CalibrateError>,
) -> Result<BTreeMap<String, Marginals>, CalibrateError> {
    let vocab = tower.config.vocab_size;
    let mut sums: BTreeMap<String, Marginals> = BTreeMap::new();
    let mut tokens = 0;
    for (index, windows) in batches.iter().enumerate() {
        let mut random = Random::new(seed ^ (index as u64 + 1) << 32);
        let mut sampled = |_: usize, logits: &mut [f32]| {
            let draws: Vec<f32> = logits.chunks(vocab).map(|_| random.uniform()).collect();
            logits.par_chunks_mut(vocab).zip(draws).for_each(|(row, draw)| {
                softmax_in_place(row);
                let mut left = draw;
                let label = row.iter().position(|p| {
                    left -= p;
                    left < 0.0
                });
                row[label.unwrap_or(vocab - 1)] -= 1.0;
            });
            Ok(())
        };
        let mut add = |name: &str, gradient: &candle_core::Tensor| {
            if !tower.table[name].role.is_quantized() {
                return Ok(());
            }
            let (rows, cols) = gradient.dims2()?;
            let values = gradient.flatten_all()?.to_vec1::<f32>()?;
            let sum = sums
                .entry(name.to_owned())
                .or_insert_with(|| Marginals { by_row: vec![0.0; rows], by_col: vec![0.0; cols] });
            for (row, total) in values.chunks(cols).zip(&mut sum.by_row) {
                for (value, by_col) in row.iter().zip(&mut sum.by_col) {
                    let square = f64::from(value * value);
                    *total += square;
                    *by_col += square;
                }
            }
            Ok(())
        };
        gradients(tower, windows, true, &mut sampled, &mut add)?;
        tokens += windows.iter().map(|w| w.len()).sum::<usize>();
        done(index)?;
    }
    for sum in sums.values_mut() {
        let per_token = |s: &mut f64| *s /= tokens as f64;
        sum.by_row.iter_mut().for_each(per_token);
        sum.by_col.iter_mut().for_each(per_token);
    }
    Ok(sums)
}

/// Bytes of a tensor stored as `spec`.
pub(crate) fn stored_bytes(spec: AffineSpec, float: FloatType, weights: usize) -> u64 {
    let group_bytes = 2 * float.size() as u64;
    weights as u64 * u64::from(spec.bits()) / 8 + group_bytes * (weights / spec.group_size()) as u64
}

fn specs(cols: usize) -> Vec<AffineSpec> {
    let all = BITS.iter().flat_map(|bits| GROUP_SIZES.iter().map(|group| AffineSpec::new(*bits, *group)));
    all.filter_map(Result::ok).filter(|spec| spec.fits(cols)).collect()
}

/// The KL divergence expected of rounding the tensor as each of `specs`.
fn expected_losses(
    values: &[f32],
    float: FloatType,
    marginals: &Marginals,
    specs: &[AffineSpec],
) -> Vec<f64> {
    let (rows, cols) = (marginals.by_row.len(), marginals.by_col.len());
    let step = rows.div_ceil(SAMPLED_ROWS);
    let chosen: Vec<usize> = (0..rows).step_by(step).collect();
    let sample: Vec<f32> =
        chosen.iter().flat_map(|row| values[row * cols..(row + 1) * cols].iter().copied()).collect();
    let total: f64 = marginals.by_row.iter().sum();
    let sampled: f64 = chosen.iter().map(|row| marginals.by_row[*row]).sum();
    if sampled <= 0.0 || total <= 0.0 {
        return vec![0.0; specs.len()];
    }
    let importance: Vec<f32> = marginals.by_col.iter().map(|c| (c / total) as f32).collect();
    let loss = |spec: &AffineSpec| {
        let back = Grid::round(*spec, float, &sample, &importance).dequantize();
        let rows = chosen.iter().zip(sample.chunks(cols)).zip(back.chunks(cols));
        let sum: f64 = rows
            .map(|((row, values), back)| {
                let errors = values.iter().zip(back).zip(&marginals.by_col);
                let by_cols: f64 = errors.map(|((v, b), c)| f64::from(v - b).powi(2) * c).sum();
                marginals.by_row[*row] / total * by_cols
            })
            .sum();
        0.5 * sum * total / sampled
    };
    specs.iter().map(loss).collect()
}

/// Chooses bits and group size for every quantizable tensor within `budget_bytes` of codes, scales and biases.
pub(crate) fn decide(
    tower: &Tower<'_>,
    marginals: &BTreeMap<String, Marginals>,
    budget_bytes: u64,
) -> Result<BTreeMap<String, Decision>, CalibrateError> {
    let tensors: Vec<(&String, &TensorSpec)> =
        tower.table.iter().filter(|(_, s)| s.role.is_quantized()).collect();
    let mut options = Vec::with_capacity(tensors.len());
    for (name, spec) in &tensors {
        let (rows, cols) = (spec.shape[0], spec.shape[1]);
        let specs = specs(cols);
        if specs.is_empty() {
            return Err(CalibrateError::Shape { name: (*name).clone(), cols });
        }
        let losses = expected_losses(&tower.float_values(name)?, tower.float, &marginals[*name], &specs);
        let choices: Vec<Choice> = specs
            .iter()
            .zip(losses)
            .map(|(spec, loss)| Choice { bytes: stored_bytes(*spec, tower.float, rows * cols), loss })
            .collect();
        options.push((specs, choices));
    }
    let choices: Vec<Vec<Choice>> = options.iter().map(|(_, choices)| choices.clone()).collect();
    let smallest = || choices.iter().map(|c| c.iter().map(|c| c.bytes).min().unwrap_or(0)).sum();
    let chosen = allocate(&choices, budget_bytes)
        .ok_or_else(|| CalibrateError::Budget { budget_bytes, smallest_bytes: smallest() })?;
    let decisions =
        tensors.iter().zip(options.iter().zip(chosen)).map(|((name, _), ((specs, choices), index))| {
            let decision = Decision {
                bits: specs[index].bits(),
                group_size: specs[index].group_size(),
                expected_kl: choices[index].loss,
            };
            ((*name).clone(), decision)
        });
    Ok(decisions.collect())
}
