//! The stages of a calibration, in their order. Each reads its result from the resume directory if it is there.

mod distillation;
mod rounding;
mod self_generation;
mod sensitivity;

pub(crate) use distillation::distill;
pub(crate) use rounding::round_all;
pub(crate) use self_generation::generate_text;
pub(crate) use sensitivity::measure_sensitivity;

use std::ops::ControlFlow;

use crate::CalibrateError;
use crate::partially_quantized_model::PartiallyQuantizedModel;
use crate::progress::{Listener, Progress, Stage};
use crate::resume::ResumeDir;
use crate::settings::{SMALL_MODEL, Settings, parameter_count};

/// The state that all stages of a calibration share.
pub(crate) struct Run<'a, 'b> {
    pub(crate) settings: &'a Settings,
    pub(crate) listener: &'a mut Listener<'b>,
    pub(crate) resume: Option<&'a ResumeDir>,
}

impl Run<'_, '_> {
    fn report(
        &mut self,
        stage: Stage,
        done: usize,
        total: usize,
        divergence: Option<f64>,
    ) -> Result<(), CalibrateError> {
        match (self.listener)(Progress { stage, done, total, divergence }) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(CalibrateError::Cancelled),
        }
    }
}

/// Number of batches that are computed in parallel: one per thread, but a single one for a large model, whose batches
/// take more than a gigabyte each, and on a GPU, which parallelises every operation by itself.
fn parallel_batches(model: &PartiallyQuantizedModel<'_>) -> usize {
    let threads = rayon::current_num_threads();
    if model.device.is_cpu() && parameter_count(&model.config) < SMALL_MODEL { threads } else { 1 }
}
