//! Drives Core ML packages of Qwen3.5 as a [`q35_inference::Model`], whoever executes them.
//!
//! [`CoreMlModel::open`] looks at a directory, finds out which of the known forms its packages have (one package with
//! a `prefill` and a `decode` function, one package for each, or an embedding and a decoder as speech-swift loads
//! them; caches as inputs and outputs or as states; embedding inside, on the host, or in a package), and feeds them: a
//! prompt in chunks padded on the right, then token by token. Everything it needs to know it reads from the functions'
//! own inputs, outputs and states, so that a package made by others is driven by the same code.
//!
//! A [`Predictor`] executes the packages: [`EvaluatorPredictor`] on any system, `ApplePredictor` through Apple's Core ML.
//!
//! It knows nothing of chat, and nothing of how the packages were made.
//!
//! ```no_run
//! use q35_backend_coreml::{CoreMlModel, Precision};
//! use q35_inference::{Discard, Model, LogitsFor};
//!
//! let model = CoreMlModel::open("model-dir".as_ref(), Precision::Half)?;
//! let mut sequence = model.new_sequence(256)?;
//! sequence.extend(&[1, 2, 3], LogitsFor::LastToken, &mut Discard)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![deny(missing_docs)]
#![deny(unsafe_code)]

#[cfg(any(target_vendor = "apple", test))]
mod apple;
mod config;
mod embedding;
mod error;
mod evaluator;
mod forms;
mod model;
mod predictor;
mod sequence;
mod signatures;
mod snapshots;
mod units;

#[cfg(target_vendor = "apple")]
pub use apple::{ApplePredictor, compute_plan};
pub use error::{OpenError, PredictError};
pub use evaluator::EvaluatorPredictor;
pub use model::{CoreMlModel, LoadPackage};
pub use predictor::{Call, Kept, Predictor, Session, Signature, Watcher};
pub use q35_mil_eval::{Port, Precision, Tensor};
pub use signatures::package_signatures;
pub use units::{ComputeUnits, PlannedOperation};
