//! Progress events.

use std::ops::ControlFlow;

/// A stage of calibration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The float model generates calibration text.
    SelfGeneration,
    /// The float model's predictions, the targets of distillation.
    FloatPredictions,
    /// Fisher information of every matrix, and gradients at every token.
    Sensitivity,
    /// Rounding, layer after layer.
    Rounding,
    /// Distillation.
    Distillation,
}

/// Progress of a stage.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// The stage.
    pub stage: Stage,
    /// Number of finished parts.
    pub done: usize,
    /// Number of parts.
    pub total: usize,
    /// During distillation: mean KL divergence on the step's windows, in nats.
    pub divergence: Option<f64>,
}

/// Receives progress events on the calling thread; [`ControlFlow::Break`] cancels the calibration.
pub type Listener<'a> = dyn FnMut(Progress) -> ControlFlow<()> + 'a;
