//! Comparison of a converted model with its float original: metrics, verdicts and reports.
//!
//! Three comparisons separate the places of a fault:
//!
//! 1. **Weights**, without running anything: every tensor, dequantized and with its transform undone, against the
//!    source tensor, within the error that its encoding explains ([`compare_weights`]).
//! 2. **Implementation**: the executed candidate against the float reference on the candidate's dequantized weights.
//!    A difference is a fault of a kernel, a graph, an overflow or a cache.
//! 3. **Conversion**: the float reference on the candidate's weights against the float reference on the original. A
//!    difference is the loss of quantization, or a faulty transform.
//!
//! [`check`] does all three over a [`Suite`] and returns a [`ParityReport`], which renders as a table, Markdown, JSON
//! and HTML. It has two verdicts. The implementation verdict says whether the artefact is computed right: every
//! [`Check`] is within its limit. The fidelity verdict ([`Fidelity`]) says whether it is still the model: an absolute
//! [`Grade`], whatever the encoding. [`perplexity`] and [`tasks`] measure the cost of a quantization.
//!
//! ```no_run
//! use q35_backend::{Precision, RunOptions};
//! use q35_inference::CancelToken;
//! use q35_parity::{
//!     Artefact, Candidate, CheckOptions, CheckpointText, DEFAULT_SUITE, DEFAULT_THRESHOLDS, Source,
//!     Suite, Thresholds, check,
//! };
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let reference = Artefact::open("Qwen3.5-0.8B".as_ref(), None)?;
//! let converted = Artefact::open("Qwen3.5-0.8B-int4".as_ref(), None)?;
//! let text = CheckpointText::open(reference.dir())?;
//! let prompts = Suite::from_json(DEFAULT_SUITE)?.prompts(&text, false, None)?;
//! let running = converted.open_model(&RunOptions::default().with_precision(Precision::Declared))?;
//! let source = Source { name: "original".into(), hash: None, weights: reference.weights() };
//! let candidate = Candidate {
//!     name: "converted".into(),
//!     kind: converted.kind(),
//!     recipe: None,
//!     size_bytes: Some(converted.weight_bytes()),
//!     weights: converted.weights(),
//!     storage: &|spec| converted.storage(spec),
//!     model: Some(&*running.model),
//!     activations: running.activations,
//! };
//! let thresholds = Thresholds::from_json(DEFAULT_THRESHOLDS)?;
//! let report = check(
//!     &source,
//!     &candidate,
//!     &prompts,
//!     &thresholds,
//!     CheckOptions::default(),
//!     &CancelToken::new(),
//!     &|_| {},
//! )?;
//! std::fs::write("parity.html", report.to_html())?;
//! # Ok(())
//! # }
//! ```
//!
//! Models are driven through [`q35_inference::Weights`] and [`q35_inference::Model`] alone. The crate must not print, and
//! must not know the command line.
//!
//! # Memory
//!
//! The float reference runs over all prompts at once, with one layer's weights in memory at a time
//! ([`q35_reference::layerwise`]). It stores the input of the head, four kilobytes a position at 0.8 billion weights;
//! logits are computed from that a block at a time when they are compared.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod accumulate;
mod artefact;
mod check;
mod config;
mod consistency;
mod diagnosis;
mod encoder;
mod error;
mod fidelity;
mod float_pass;
mod greedy;
mod hidden;
mod limit_checks;
pub mod perplexity;
mod qwen3_5_faults;
mod reference_pass;
mod render;
mod report;
mod runner;
mod storage;
mod suite;
pub mod tasks;
mod thresholds;
mod weights;
mod worst_position;

pub use artefact::{Artefact, OpenError, float_model};
pub use check::{Candidate, CheckOptions, Source, check};
pub use config::{ConfigDifference, compare_configs};
pub use diagnosis::Finding;
pub use encoder::CheckpointText;
pub use error::{ParityError, Progress, Stage};
pub use fidelity::{Fidelity, FidelityLimits, FidelityMetric, Grade, GradeLimits};
pub use limit_checks::Check;
pub use qwen3_5_faults::{FaultyWeights, KnownFault};
pub use reference_pass::ReferencePass;
pub use report::*;
pub use storage::Storage;
pub use suite::{Prompt, Suite, SuiteError, SuiteItem, TextEncoder};
pub use thresholds::{Limit, Limits, ReferenceTraits, SMALL_MODEL_WEIGHTS, Thresholds};
pub use weights::{TensorReport, WeightCheck, WorstElement, compare_weights};
pub use worst_position::{TokenProbability, WorstPosition};

/// The default suite, `manifests/suite.json`.
pub const DEFAULT_SUITE: &str = include_str!("../../../manifests/suite.json");

/// The default limits, `manifests/thresholds.json`.
pub const DEFAULT_THRESHOLDS: &str = include_str!("../../../manifests/thresholds.json");
