//! Settings of a calibration, and the ones that fit a model's size.

use q35_architecture::{TextConfig, tensor_table};

/// Settings of a calibration.
///
/// The serialized names are part of the manifest of an artefact and of the key under which finished work is resumed.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Settings {
    /// Size limit of all matrices together in bytes: codes, scales and biases.
    pub budget_bytes: u64,
    /// Bits and group size of every matrix. `None` allocates bits by sensitivity within the budget.
    pub uniform: Option<(u32, usize)>,
    /// Tokens per window.
    pub window: usize,
    /// Number of windows drawn from the calibration text.
    pub windows: usize,
    /// Number of self-generated windows, which the float model continues from prompts in the text.
    #[serde(rename = "own_windows")]
    pub generated_windows: usize,
    /// Number of self-generated windows that are decoded as one batch.
    #[serde(rename = "own_batch")]
    pub generation_batch: usize,
    /// Windows per batch.
    pub batch: usize,
    /// Number of windows over which the Fisher information of single weights is measured.
    pub sensitivity_windows: usize,
    /// True if a token's inputs are weighted by the squared gradient of the loss at that token; false weights all alike.
    #[serde(rename = "guided")]
    pub weighted_tokens: bool,
    /// True if rounding errors are fed back into later columns (GPTQ).
    pub feedback: bool,
    /// Passes of coordinate descent over codes, scales and biases after rounding.
    pub passes: usize,
    /// Damping: the part of the mean second moment that is added to the diagonal.
    pub damping: f64,
    /// Distillation after rounding.
    #[serde(rename = "learning")]
    pub distillation: Option<Distillation>,
    /// Seed of every random choice.
    pub seed: u64,
}

/// Settings of the distillation stage.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Distillation {
    /// Number of steps, each on one batch.
    pub steps: usize,
    /// Step sizes.
    pub rates: LearningRates,
    /// True if embedding and head are learned too; their gradients take 16 bytes per weight.
    pub tables: bool,
}

/// Step sizes of Adam, each in the unit of the parameter that it moves.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct LearningRates {
    /// Rate of scales, relative to the scale.
    pub scale: f32,
    /// Rate of biases, in steps of the group's scale.
    pub bias: f32,
    /// Rate of weights, in steps of the group's scale; 0 freezes the codes.
    pub code: f32,
    /// Rate of tensors that stay in float.
    pub float: f32,
}

impl Settings {
    /// Everything but distillation, for a model of this architecture within `budget_bytes`, on a calibration text of
    /// `text_tokens` tokens.
    ///
    /// The amount of work is limited in multiply-adds, not in time, so that the result does not depend on the machine:
    /// a model of 0.8 billion weights sees eight thousand tokens, half of them self-generated, a small one fifty
    /// thousand.
    pub fn rounding(config: &TextConfig, text_tokens: usize, budget_bytes: u64) -> Self {
        let (window, batch) = (256, 2);
        let affordable =
            (ROUNDING_WORK / (ROUNDING_WORK_PER_WEIGHT * parameter_count(config) * window as f64)) as usize;
        let windows = (affordable / 2).min(MAX_WINDOWS).min(text_tokens / window).max(batch);
        Self {
            budget_bytes,
            uniform: None,
            window,
            windows,
            generated_windows: windows,
            generation_batch: 32,
            batch,
            sensitivity_windows: (windows / 2).max(16),
            weighted_tokens: true,
            feedback: true,
            passes: 3,
            damping: 0.01,
            distillation: None,
            seed: 0,
        }
    }

    /// Adds distillation: scales, biases and norms of a large model from some ten thousand tokens; tables and codes of a
    /// small one as well, over the whole text several times.
    pub fn with_distillation(mut self, config: &TextConfig) -> Self {
        let weights = parameter_count(config);
        let tokens = (DISTILLATION_WORK / (DISTILLATION_WORK_PER_WEIGHT * weights)) as usize;
        let tokens = tokens.min(MAX_EPOCHS * self.windows * self.window);
        let small = weights < SMALL_MODEL;
        let rates =
            LearningRates { scale: 3e-4, bias: 3e-3, code: if small { CODE_RATE } else { 0.0 }, float: 5e-5 };
        let steps = (tokens / (self.window * self.batch)).max(1);
        self.distillation = Some(Distillation { steps, rates, tables: small });
        self
    }
}

/// Number of weights of the whole model.
pub(crate) fn parameter_count(config: &TextConfig) -> f64 {
    tensor_table(config).iter().map(|spec| spec.shape.iter().product::<usize>() as f64).sum()
}

/// Multiply-adds that rounding may take.
const ROUNDING_WORK: f64 = 4.5e13;
/// Multiply-adds per token and weight: half of the windows are generated (one forward pass), sensitivity takes two
/// passes forward and one back, and rounding one forward pass each of the float and the rounded layers, plus the second
/// moments.
const ROUNDING_WORK_PER_WEIGHT: f64 = 7.0;
/// Limit of windows for small models.
const MAX_WINDOWS: usize = 96;
/// Multiply-adds that distillation may take.
const DISTILLATION_WORK: f64 = 8e13;
/// Multiply-adds per token and weight: two passes forward and one back with all weight gradients.
const DISTILLATION_WORK_PER_WEIGHT: f64 = 10.0;
/// Limit of epochs over the calibration text.
const MAX_EPOCHS: usize = 4;
/// Number of weights below which memory is no concern: several batches run in parallel, and codes are learned at 12
/// bytes per weight.
pub(crate) const SMALL_MODEL: f64 = 1.5e8;
/// Initial learning rate of codes, in steps of the group's scale.
const CODE_RATE: f32 = 3e-3;
