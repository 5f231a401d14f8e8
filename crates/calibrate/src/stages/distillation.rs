//! Distillation: gradient descent on KL(float || quantized) over the calibration windows.

use q35_random::SplitMix64;

use super::Run;
use crate::CalibrateError;
use crate::distillation::Distiller;
use crate::gradients::final_states;
use crate::partially_quantized_model::PartiallyQuantizedModel;
use crate::progress::Stage;
use crate::settings::Distillation;

/// Distills the float model's predictions into the rounded `model`.
pub(crate) fn distill(
    run: &mut Run<'_, '_>,
    float_model: &PartiallyQuantizedModel<'_>,
    model: &mut PartiallyQuantizedModel<'_>,
    batches: &[Vec<&[u32]>],
    settings: Distillation,
) -> Result<(), CalibrateError> {
    let layers = float_model.config.num_hidden_layers;
    let targets = final_states(float_model, batches, &mut |done| {
        run.report(Stage::FloatPredictions, done + 1, layers, None)
    })?;
    let head = float_model.tensor(float_model.head_name())?;
    let mut distiller = Distiller::new(model, settings.rates, settings.tables)?;
    let mut order = Vec::new();
    let mut random = SplitMix64::new(run.settings.seed.wrapping_add(1));
    for step in 0..settings.steps {
        if order.is_empty() {
            order = random.permutation(batches.len());
        }
        let at = order.pop().expect("there is a batch");
        let factor = rate_factor(step, settings.steps);
        let divergence = distiller.step(model, &batches[at], &targets[at], &head, factor)?;
        run.report(Stage::Distillation, step + 1, settings.steps, Some(divergence))?;
    }
    Ok(())
}

/// Learning rate schedule: linear warm-up over the first twentieth of the steps, then cosine decay to zero.
fn rate_factor(step: usize, steps: usize) -> f32 {
    let at = (step as f32 + 0.5) / steps as f32;
    let warm_up = (at / 0.05).min(1.0);
    warm_up * 0.5 * (1.0 + (std::f32::consts::PI * at).cos())
}
