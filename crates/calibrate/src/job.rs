//! A calibration from start to end.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use q35_inference::Weights;
use q35_metrics::kl_with_gradient;
use q35_quant::FloatType;
use q35_random::SplitMix64;
use rayon::prelude::*;

use crate::CalibrateError;
use crate::gradients::{final_states, logit_rows};
use crate::partially_quantized_model::{PartiallyQuantizedModel, Replacement};
use crate::progress::Listener;
use crate::resume::ResumeDir;
use crate::sensitivity::smallest_bytes;
use crate::settings::Settings;
use crate::stages::{Run, distill, generate_text, measure_sensitivity, round_all};

/// The model to calibrate, its calibration text, and where to compute.
#[derive(Clone, Copy)]
pub struct Job<'a> {
    /// The float model.
    pub weights: &'a dyn Weights,
    /// Storage type of its tensors, and so of scales and biases.
    pub float: FloatType,
    /// Calibration text as tokens; a last incomplete window is dropped.
    pub ids: &'a [u32],
    /// Device that computes the float model.
    pub device: &'a Device,
    /// Directory of finished stages, from which an interrupted calibration resumes.
    pub resume: Option<&'a ResumeDir>,
}

/// Bits of one matrix and the loss that they cause.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct BitAllocation {
    /// Bits per code.
    pub bits: u32,
    /// Weights per group.
    pub group_size: usize,
    /// Expected KL divergence, in nats, of rounding this matrix alone; 0 if sensitivity was not measured.
    pub expected_kl: f64,
}

/// The result of a calibration.
#[derive(Clone, Debug)]
pub struct Calibrated {
    /// Every quantized matrix, and the float tensors that were changed, by name.
    pub tensors: BTreeMap<String, Replacement>,
    /// Bits of every matrix, by name.
    pub allocations: BTreeMap<String, BitAllocation>,
}

/// Separates the random choices of different purposes.
const MIXING_SEED: u64 = 0x6d69_7869_6e67;

/// Calibrates.
///
/// # Errors
/// Too little text, a budget that is too small, cancellation, or a failure to read weights or to compute.
pub fn calibrate(
    job: Job<'_>,
    settings: &Settings,
    listener: &mut Listener<'_>,
) -> Result<Calibrated, CalibrateError> {
    let Job { weights, float, ids, device, resume } = job;
    let windows: Vec<&[u32]> = ids.chunks_exact(settings.window).collect();
    if windows.len() < settings.batch {
        return Err(CalibrateError::TooShort {
            expected: settings.batch * settings.window,
            found: ids.len(),
        });
    }
    let float_model = PartiallyQuantizedModel::new(weights, float, device.clone());
    if settings.uniform.is_none() {
        let (budget_bytes, smallest_bytes) = (settings.budget_bytes, smallest_bytes(&float_model)?);
        if budget_bytes < smallest_bytes {
            return Err(CalibrateError::Budget { budget_bytes, smallest_bytes });
        }
    }
    let mut run = Run { settings, listener, resume };
    let generated = generate_text(&mut run, &float_model, ids)?;
    let order = SplitMix64::new(settings.seed).permutation(windows.len());
    let from_text = order.iter().take(settings.windows.max(settings.batch)).map(|at| windows[*at]);
    let all: Vec<&[u32]> = from_text.chain(generated.iter().map(Vec::as_slice)).collect();
    let order = SplitMix64::new(settings.seed ^ MIXING_SEED).permutation(all.len());
    let mixed: Vec<&[u32]> = order.into_iter().map(|at| all[at]).collect();
    let batches: Vec<Vec<&[u32]>> = mixed.chunks_exact(settings.batch).map(<[_]>::to_vec).collect();

    let (allocations, error_weights) = measure_sensitivity(&mut run, &float_model, &batches)?;
    let mut model = PartiallyQuantizedModel::new(weights, float, device.clone());
    round_all(&mut run, &mut model, &batches, &error_weights, &allocations)?;
    if let Some(distillation) = settings.distillation {
        distill(&mut run, &float_model, &mut model, &batches, distillation)?;
    }
    Ok(Calibrated { tensors: model.replaced, allocations })
}

/// Mean KL(float || quantized) in nats over all tokens of the job's text in whole windows of `window` tokens.
///
/// # Errors
/// A text shorter than a window, or a failure to read weights or to compute.
pub fn mean_divergence(
    job: Job<'_>,
    tensors: &BTreeMap<String, Replacement>,
    window: usize,
) -> Result<f64, CalibrateError> {
    let batches: Vec<Vec<&[u32]>> = job.ids.chunks_exact(window).map(|w| vec![w]).collect();
    if batches.is_empty() {
        return Err(CalibrateError::TooShort { expected: window, found: job.ids.len() });
    }
    let float_model = PartiallyQuantizedModel::new(job.weights, job.float, job.device.clone());
    let mut model = PartiallyQuantizedModel::new(job.weights, job.float, job.device.clone());
    model.replaced.clone_from(tensors);
    let expected = final_states(&float_model, &batches, &mut |_| Ok(()))?;
    let found = final_states(&model, &batches, &mut |_| Ok(()))?;
    let (float_head, head) = (float_model.tensor(float_model.head_name())?, model.tensor(model.head_name())?);
    let vocab = float_model.config.vocab_size;
    let (mut total, mut tokens) = (0.0, 0);
    for (expected, found) in expected.iter().zip(&found) {
        let rows = expected.dim(0)?;
        for start in (0..rows).step_by(logit_rows(vocab)) {
            let count = logit_rows(vocab).min(rows - start);
            let logits = |states: &Tensor, head: &Tensor| {
                let states = states.narrow(0, start, count)?.contiguous()?;
                states.matmul(&head.t()?)?.flatten_all()?.to_vec1::<f32>()
            };
            let mut found = logits(found, &head)?;
            total += divergence(&logits(expected, &float_head)?, &mut found, vocab, 0.0);
            tokens += count;
        }
    }
    Ok(total / tokens as f64)
}

/// Sum of KL(float || quantized) over rows of logits [rows, vocab]. Replaces the quantized model's logits by `factor`
/// times the gradient of the sum with respect to them.
pub(crate) fn divergence(float: &[f32], quantized: &mut [f32], vocab: usize, factor: f32) -> f64 {
    let rows = float.par_chunks(vocab).zip(quantized.par_chunks_mut(vocab));
    let rows: Vec<f64> = rows.map(|(float, quantized)| kl_with_gradient(float, quantized, factor)).collect();
    rows.iter().sum()
}
