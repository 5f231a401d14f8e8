//! Sensitivity of the model's predictions to errors in each tensor, and the bit allocation that follows from it.
//!
//! For small errors E of a tensor, taken as independent of each other, the KL divergence is sum_ij F_ij E_ij^2 / 2, where
//! F is the Fisher information: the mean square of the gradient of log p(label) with labels sampled from the model itself.
//! Only the sums of F over rows and over columns are stored, and F_ij is approximated by their product over the total: two
//! vectors instead of a matrix. The gradient of a whole batch is squared instead of each token's, which has the same
//! expectation because labels sampled at different tokens are uncorrelated.
//!
//! The same pass measures the weight of each token: rounding weights the inputs of a layer by the squared gradient with
//! respect to its output.

use std::collections::BTreeMap;

use candle_core::Tensor;
use q35_architecture::TensorSpec;
use q35_metrics::softmax_in_place;
use q35_quant::FloatType;
use q35_quant::affine::AffineSpec;
use q35_random::SplitMix64;
use rayon::prelude::*;

use crate::bit_allocation::{StorageOption, allocate};
use crate::gradients::{GradientsFor, gradients};
use crate::parallel::in_order;
use crate::partially_quantized_model::PartiallyQuantizedModel;
use crate::quantized_matrix::QuantizedMatrix;
use crate::second_moments::SecondMoments;
use crate::self_generated::sample;
use crate::{BitAllocation, CalibrateError};

/// Bits and group sizes that the allocation chooses from.
const BITS: [u32; 5] = [3, 4, 5, 6, 8];
const GROUP_SIZES: [usize; 3] = [32, 64, 128];

/// Number of rows of a tensor whose rounding errors are measured.
const SAMPLED_ROWS: usize = 128;

/// Sums of a tensor's Fisher information over columns and over rows, per token.
#[derive(Clone, Debug, Default)]
pub(crate) struct FisherMarginals {
    pub(crate) by_row: Vec<f64>,
    pub(crate) by_col: Vec<f64>,
}

/// Results of the backward passes over the calibration text.
pub(crate) struct Sensitivity {
    /// Fisher marginals of every quantizable tensor, from the first few batches.
    pub(crate) marginals: BTreeMap<String, FisherMarginals>,
    /// Error weights, from all batches.
    pub(crate) error_weights: ErrorWeights,
}

/// Weights of errors at each token and in the two tables, all in squared gradients of log p(label).
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ErrorWeights {
    /// [layers][tokens]: squared gradient with respect to the residual stream after the layer, in the order of batches,
    /// windows and tokens.
    pub(crate) tokens: Vec<Vec<f32>>,
    /// [hidden, hidden], per token: second moments of the gradient with respect to the embedding's output. They weight
    /// errors of the table in its use as lookup.
    pub(crate) lookup: Vec<f32>,
    /// [hidden, hidden], per token: second moments of the head's inputs, each token weighted by the variance
    /// sum p (1 - p) of its label.
    pub(crate) head: Vec<f32>,
}

/// Measures over `batches` of windows, `parallel` at a time. The Fisher information of the layers' weights is measured
/// over the first `fisher_batches`.
pub(crate) fn measure(
    model: &PartiallyQuantizedModel<'_>,
    batches: &[Vec<&[u32]>],
    fisher_batches: usize,
    parallel: usize,
    seed: u64,
    done: &mut dyn FnMut(usize) -> Result<(), CalibrateError>,
) -> Result<Sensitivity, CalibrateError> {
    let mut sum = PartialSums::new(model);
    let table = model.tensor("embed_tokens.weight")?;
    in_order(
        batches,
        parallel,
        |index, windows| {
            PartialSums::measure(
                model,
                &table,
                windows,
                index < fisher_batches,
                seed ^ ((index as u64 + 1) << 32),
            )
        },
        |index, part| {
            sum.add(part)?;
            done(index)
        },
    )?;
    let count = |batches: &[Vec<&[u32]>]| batches.iter().flatten().map(|w| w.len()).sum::<usize>() as f64;
    let (some, all) = (count(&batches[..fisher_batches.min(batches.len())]), count(batches));
    let tied = model.config.tie_word_embeddings;
    let mut marginals = sum.layers;
    marginals.values_mut().for_each(|m| m.divide(some));
    for (name, mut table) in
        [("embed_tokens.weight", sum.lookup_marginals), ("lm_head.weight", sum.head_marginals)]
    {
        table.divide(all);
        // The errors of a tied table affect both of its uses.
        let name = if tied { "embed_tokens.weight" } else { name };
        marginals.entry(name.to_owned()).or_default().add(table);
    }
    let error_weights =
        ErrorWeights { tokens: sum.tokens, lookup: sum.lookup.sum_over(all)?, head: sum.head.sum_over(all)? };
    Ok(Sensitivity { marginals, error_weights })
}

/// Sums over some batches.
struct PartialSums {
    layers: BTreeMap<String, FisherMarginals>,
    tokens: Vec<Vec<f32>>,
    lookup: SecondMoments,
    head: SecondMoments,
    lookup_marginals: FisherMarginals,
    head_marginals: FisherMarginals,
}

impl PartialSums {
    fn new(model: &PartiallyQuantizedModel<'_>) -> Self {
        let (vocab, hidden) = (model.config.vocab_size, model.config.hidden_size);
        let table = || FisherMarginals { by_row: vec![0.0; vocab], by_col: vec![0.0; hidden] };
        Self {
            layers: BTreeMap::new(),
            tokens: vec![Vec::new(); model.config.num_hidden_layers],
            lookup: SecondMoments::default(),
            head: SecondMoments::default(),
            lookup_marginals: table(),
            head_marginals: table(),
        }
    }

    /// Measures one batch.
    fn measure(
        model: &PartiallyQuantizedModel<'_>,
        table: &Tensor,
        windows: &[&[u32]],
        with_fisher: bool,
        seed: u64,
    ) -> Result<Self, CalibrateError> {
        let Self { mut layers, mut tokens, mut lookup, mut head, mut lookup_marginals, mut head_marginals } =
            Self::new(model);
        let vocab = model.config.vocab_size;
        let mut random = SplitMix64::new(seed);
        let mut label_gradient = |_: usize, rows: &Tensor, logits: &mut [f32]| {
            let draws: Vec<f32> = logits.chunks(vocab).map(|_| random.uniform_f32()).collect();
            let sizes = rows.sqr()?.sum(1)?.to_vec1::<f32>()?;
            logits.par_chunks_mut(vocab).for_each(softmax_in_place);
            let mut variances = Vec::with_capacity(draws.len());
            for (row, size) in logits.chunks(vocab).zip(sizes) {
                // The expected square of the gradient with respect to a logit, p (1 - p), needs no sampled label.
                let mut variance_sum = 0.0;
                for (p, total) in row.iter().zip(&mut head_marginals.by_row) {
                    let variance = p * (1.0 - p);
                    variance_sum += variance;
                    *total += f64::from(variance * size);
                }
                variances.push(variance_sum);
            }
            logits.par_chunks_mut(vocab).zip(draws).for_each(|(row, draw)| {
                let label = sample(row, draw);
                row[label] -= 1.0;
            });
            Ok(head.add_weighted(rows, &variances)?)
        };
        let mut add = |name: &str, gradient: &Tensor| {
            if !model.table[name].role.is_quantized() {
                return Ok(());
            }
            let squares = gradient.sqr()?;
            let by_row = squares.sum(1)?.to_vec1::<f32>()?.into_iter().map(f64::from).collect();
            let by_col = squares.sum(0)?.to_vec1::<f32>()?.into_iter().map(f64::from).collect();
            layers.insert(name.to_owned(), FisherMarginals { by_row, by_col });
            Ok(())
        };
        let ids = windows.concat();
        let mut stream = |layer: Option<usize>, gradient: &Tensor| {
            let rows = gradient.flatten_to(1)?;
            let squares = rows.sqr()?;
            let by_token = squares.sum(1)?.to_vec1::<f32>()?;
            let Some(layer) = layer else {
                for (id, square) in ids.iter().zip(by_token) {
                    lookup_marginals.by_row[*id as usize] += f64::from(square);
                }
                let by_col = squares.sum(0)?.to_vec1::<f32>()?;
                lookup_marginals.by_col = by_col.into_iter().map(f64::from).collect();
                return Ok(lookup.add(&rows)?);
            };
            tokens[layer] = by_token;
            Ok(())
        };
        let wanted = if with_fisher { GradientsFor::Layers } else { GradientsFor::ResidualStream };
        gradients(model, table, windows, wanted, &mut label_gradient, &mut add, &mut stream)?;
        let hidden = model.config.hidden_size;
        let moments = head.sum_over(1.0)?;
        head_marginals.by_col = (0..hidden).map(|k| f64::from(moments[k * hidden + k])).collect();
        Ok(Self { layers, tokens, lookup, head, lookup_marginals, head_marginals })
    }

    fn add(&mut self, other: Self) -> Result<(), CalibrateError> {
        for (name, marginals) in other.layers {
            self.layers.entry(name).or_default().add(marginals);
        }
        self.tokens.iter_mut().zip(other.tokens).for_each(|(sum, tokens)| sum.extend(tokens));
        self.lookup_marginals.add(other.lookup_marginals);
        self.head_marginals.add(other.head_marginals);
        self.lookup.merge(other.lookup)?;
        Ok(self.head.merge(other.head)?)
    }
}

impl FisherMarginals {
    fn add(&mut self, other: Self) {
        for (sum, part) in [(&mut self.by_row, other.by_row), (&mut self.by_col, other.by_col)] {
            if sum.is_empty() {
                *sum = part;
            } else {
                sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
            }
        }
    }

    fn divide(&mut self, count: f64) {
        self.by_row.iter_mut().chain(&mut self.by_col).for_each(|s| *s /= count);
    }
}

/// Size in bytes of a matrix stored as `spec`.
pub(crate) fn stored_bytes(spec: AffineSpec, float: FloatType, weights: usize) -> u64 {
    let group_bytes = 2 * float.size() as u64;
    weights as u64 * u64::from(spec.bits()) / 8 + group_bytes * (weights / spec.group_size()) as u64
}

/// Options for a matrix with rows of `cols` weights.
fn specs(cols: usize) -> Vec<AffineSpec> {
    let all = BITS.iter().flat_map(|bits| GROUP_SIZES.iter().map(|group| AffineSpec::new(*bits, *group)));
    all.filter_map(Result::ok).filter(|spec| spec.fits(cols)).collect()
}

/// Size in bytes of all matrices at the smallest option of each.
pub(crate) fn smallest_bytes(model: &PartiallyQuantizedModel<'_>) -> Result<u64, CalibrateError> {
    let tensors = model.table.iter().filter(|(_, spec)| spec.role.is_quantized());
    let smallest = tensors.map(|(name, tensor)| {
        let (rows, cols) = (tensor.shape[0], tensor.shape[1]);
        let sizes = specs(cols).into_iter().map(|spec| stored_bytes(spec, model.float, rows * cols));
        sizes.min().ok_or_else(|| CalibrateError::Shape { name: name.clone(), cols })
    });
    smallest.sum()
}

/// Returns the expected KL divergence of rounding a tensor by each of `specs`.
fn expected_losses(
    values: &[f32],
    float: FloatType,
    marginals: &FisherMarginals,
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
        let back = QuantizedMatrix::round(*spec, float, &sample, &importance).dequantize();
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

/// Chooses bits and group size of every matrix within `budget_bytes` of codes, scales and biases.
pub(crate) fn allocate_bits(
    model: &PartiallyQuantizedModel<'_>,
    marginals: &BTreeMap<String, FisherMarginals>,
    budget_bytes: u64,
) -> Result<BTreeMap<String, BitAllocation>, CalibrateError> {
    let tensors: Vec<(&String, &TensorSpec)> =
        model.table.iter().filter(|(_, s)| s.role.is_quantized()).collect();
    let smallest_bytes = smallest_bytes(model)?;
    let mut options = Vec::with_capacity(tensors.len());
    for (name, spec) in &tensors {
        let (rows, cols) = (spec.shape[0], spec.shape[1]);
        let specs = specs(cols);
        let losses = expected_losses(&model.float_values(name)?, model.float, &marginals[*name], &specs);
        let choices: Vec<StorageOption> = specs
            .iter()
            .zip(losses)
            .map(|(spec, loss)| StorageOption { bytes: stored_bytes(*spec, model.float, rows * cols), loss })
            .collect();
        options.push((specs, choices));
    }
    let choices: Vec<Vec<StorageOption>> = options.iter().map(|(_, choices)| choices.clone()).collect();
    let chosen =
        allocate(&choices, budget_bytes).ok_or(CalibrateError::Budget { budget_bytes, smallest_bytes })?;
    let allocations =
        tensors.iter().zip(options.iter().zip(chosen)).map(|((name, _), ((specs, choices), index))| {
            let allocation = BitAllocation {
                bits: specs[index].bits(),
                group_size: specs[index].group_size(),
                expected_kl: choices[index].loss,
            };
            ((*name).clone(), allocation)
        });
    Ok(allocations.collect())
}
