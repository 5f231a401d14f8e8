//! Runs Core ML packages of Qwen3.5 as a [`q35_inference::Model`].
//!
//! [`CoreMlModel::open`] recognises the form of a directory's packages: one package with a `prefill` and a `decode`
//! function, one package for each, or an embedding and a decoder as speech-swift loads them; caches as inputs and
//! outputs or as states; the embedding inside, on the host, or in a package. It then feeds a prompt in chunks padded on
//! the right, and generated tokens one by one. All sizes and names are read from the functions' inputs, outputs and
//! states, so packages that other converters wrote run too if their features have the same meaning.
//!
//! A [`Predictor`] executes the packages: [`EvaluatorPredictor`] on any system, `ApplePredictor` through Apple's Core ML.
//!
//! The crate must not know about chat or about conversion. `unsafe` is confined to the `apple` module.
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
mod model;
mod predictor;
mod sequence;
mod shared;
mod signatures;
mod snapshots;
mod stage;
mod units;

#[cfg(target_vendor = "apple")]
pub use apple::{ApplePredictor, compute_plan};
pub use error::{OpenError, PredictError};
pub use evaluator::EvaluatorPredictor;
pub use model::{CoreMlModel, LoadPackage};
pub use predictor::{CacheIo, Call, Predictor, Session, Signature, Watcher};
pub use q35_mil_eval::{Port, Precision, Tensor};
pub use signatures::package_signatures;
pub use units::{ComputeUnits, PlannedOperation};
