//! Learning what the format leaves open, against the float model's predictions.
//!
//! After rounding, the scales and biases of all groups, the codes themselves, and the tensors that stay in float are
//! moved by gradient descent (Adam) to lower KL(float || quantized) on the calibration text. The model that is
//! differentiated is the one that will be stored: codes rounded, scales and biases rounded to the file's type. Gradients
//! pass through the roundings as if these were not there.

use std::collections::BTreeMap;

use candle_core::Tensor;
use q35_architecture::Role;
use q35_quant::FloatType;
use rayon::prelude::*;

use crate::CalibrateError;
use crate::grid::Grid;
use crate::passes::{Wanted, gradients};
use crate::softmax::divergence;
use crate::tower::{Replacement, Tower};

/// Adam's memory of the mean gradient and of its mean square.
const MEAN: f32 = 0.9;
const SQUARE: f32 = 0.99;

/// Step sizes, each in the unit of what it moves.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Rates {
    /// Of a scale, as a part of itself.
    pub scale: f32,
    /// Of a bias, in steps of its group.
    pub bias: f32,
    /// Of a weight, in steps of its group; 0 leaves the codes as they are.
    pub code: f32,
    /// Of tensors that stay in float.
    pub float: f32,
}

#[derive(Clone, Debug, Default)]
struct Moments {
    mean: Vec<f32>,
    square: Vec<f32>,
}

impl Moments {
    fn new(count: usize) -> Self {
        Self { mean: vec![0.0; count], square: vec![0.0; count] }
    }
}

/// The step for one number, in units of the rate.
#[inline]
fn adam(mean: &mut f32, square: &mut f32, gradient: f32, correction: (f32, f32)) -> f32 {
    *mean = MEAN * *mean + (1.0 - MEAN) * gradient;
    *square = SQUARE * *square + (1.0 - SQUARE) * gradient * gradient;
    let size = (*square * correction.1).sqrt();
    if size > 0.0 { *mean * correction.0 / size } else { 0.0 }
}

/// A quantized tensor being learned.
struct LearnedGrid {
    /// Where it started: scales are moved relative to these, biases in units of these.
    start_scales: Vec<f32>,
    scales: Vec<f32>,
    biases: Vec<f32>,
    /// In steps, between whole codes; empty when codes are not learned.
    positions: Vec<f32>,
    scale_moments: Moments,
    bias_moments: Moments,
    position_moments: Moments,
}

struct LearnedFloat {
    values: Vec<f32>,
    moments: Moments,
}

/// The state of learning.
pub(crate) struct Learner {
    grids: BTreeMap<String, LearnedGrid>,
    floats: BTreeMap<String, LearnedFloat>,
    rates: Rates,
    tables: bool,
    steps_done: usize,
}

impl Learner {
    /// Starts at the tower's rounded tensors.
    pub(crate) fn new(tower: &Tower<'_>, rates: Rates, tables: bool) -> Result<Self, CalibrateError> {
        let (mut grids, mut floats) = (BTreeMap::new(), BTreeMap::new());
        for (name, spec) in &tower.table {
            match tower.replaced.get(name) {
                Some(Replacement::Grid(_)) if !tables && spec.role != Role::Linear => {}
                Some(Replacement::Grid(grid)) => {
                    let learned = LearnedGrid::new(grid, &tower.float_values(name)?, rates.code > 0.0);
                    grids.insert(name.clone(), learned);
                }
                _ if spec.role.is_quantized() => {}
                _ => {
                    let values = tower.values(name)?;
                    let moments = Moments::new(values.len());
                    floats.insert(name.clone(), LearnedFloat { values, moments });
                }
            }
        }
        Ok(Self { grids, floats, rates, tables, steps_done: 0 })
    }

    /// One step on `windows`, whose float predictions come from `targets` [tokens, hidden], the float model's states
    /// after the final norm, and `head` [vocab, hidden]. Returns the mean divergence before the step. `pace` scales
    /// the rates.
    pub(crate) fn step(
        &mut self,
        tower: &mut Tower<'_>,
        windows: &[&[u32]],
        targets: &Tensor,
        head: &Tensor,
        pace: f32,
    ) -> Result<f64, CalibrateError> {
        let vocab = tower.config.vocab_size;
        let tokens = targets.dim(0)?;
        let mut total = 0.0;
        let mut by_logits = |start: usize, _: &Tensor, logits: &mut [f32]| {
            let rows = targets.narrow(0, start, logits.len() / vocab)?.contiguous()?;
            let mut teacher = rows.matmul(&head.t()?)?.flatten_all()?.to_vec1::<f32>()?;
            total += divergence(&mut teacher, logits, vocab, 1.0 / tokens as f32);
            Ok(())
        };
        self.steps_done += 1;
        let correction =
            |memory: f32| 1.0 / (1.0 - memory.powi(i32::try_from(self.steps_done).unwrap_or(i32::MAX)));
        let correction = (correction(MEAN), correction(SQUARE));
        let rates = self.rates;
        let (grids, floats) = (&mut self.grids, &mut self.floats);
        let mut updates: Vec<(String, Replacement)> = Vec::new();
        let mut move_by = |name: &str, gradient: &Tensor| {
            let gradient = gradient.flatten_all()?.to_vec1::<f32>()?;
            if let (Some(learned), Some(Replacement::Grid(grid))) =
                (grids.get_mut(name), tower.replaced.get(name))
            {
                let mut grid = grid.clone();
                learned.update(&mut grid, &gradient, rates, pace, correction);
                updates.push((name.to_owned(), Replacement::Grid(grid)));
            } else if let Some(learned) = floats.get_mut(name) {
                let parts = learned.values.iter_mut().zip(&gradient);
                let moments = learned.moments.mean.iter_mut().zip(&mut learned.moments.square);
                for ((value, gradient), (mean, square)) in parts.zip(moments) {
                    *value -= pace * rates.float * adam(mean, square, *gradient, correction);
                }
                let values = stored_float(tower.table[name].role, tower.float, &learned.values);
                updates.push((name.to_owned(), Replacement::Float(values)));
            }
            Ok(())
        };
        let wanted = if self.tables { Wanted::All } else { Wanted::Layers };
        let table = tower.tensor("embed_tokens.weight")?;
        gradients(tower, &table, windows, wanted, &mut by_logits, &mut move_by, &mut |_, _| Ok(()))?;
        tower.replaced.extend(updates);
        Ok(total / tokens as f64)
    }
}

/// As the file will hold it and a reader will see it.
fn stored_float(role: Role, float: FloatType, values: &[f32]) -> Vec<f32> {
    match role {
        // Stored in f32.
        Role::DecayLog | Role::GatedNorm => values.to_vec(),
        // Stored with one added.
        Role::CenteredNorm => values.iter().map(|v| float.round(1.0 + v) - 1.0).collect(),
        _ => values.iter().map(|v| float.round(*v)).collect(),
    }
}

impl LearnedGrid {
    fn new(grid: &Grid, float: &[f32], learn_codes: bool) -> Self {
        let group = grid.spec.group_size();
        let mut positions = Vec::new();
        if learn_codes {
            positions.resize(grid.codes.len(), 0.0);
            // Towards where the float weight lies, but well within the rounded code's own step: error feedback has
            // moved many codes away from the nearest, and the first few steps are not to undo that.
            positions.par_iter_mut().enumerate().for_each(|(at, position)| {
                let (scale, bias) = (grid.scales[at / group], grid.biases[at / group]);
                let code = f32::from(grid.codes[at]);
                let exact = if scale == 0.0 { code } else { (float[at] - bias) / scale };
                *position = exact.clamp(code - 0.3, code + 0.3);
            });
        }
        Self {
            start_scales: grid.scales.clone(),
            scales: grid.scales.clone(),
            biases: grid.biases.clone(),
            scale_moments: Moments::new(grid.scales.len()),
            bias_moments: Moments::new(grid.scales.len()),
            position_moments: Moments::new(positions.len()),
            positions,
        }
    }

    fn update(&mut self, grid: &mut Grid, gradient: &[f32], rates: Rates, pace: f32, correction: (f32, f32)) {
        let group = grid.spec.group_size();
        let sums: Vec<(f32, f32)> = gradient
            .par_chunks(group)
            .zip(grid.codes.par_chunks(group))
            .map(|(gradient, codes)| {
                gradient.iter().zip(codes).fold((0.0, 0.0), |(by_scale, by_bias), (g, code)| {
                    (by_scale + g * f32::from(*code), by_bias + g)
                })
            })
            .collect();
        if !self.positions.is_empty() {
            let largest = f32::from(grid.spec.largest_code());
            let moments = self
                .position_moments
                .mean
                .par_chunks_mut(group)
                .zip(self.position_moments.square.par_chunks_mut(group));
            self.positions
                .par_chunks_mut(group)
                .zip(moments)
                .zip(grid.codes.par_chunks_mut(group))
                .zip(gradient.par_chunks(group))
                .enumerate()
                .for_each(|(index, (((positions, (means, squares)), codes), gradient))| {
                    // A negative scale turns the direction of the codes.
                    let sign = self.start_scales[index].signum();
                    for k in 0..positions.len() {
                        let step = adam(&mut means[k], &mut squares[k], sign * gradient[k], correction);
                        let moved = positions[k] - pace * rates.code * step;
                        positions[k] = moved.clamp(-0.5, largest + 0.5);
                        codes[k] = positions[k].round_ties_even().clamp(0.0, largest) as u8;
                    }
                });
        }
        for (index, (by_scale, by_bias)) in sums.into_iter().enumerate() {
            let unit = self.start_scales[index];
            let by_scale = adam(
                &mut self.scale_moments.mean[index],
                &mut self.scale_moments.square[index],
                by_scale,
                correction,
            );
            let by_bias = adam(
                &mut self.bias_moments.mean[index],
                &mut self.bias_moments.square[index],
                by_bias,
                correction,
            );
            self.scales[index] -= pace * rates.scale * unit.abs() * by_scale;
            self.biases[index] -= pace * rates.bias * unit.abs() * by_bias;
            grid.scales[index] = grid.float.round(self.scales[index]);
            grid.biases[index] = grid.float.round(self.biases[index]);
        }
    }
}
