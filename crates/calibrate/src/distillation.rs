//! Distillation of the float model's predictions into scales, biases, codes and float tensors.
//!
//! Adam minimises KL(float || quantized) on the calibration text, starting from the rounded model. The forward pass uses
//! the model as it will be stored: codes rounded, scales and biases rounded to the storage type. Gradients pass through
//! the roundings unchanged (straight-through estimator).

use std::collections::BTreeMap;

use candle_core::Tensor;
use q35_architecture::Role;
use q35_quant::FloatType;
use rayon::prelude::*;

use crate::gradients::{GradientsFor, gradients};
use crate::job::divergence;
use crate::partially_quantized_model::{PartiallyQuantizedModel, Replacement};
use crate::quantized_matrix::QuantizedMatrix;
use crate::{CalibrateError, LearningRates};

/// Adam's decay rates of the first and second moment.
const BETA1: f32 = 0.9;
const BETA2: f32 = 0.99;

#[derive(Clone, Debug, Default)]
struct AdamMoments {
    mean: Vec<f32>,
    square: Vec<f32>,
}

impl AdamMoments {
    fn new(count: usize) -> Self {
        Self { mean: vec![0.0; count], square: vec![0.0; count] }
    }
}

/// Updates the moments of one parameter and returns its step in units of the learning rate. `correction` holds the bias
/// corrections of the two moments.
#[inline]
fn adam(mean: &mut f32, square: &mut f32, gradient: f32, correction: (f32, f32)) -> f32 {
    *mean = BETA1 * *mean + (1.0 - BETA1) * gradient;
    *square = BETA2 * *square + (1.0 - BETA2) * gradient * gradient;
    let size = (*square * correction.1).sqrt();
    if size > 0.0 { *mean * correction.0 / size } else { 0.0 }
}

/// The learned parameters of a quantized matrix.
struct LearnedMatrix {
    /// Scales at the start, the unit of the steps of scales and biases.
    start_scales: Vec<f32>,
    scales: Vec<f32>,
    biases: Vec<f32>,
    /// Codes before rounding; empty if codes are frozen.
    latent_codes: Vec<f32>,
    scale_moments: AdamMoments,
    bias_moments: AdamMoments,
    code_moments: AdamMoments,
}

struct LearnedFloat {
    values: Vec<f32>,
    moments: AdamMoments,
}

/// The state of a distillation.
pub(crate) struct Distiller {
    matrices: BTreeMap<String, LearnedMatrix>,
    floats: BTreeMap<String, LearnedFloat>,
    rates: LearningRates,
    tables: bool,
    steps_done: usize,
}

impl Distiller {
    /// Starts from the rounded tensors of `model`. `tables` includes embedding and head.
    pub(crate) fn new(
        model: &PartiallyQuantizedModel<'_>,
        rates: LearningRates,
        tables: bool,
    ) -> Result<Self, CalibrateError> {
        let (mut matrices, mut floats) = (BTreeMap::new(), BTreeMap::new());
        for (name, spec) in &model.table {
            match model.replaced.get(name) {
                Some(Replacement::Quantized(_)) if !tables && spec.role != Role::Linear => {}
                Some(Replacement::Quantized(matrix)) => {
                    let learned = LearnedMatrix::new(matrix, &model.float_values(name)?, rates.code > 0.0);
                    matrices.insert(name.clone(), learned);
                }
                _ if spec.role.is_quantized() => {}
                _ => {
                    let values = model.values(name)?;
                    let moments = AdamMoments::new(values.len());
                    floats.insert(name.clone(), LearnedFloat { values, moments });
                }
            }
        }
        Ok(Self { matrices, floats, rates, tables, steps_done: 0 })
    }

    /// Takes one step on `windows` and returns the mean divergence before it, in nats. The float model's predictions are
    /// the product of `targets` [tokens, hidden], its states after the final norm, and its `head` [vocab, hidden].
    /// `rate_factor` scales the learning rates.
    pub(crate) fn step(
        &mut self,
        model: &mut PartiallyQuantizedModel<'_>,
        windows: &[&[u32]],
        targets: &Tensor,
        head: &Tensor,
        rate_factor: f32,
    ) -> Result<f64, CalibrateError> {
        let vocab = model.config.vocab_size;
        let tokens = targets.dim(0)?;
        let mut total = 0.0;
        let mut by_logits = |start: usize, _: &Tensor, logits: &mut [f32]| {
            let rows = targets.narrow(0, start, logits.len() / vocab)?.contiguous()?;
            let teacher = rows.matmul(&head.t()?)?.flatten_all()?.to_vec1::<f32>()?;
            total += divergence(&teacher, logits, vocab, 1.0 / tokens as f32);
            Ok(())
        };
        self.steps_done += 1;
        let correction =
            |beta: f32| 1.0 / (1.0 - beta.powi(i32::try_from(self.steps_done).unwrap_or(i32::MAX)));
        let correction = (correction(BETA1), correction(BETA2));
        let rates = self.rates;
        let (matrices, floats) = (&mut self.matrices, &mut self.floats);
        let mut updates: Vec<(String, Replacement)> = Vec::new();
        let mut apply = |name: &str, gradient: &Tensor| {
            let gradient = gradient.flatten_all()?.to_vec1::<f32>()?;
            if let (Some(learned), Some(Replacement::Quantized(matrix))) =
                (matrices.get_mut(name), model.replaced.get(name))
            {
                let mut matrix = matrix.clone();
                learned.update(&mut matrix, &gradient, rates, rate_factor, correction);
                updates.push((name.to_owned(), Replacement::Quantized(matrix)));
            } else if let Some(learned) = floats.get_mut(name) {
                let parts = learned.values.iter_mut().zip(&gradient);
                let moments = learned.moments.mean.iter_mut().zip(&mut learned.moments.square);
                for ((value, gradient), (mean, square)) in parts.zip(moments) {
                    *value -= rate_factor * rates.float * adam(mean, square, *gradient, correction);
                }
                let values = stored_float(model.table[name].role, model.float, &learned.values);
                updates.push((name.to_owned(), Replacement::Float(values)));
            }
            Ok(())
        };
        let wanted = if self.tables { GradientsFor::All } else { GradientsFor::Layers };
        let table = model.tensor("embed_tokens.weight")?;
        gradients(model, &table, windows, wanted, &mut by_logits, &mut apply, &mut |_, _| Ok(()))?;
        model.replaced.extend(updates);
        Ok(total / tokens as f64)
    }
}

/// Rounds a float tensor as the artefact will store it.
fn stored_float(role: Role, float: FloatType, values: &[f32]) -> Vec<f32> {
    match role {
        // Stored in f32.
        Role::DecayLog | Role::GatedNorm => values.to_vec(),
        // Stored as the factor, with one added.
        Role::CenteredNorm => values.iter().map(|v| float.round(1.0 + v) - 1.0).collect(),
        _ => values.iter().map(|v| float.round(*v)).collect(),
    }
}

impl LearnedMatrix {
    fn new(matrix: &QuantizedMatrix, float: &[f32], learn_codes: bool) -> Self {
        let group = matrix.spec.group_size();
        let mut latent_codes = Vec::new();
        if learn_codes {
            latent_codes.resize(matrix.codes.len(), 0.0);
            // Starts near the float weight but well within the step of the rounded code: error feedback has moved many
            // codes away from the nearest, and the first few steps must not undo that.
            latent_codes.par_iter_mut().enumerate().for_each(|(at, latent)| {
                let (scale, bias) = (matrix.scales[at / group], matrix.biases[at / group]);
                let code = f32::from(matrix.codes[at]);
                let exact = if scale == 0.0 { code } else { (float[at] - bias) / scale };
                *latent = exact.clamp(code - 0.3, code + 0.3);
            });
        }
        Self {
            start_scales: matrix.scales.clone(),
            scales: matrix.scales.clone(),
            biases: matrix.biases.clone(),
            scale_moments: AdamMoments::new(matrix.scales.len()),
            bias_moments: AdamMoments::new(matrix.scales.len()),
            code_moments: AdamMoments::new(latent_codes.len()),
            latent_codes,
        }
    }

    fn update(
        &mut self,
        matrix: &mut QuantizedMatrix,
        gradient: &[f32],
        rates: LearningRates,
        rate_factor: f32,
        correction: (f32, f32),
    ) {
        let group = matrix.spec.group_size();
        let sums: Vec<(f32, f32)> = gradient
            .par_chunks(group)
            .zip(matrix.codes.par_chunks(group))
            .map(|(gradient, codes)| {
                gradient.iter().zip(codes).fold((0.0, 0.0), |(by_scale, by_bias), (g, code)| {
                    (by_scale + g * f32::from(*code), by_bias + g)
                })
            })
            .collect();
        if !self.latent_codes.is_empty() {
            let largest = f32::from(matrix.spec.largest_code());
            let moments = self
                .code_moments
                .mean
                .par_chunks_mut(group)
                .zip(self.code_moments.square.par_chunks_mut(group));
            self.latent_codes
                .par_chunks_mut(group)
                .zip(moments)
                .zip(matrix.codes.par_chunks_mut(group))
                .zip(gradient.par_chunks(group))
                .enumerate()
                .for_each(|(index, (((latent_codes, (means, squares)), codes), gradient))| {
                    // A negative scale reverses the direction of the codes.
                    let sign = self.start_scales[index].signum();
                    for k in 0..latent_codes.len() {
                        let step = adam(&mut means[k], &mut squares[k], sign * gradient[k], correction);
                        let moved = latent_codes[k] - rate_factor * rates.code * step;
                        latent_codes[k] = moved.clamp(-0.5, largest + 0.5);
                        codes[k] = latent_codes[k].round_ties_even().clamp(0.0, largest) as u8;
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
            self.scales[index] -= rate_factor * rates.scale * unit.abs() * by_scale;
            self.biases[index] -= rate_factor * rates.bias * unit.abs() * by_bias;
            matrix.scales[index] = matrix.float.round(self.scales[index]);
            matrix.biases[index] = matrix.float.round(self.biases[index]);
        }
    }
}
