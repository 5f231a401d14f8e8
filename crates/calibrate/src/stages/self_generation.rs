//! Self-generated calibration text: the float model continues prompts from random positions of the text.

use q35_random::SplitMix64;

use super::Run;
use crate::CalibrateError;
use crate::partially_quantized_model::PartiallyQuantizedModel;
use crate::progress::Stage;
use crate::resume::ResumeDir;
use crate::self_generated::{PROMPT_TOKENS, continue_prompts};
use crate::settings::Settings;

/// Separates the random choices of this stage from those of others.
const GENERATION_SEED: u64 = 0x0077_7269_7469_6e67;

/// Returns the self-generated windows.
pub(crate) fn generate_text(
    run: &mut Run<'_, '_>,
    float_model: &PartiallyQuantizedModel<'_>,
    ids: &[u32],
) -> Result<Vec<Vec<u32>>, CalibrateError> {
    let Settings { generated_windows, generation_batch, window, seed, .. } = *run.settings;
    if let Some(windows) = run.resume.and_then(ResumeDir::generated_text) {
        return Ok(windows);
    }
    let mut random = SplitMix64::new(seed ^ GENERATION_SEED);
    let prompts: Vec<&[u32]> = (0..generated_windows)
        .map(|_| {
            let start = (random.uniform_f32() * (ids.len() - PROMPT_TOKENS) as f32) as usize;
            &ids[start..start + PROMPT_TOKENS]
        })
        .collect();
    let total = generated_windows.div_ceil(generation_batch) * window;
    let mut windows = Vec::with_capacity(generated_windows);
    for (index, prompts) in prompts.chunks(generation_batch).enumerate() {
        let before = index * window;
        let seed = seed ^ GENERATION_SEED ^ (index as u64 + 1);
        windows.extend(continue_prompts(float_model, prompts, window, seed, &mut |done| {
            run.report(Stage::SelfGeneration, before + done + 1, total, None)
        })?);
    }
    if let Some(resume) = run.resume {
        resume.put_generated_text(&windows)?;
    }
    Ok(windows)
}
