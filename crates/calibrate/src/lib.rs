//! Calibrated quantization: the same format and size as round to nearest, closer to the float model.
//!
//! [`calibrate`] takes a float model and token windows of calibration text. It returns every matrix as codes, scales and
//! biases in MLX's affine format, and new values for tensors that stay in float if they were learned. The stages:
//!
//! 1. **Self-generation**: the float model continues prompts from the text, for half of the windows.
//! 2. **Sensitivity**: a backward pass measures the Fisher information of every matrix, which determines its bits and
//!    group size within the budget, and the gradient with respect to each layer's output at every token. A tied
//!    embedding is measured separately as lookup and as head.
//! 3. **Rounding with error feedback** (GPTQ), layer after layer on inputs that carry the earlier layers' errors, every
//!    token weighted by its squared gradient. Coordinate descent over codes, scales and biases under the same error
//!    measure follows; it never increases the error.
//! 4. **Distillation**, optional: gradient descent on KL(float || quantized) over scales, biases, codes and float
//!    tensors. Not part of [`Settings::rounding`]; `docs/performance/calibration.md` says why.
//!
//! The result is deterministic for a seed and a number of threads. The crate must not know how the result is stored or
//! run, nor read text: it receives token ids.
//!
//! ```
//! use q35_calibrate::{Job, Settings, calibrate};
//! use q35_inference::Weights as _;
//! use std::ops::ControlFlow;
//!
//! let weights = q35_testkit::TinyCheckpoint::new().weights();
//! let ids: Vec<u32> = (0..512).map(|i| i * 7 % 256).collect();
//! let settings = Settings {
//!     uniform: Some((4, 32)), // 4 bits in groups of 32 everywhere
//!     windows: 2,
//!     generated_windows: 0,
//!     ..Settings::rounding(weights.config(), ids.len(), 0)
//! };
//! let job = Job {
//!     weights: &weights,
//!     float: q35_quant::FloatType::Bf16,
//!     ids: &ids,
//!     device: &candle_core::Device::Cpu,
//!     resume: None,
//! };
//! let calibrated = calibrate(job, &settings, &mut |_| ControlFlow::Continue(()))?;
//! assert_eq!(calibrated.allocations["embed_tokens.weight"].bits, 4);
//! # Ok::<(), q35_calibrate::CalibrateError>(())
//! ```
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod bit_allocation;
mod calibration_text;
mod cholesky;
mod coordinate_descent;
mod distillation;
mod error;
mod gptq;
mod gradients;
mod job;
mod parallel;
mod partially_quantized_model;
mod progress;
mod quantized_matrix;
mod resume;
mod second_moments;
mod self_generated;
mod sensitivity;
mod settings;
mod stages;

pub use calibration_text::DEFAULT_TEXT;
pub use error::CalibrateError;
pub use gptq::{Feedback, round_with_feedback};
pub use job::{BitAllocation, Calibrated, Job, calibrate, mean_divergence};
pub use partially_quantized_model::Replacement;
pub use progress::{Listener, Progress, Stage};
pub use quantized_matrix::QuantizedMatrix;
pub use resume::ResumeDir;
pub use settings::{Distillation, LearningRates, Settings};
