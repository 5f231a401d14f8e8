//! How much the model's predictions suffer from errors in each tensor, and the bits that follow from it.
//!
//! For small errors E of a tensor the KL divergence is half of sum_ij F_ij E_ij^2, errors of different weights being
//! taken as independent, where F is the Fisher information: the mean square of the gradient of log p(label) with labels
//! drawn from the model itself. Of F only the sums over rows and over columns are kept and F_ij taken as their product
//! over the total: two vectors instead of a matrix. Gradients of many tokens are squared in sum, which is right because
//! labels drawn at different tokens are uncorrelated.
//!
//! The same pass says at which tokens errors matter: rounding weighs the inputs of a layer by the squared gradient by
//! its output.

use std::collections::BTreeMap;

use candle_core::Tensor;
use q35_architecture::TensorSpec;
use q35_quant::FloatType;
use q35_quant::affine::AffineSpec;
use rayon::prelude::*;

use crate::allocate::{Choice, allocate};
use crate::grid::Grid;
use crate::moments::SecondMoments;
use crate::parallel::in_order;
use crate::passes::{Wanted, gradients};
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
#[derive(Clone, Debug, Default)]
pub(crate) struct Marginals {
    pub(crate) by_row: Vec<f64>,
    pub(crate) by_col: Vec<f64>,
}

/// What a backward pass over the calibration text says of the float model.
pub(crate) struct Measured {
    /// Of every quantizable tensor, from the first few batches.
    pub(crate) marginals: BTreeMap<String, Marginals>,
    /// From all batches.
    pub(crate) guide: Guide,
}

/// How much the errors at each place of the text matter, in the same unit: squares of gradients of log p(label).
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Guide {
    /// [layers][tokens]: by the residual stream after the layer, in the order of batches, windows and tokens.
    pub(crate) tokens: Vec<Vec<f32>>,
    /// [hidden, hidden], per token: second moments of the gradients by the embedding's output, which an error of a
    /// table row used as lookup is multiplied with.
    pub(crate) lookup: Vec<f32>,
    /// [hidden, hidden], per token: second moments of the head's inputs, each token weighted by how undecided it is.
    pub(crate) head: Vec<f32>,
}

/// Measures over `batches` of windows, `side_by_side` at a time; the Fisher information of the layers' weights over the
/// first `by_weights` of them.
pub(crate) fn measure(
    tower: &Tower<'_>,
    batches: &[Vec<&[u32]>],
    by_weights: usize,
    side_by_side: usize,
    seed: u64,
    done: &mut dyn FnMut(usize) -> Result<(), CalibrateError>,
) -> Result<Measured, CalibrateError> {
    let mut sum = Part::new(tower);
    let table = tower.tensor("embed_tokens.weight")?;
    in_order(
        batches,
        side_by_side,
        |index, windows| {
            Part::of(tower, &table, windows, index < by_weights, seed ^ ((index as u64 + 1) << 32))
        },
        |index, part| {
            sum.add(part)?;
            done(index)
        },
    )?;
    let count = |batches: &[Vec<&[u32]>]| batches.iter().flatten().map(|w| w.len()).sum::<usize>() as f64;
    let (some, all) = (count(&batches[..by_weights.min(batches.len())]), count(batches));
    let tied = tower.config.tie_word_embeddings;
    let mut marginals = sum.layers;
    marginals.values_mut().for_each(|m| m.divide(some));
    for (name, mut table) in
        [("embed_tokens.weight", sum.lookup_marginals), ("lm_head.weight", sum.head_marginals)]
    {
        table.divide(all);
        // One table in two uses: its errors have both effects.
        let name = if tied { "embed_tokens.weight" } else { name };
        marginals.entry(name.to_owned()).or_default().add(table);
    }
    let guide =
        Guide { tokens: sum.tokens, lookup: sum.lookup.sum_over(all)?, head: sum.head.sum_over(all)? };
    Ok(Measured { marginals, guide })
}

/// Sums over some batches.
struct Part {
    layers: BTreeMap<String, Marginals>,
    tokens: Vec<Vec<f32>>,
    lookup: SecondMoments,
    head: SecondMoments,
    lookup_marginals: Marginals,
    head_marginals: Marginals,
}

impl Part {
    fn new(tower: &Tower<'_>) -> Self {
        let (vocab, hidden) = (tower.config.vocab_size, tower.config.hidden_size);
        let table = || Marginals { by_row: vec![0.0; vocab], by_col: vec![0.0; hidden] };
        Self {
            layers: BTreeMap::new(),
            tokens: vec![Vec::new(); tower.config.num_hidden_layers],
            lookup: SecondMoments::default(),
            head: SecondMoments::default(),
            lookup_marginals: table(),
            head_marginals: table(),
        }
    }

    fn of(
        tower: &Tower<'_>,
        table: &Tensor,
        windows: &[&[u32]],
        by_weights: bool,
        seed: u64,
    ) -> Result<Self, CalibrateError> {
        let Self { mut layers, mut tokens, mut lookup, mut head, mut lookup_marginals, mut head_marginals } =
            Self::new(tower);
        let vocab = tower.config.vocab_size;
        let mut random = Random::new(seed);
        let mut sampled = |_: usize, rows: &Tensor, logits: &mut [f32]| {
            let draws: Vec<f32> = logits.chunks(vocab).map(|_| random.uniform()).collect();
            let sizes = rows.sqr()?.sum(1)?.to_vec1::<f32>()?;
            logits.par_chunks_mut(vocab).for_each(softmax_in_place);
            let mut undecided = Vec::with_capacity(draws.len());
            for (row, size) in logits.chunks(vocab).zip(sizes) {
                // The mean square of the gradient by a logit is p (1 - p): no need to draw for it.
                let mut spread = 0.0;
                for (p, total) in row.iter().zip(&mut head_marginals.by_row) {
                    let variance = p * (1.0 - p);
                    spread += variance;
                    *total += f64::from(variance * size);
                }
                undecided.push(spread);
            }
            logits.par_chunks_mut(vocab).zip(draws).for_each(|(row, draw)| {
                let mut left = draw;
                let label = row.iter().position(|p| {
                    left -= p;
                    left < 0.0
                });
                row[label.unwrap_or(vocab - 1)] -= 1.0;
            });
            Ok(head.add_weighted(rows, &undecided)?)
        };
        let mut add = |name: &str, gradient: &Tensor| {
            if !tower.table[name].role.is_quantized() {
                return Ok(());
            }
            let squares = gradient.sqr()?;
            let by_row = squares.sum(1)?.to_vec1::<f32>()?.into_iter().map(f64::from).collect();
            let by_col = squares.sum(0)?.to_vec1::<f32>()?.into_iter().map(f64::from).collect();
            layers.insert(name.to_owned(), Marginals { by_row, by_col });
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
        let wanted = if by_weights { Wanted::Layers } else { Wanted::Stream };
        gradients(tower, table, windows, wanted, &mut sampled, &mut add, &mut stream)?;
        let hidden = tower.config.hidden_size;
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

impl Marginals {
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

/// Bytes of a tensor stored as `spec`.
pub(crate) fn stored_bytes(spec: AffineSpec, float: FloatType, weights: usize) -> u64 {
    let group_bytes = 2 * float.size() as u64;
    weights as u64 * u64::from(spec.bits()) / 8 + group_bytes * (weights / spec.group_size()) as u64
}

fn specs(cols: usize) -> Vec<AffineSpec> {
    let all = BITS.iter().flat_map(|bits| GROUP_SIZES.iter().map(|group| AffineSpec::new(*bits, *group)));
    all.filter_map(Result::ok).filter(|spec| spec.fits(cols)).collect()
}

/// Bytes of all quantizable tensors where each gets as few as it may.
pub(crate) fn smallest_bytes(tower: &Tower<'_>) -> Result<u64, CalibrateError> {
    let tensors = tower.table.iter().filter(|(_, spec)| spec.role.is_quantized());
    let smallest = tensors.map(|(name, tensor)| {
        let (rows, cols) = (tensor.shape[0], tensor.shape[1]);
        let sizes = specs(cols).into_iter().map(|spec| stored_bytes(spec, tower.float, rows * cols));
        sizes.min().ok_or_else(|| CalibrateError::Shape { name: name.clone(), cols })
    });
    smallest.sum()
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
    let smallest_bytes = smallest_bytes(tower)?;
    let mut options = Vec::with_capacity(tensors.len());
    for (name, spec) in &tensors {
        let (rows, cols) = (spec.shape[0], spec.shape[1]);
        let specs = specs(cols);
        let losses = expected_losses(&tower.float_values(name)?, tower.float, &marginals[*name], &specs);
        let choices: Vec<Choice> = specs
            .iter()
            .zip(losses)
            .map(|(spec, loss)| Choice { bytes: stored_bytes(*spec, tower.float, rows * cols), loss })
            .collect();
        options.push((specs, choices));
    }
    let choices: Vec<Vec<Choice>> = options.iter().map(|(_, choices)| choices.clone()).collect();
    let chosen =
        allocate(&choices, budget_bytes).ok_or(CalibrateError::Budget { budget_bytes, smallest_bytes })?;
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
