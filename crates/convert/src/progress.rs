//! Progress of a conversion.

use std::fmt;

/// A stage of a conversion. Stages come in this order; those that a conversion does not need are absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stage {
    /// A stage of the calibrated recipe; minutes.
    Calibration(q35_calibrate::Stage),
    /// Tensors are quantized and written. Counted in bytes of the source.
    Quantization,
    /// A stage of the parity check.
    Verification(q35_parity::Stage),
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Calibration(stage) => f.write_str(match stage {
                q35_calibrate::Stage::SelfGeneration => "self-generated text",
                q35_calibrate::Stage::FloatPredictions => "float predictions",
                q35_calibrate::Stage::Sensitivity => "sensitivity",
                q35_calibrate::Stage::Rounding => "rounding, layer by layer",
                q35_calibrate::Stage::Distillation => "distillation",
            }),
            Self::Quantization => f.write_str("quantizing"),
            Self::Verification(stage) => stage.fmt(f),
        }
    }
}

/// Progress of a stage. Stages do not overlap; `done` never decreases within one and may stay below `total` if the
/// conversion fails. Called from any thread; must not block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The stage.
    pub stage: Stage,
    /// Units done: bytes, layers, windows or positions.
    pub done: u64,
    /// Units in total.
    pub total: u64,
}

/// Receiver of [`Progress`].
pub type ProgressCallback<'a> = &'a (dyn Fn(Progress) + Sync);
