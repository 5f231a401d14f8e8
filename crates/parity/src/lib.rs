//! Is this still the model? Numbers, reasons and reports.
//!
//! A converted artefact is compared with its source in three ways that tell the places of a fault apart:
//!
//! 1. **Weights**, without running anything: every tensor, dequantized and with its transform undone, against the
//!    source tensor, within the bound that its encoding allows ([`compare_weights`]).
//! 2. **Implementation**: the candidate as executed, against the float reference on the candidate's own dequantized
//!    weights. What differs here is a kernel, a graph, an overflow or a cache.
//! 3. **Conversion**: against the float reference on the original weights. What differs here, and not in 2, is
//!    quantization, or a transform gone wrong.
//!
//! [`check`] does all three over a [`Suite`] and fills a [`Report`], which renders itself as a table, Markdown, JSON
//! and HTML. [`perplexity`] and [`tasks`] answer what a quantization costs.
//!
//! The crate drives everything through [`q35_inference::Weights`] and [`q35_inference::Model`]; it does not print, and does
//! not know the command line.
//!
//! # Memory
//!
//! The float reference runs over all prompts at once, one layer's weights in memory at a time
//! ([`q35_reference::layerwise`]). Kept are the rows that enter its head, four kilobytes a position at full size; logits
//! are made of them a block at a time when they are compared, and never positions x vocabulary.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod artefact;
mod check;
mod config;
mod consistency;
mod diagnosis;
mod disguise;
mod encoder;
mod error;
mod float_pass;
mod greedy;
mod hidden;
pub mod perplexity;
mod reference_pass;
mod render;
mod report;
mod rows;
mod storage;
mod suite;
mod sums;
pub mod tasks;
mod thresholds;
mod verdict;
mod weights;

pub use artefact::{Arithmetic, Artefact, Executed, OpenError, float_model};
pub use check::{Candidate, CheckOptions, Execution, Source, check};
pub use config::{ConfigDifference, compare_configs};
pub use diagnosis::Finding;
pub use disguise::{Disguised, Mistake};
pub use encoder::CheckpointText;
pub use error::{ParityError, Progress, Stage};
pub use reference_pass::ReferencePass;
pub use report::*;
pub use storage::{Float, Storage};
pub use suite::{Prompt, Suite, SuiteError, SuiteItem, TextEncoder};
pub use thresholds::{Limit, Limits, SMALL, Subject, Thresholds};
pub use verdict::Check;
pub use weights::{TensorReport, WeightCheck, WorstElement, compare_weights};

/// The suite that is used when none is named, `manifests/suite.json`.
pub const DEFAULT_SUITE: &str = include_str!("../../../manifests/suite.json");

/// The limits that are used when none are named, `manifests/thresholds.json`.
pub const DEFAULT_THRESHOLDS: &str = include_str!("../../../manifests/thresholds.json");
