//! Sensitivity: bits of every matrix, and weights of the errors at every token.

use std::collections::BTreeMap;

use super::{Run, parallel_batches};
use crate::partially_quantized_model::PartiallyQuantizedModel;
use crate::progress::Stage;
use crate::resume::ResumeDir;
use crate::sensitivity::{ErrorWeights, allocate_bits, measure};
use crate::settings::Settings;
use crate::{BitAllocation, CalibrateError};

/// Returns the bits of every matrix and the error weights.
pub(crate) fn measure_sensitivity(
    run: &mut Run<'_, '_>,
    float_model: &PartiallyQuantizedModel<'_>,
    batches: &[Vec<&[u32]>],
) -> Result<(BTreeMap<String, BitAllocation>, ErrorWeights), CalibrateError> {
    if let Some(measured) = run.resume.and_then(ResumeDir::sensitivity) {
        return Ok(measured);
    }
    let Settings { uniform, sensitivity_windows, batch, seed, budget_bytes, .. } = *run.settings;
    // Without a choice of bits the Fisher information of single weights is not needed.
    let fisher_batches = if uniform.is_some() { 0 } else { sensitivity_windows.div_ceil(batch).max(1) };
    let (total, parallel) = (batches.len(), parallel_batches(float_model));
    let measured = measure(float_model, batches, fisher_batches, parallel, seed, &mut |done| {
        run.report(Stage::Sensitivity, done + 1, total, None)
    })?;
    let allocations = match uniform {
        None => allocate_bits(float_model, &measured.marginals, budget_bytes)?,
        Some((bits, group_size)) => {
            let allocation = BitAllocation { bits, group_size, expected_kl: 0.0 };
            let matrices = float_model.table.iter().filter(|(_, spec)| spec.role.is_quantized());
            matrices.map(|(name, _)| (name.clone(), allocation)).collect()
        }
    };
    if let Some(resume) = run.resume {
        resume.put_sensitivity(&allocations, &measured.error_weights)?;
    }
    Ok((allocations, measured.error_weights))
}
