//! What a check found: one value, of which every output is a rendering.

use std::collections::BTreeMap;

use q35_metrics::{Calibration, Histogram, Summarizer};
use serde::{Deserialize, Serialize};

pub use crate::consistency::ConsistencyReport;
pub use crate::hidden::SiteReport;
use crate::{Check, ConfigDifference, Finding, WeightCheck};

/// Version of the JSON form; raised when a field changes its meaning or goes away.
pub const SCHEMA_VERSION: u32 = 1;

/// Everything that a check found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Name and version of the program.
    pub tool: String,
    /// Whether every check is within its limit.
    pub passed: bool,
    /// What was compared with what.
    pub reference: ModelInfo,
    /// The candidate.
    pub candidate: ModelInfo,
    /// Each number against its limit.
    pub checks: Vec<Check>,
    /// What is wrong, and where.
    pub findings: Vec<Finding>,
    /// Fields of config.json that differ.
    pub config: Vec<ConfigDifference>,
    /// Tensors against tensors.
    pub weights: Option<WeightCheck>,
    /// Candidate as executed against its own weights in float.
    pub implementation: Option<Comparison>,
    /// Candidate's own weights in float against the original.
    pub conversion: Option<Comparison>,
    /// Candidate as executed against the original.
    pub total: Option<Comparison>,
    /// Perplexities over the scored positions whose next token is known.
    pub perplexity: Option<PerplexityReport>,
    /// By prompt and position.
    pub prompts: Vec<PromptReport>,
    /// The residual stream along the layers, candidate as executed against its own weights in float.
    pub implementation_sites: Vec<SiteReport>,
    /// The residual stream along the layers, candidate's own weights in float against the original.
    pub conversion_sites: Vec<SiteReport>,
    /// Recurrent states after the run, the worst over all prompts.
    pub states: Vec<StateReport>,
    /// The same tokens computed in other ways.
    pub consistency: Vec<ConsistencyReport>,
    /// Greedy continuations.
    pub greedy: Vec<GreedyReport>,
    /// Seconds by stage.
    pub seconds: BTreeMap<String, f64>,
}

/// One of the two models.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct ModelInfo {
    /// As the user named it.
    pub name: String,
    /// What it is and who executes it.
    pub description: String,
    /// Encoding, which chose the limits of conversion: "mlx-4".
    pub kind: String,
    /// Arithmetic, which chose the limits of implementation: "f32", "f16".
    pub execution: String,
    /// Hash of the source files.
    pub hash: Option<String>,
    /// Size of the weight files.
    pub size_bytes: Option<u64>,
}

/// Mean, quantiles and maximum.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct Spread {
    /// Arithmetic mean.
    pub mean: f64,
    /// Median.
    pub median: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Largest.
    pub max: f64,
}

/// Logits against logits over all scored positions.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct Comparison {
    /// Positions compared.
    pub positions: usize,
    /// KL(expected || found) in nats.
    pub kl: Spread,
    /// Part of the positions with the same likeliest token, exact ties counted as the same.
    pub top1_agreement: f64,
    /// The same, not counting positions that the expected side leaves undecided within rounding.
    pub decided_agreement: f64,
    /// Exact ties among them.
    pub top1_ties: usize,
    /// Mean part of the five likeliest tokens that both share.
    pub top5_overlap: f64,
    /// Mean cosine of logits.
    pub cosine_mean: f64,
    /// Worst cosine of logits.
    pub cosine_min: f64,
    /// Largest absolute difference of two logits.
    pub max_abs_difference: f64,
    /// The first position whose likeliest token differs.
    pub first_different: Option<Position>,
    /// The position with the largest KL.
    pub worst: Option<Position>,
    /// Candidate's confidence against agreement, in ten bins: positions, mean confidence, part that agrees.
    pub calibration: Vec<CalibrationPoint>,
    /// Lower exponent of the first bin of `histogram`.
    pub histogram_from: i32,
    /// Bins to a decade of `histogram`.
    pub histogram_per_decade: usize,
    /// Positions by their KL, in logarithmic bins.
    pub histogram: Vec<usize>,
}

/// A place in the suite.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Position {
    /// The prompt.
    pub prompt: String,
    /// The position in it.
    pub position: usize,
}

/// One bin of the calibration plot.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct CalibrationPoint {
    /// Positions in it.
    pub positions: usize,
    /// Their mean confidence.
    pub confidence: f64,
    /// Part of them that agrees with the expected side.
    pub agreement: f64,
}

/// Perplexities of one text by three models.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq)]
pub struct PerplexityReport {
    /// Tokens predicted.
    pub tokens: u64,
    /// The float model.
    pub reference: f64,
    /// The candidate's weights in float.
    pub own_float: f64,
    /// The candidate as executed.
    pub candidate: Option<f64>,
}

impl PerplexityReport {
    /// Change from the float model to the candidate, 0.01 being one percent more.
    pub fn change(&self) -> f64 {
        self.candidate.unwrap_or(self.own_float) / self.reference - 1.0
    }
}

/// One prompt, position by position.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct PromptReport {
    /// Its name.
    pub name: String,
    /// What it exercises.
    pub kind: String,
    /// Tokens in it.
    pub tokens: usize,
    /// The first scored position.
    pub scored_from: usize,
    /// KL of each scored position: executed against own weights in float.
    pub implementation_kl: Vec<f64>,
    /// KL of each scored position: own weights in float against the original.
    pub conversion_kl: Vec<f64>,
    /// KL of each scored position: executed against the original.
    pub total_kl: Vec<f64>,
}

/// A layer's recurrent state.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq)]
pub struct StateReport {
    /// The layer.
    pub layer: usize,
    /// Smallest cosine over the prompts.
    pub cosine: f64,
    /// Largest relative error over the prompts.
    pub relative: f64,
}

/// A greedy continuation.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct GreedyReport {
    /// The prompt.
    pub prompt: String,
    /// Tokens that the candidate chose.
    pub tokens: usize,
    /// How many of them, from the first on, its own weights in float would have chosen.
    pub same_as_own_float: usize,
    /// How many of the float model's own tokens, from the first on, the candidate would have chosen.
    pub same_as_reference: usize,
}

/// Collects a [`Comparison`].
pub(crate) struct Collector {
    pub(crate) summary: Summarizer,
    calibration: Calibration,
}

impl Collector {
    pub(crate) fn new() -> Self {
        Self { summary: Summarizer::default(), calibration: Calibration::new(10) }
    }

    pub(crate) fn push(&mut self, row: &q35_metrics::RowComparison) {
        self.summary.push(row);
        self.calibration.push(row);
    }

    /// `places` has the prompt and position of every row pushed; `undecided` is the margin up to which a different
    /// likeliest token is not held against the candidate.
    pub(crate) fn finish(&self, places: &[Position], undecided: f64) -> Comparison {
        let found = self.summary.finish();
        let histogram = Histogram::of(self.summary.kl(), -14, 2, 2);
        let point = |bin: &q35_metrics::CalibrationBin| CalibrationPoint {
            positions: bin.positions,
            confidence: bin.confidence().unwrap_or(0.0),
            agreement: bin.agreement().unwrap_or(0.0),
        };
        Comparison {
            positions: found.positions,
            kl: Spread { mean: found.kl.mean, median: found.kl.median, p99: found.kl.p99, max: found.kl.max },
            top1_agreement: found.top1_agreement,
            decided_agreement: self.summary.agreement_beyond(undecided),
            top1_ties: found.top1_ties,
            top5_overlap: found.top5_overlap,
            cosine_mean: found.cosine_mean,
            cosine_min: found.cosine_min,
            max_abs_difference: found.max_abs_difference,
            first_different: found.first_different.and_then(|index| places.get(index).cloned()),
            worst: places.get(found.kl.max_at).cloned(),
            calibration: self.calibration.bins().iter().map(point).collect(),
            histogram_from: histogram.lowest_exponent,
            histogram_per_decade: histogram.per_decade,
            histogram: histogram.counts,
        }
    }
}

impl Report {
    /// The report as JSON.
    ///
    /// # Panics
    /// Never: every field is a plain value.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("plain values")
    }

    /// The few numbers that go into a manifest or a model card.
    pub fn summary(&self) -> serde_json::Value {
        let numbers = |comparison: &Option<Comparison>| {
            comparison.as_ref().map(|c| {
                serde_json::json!({
                    "mean_kl": c.kl.mean, "p99_kl": c.kl.p99, "max_kl": c.kl.max,
                    "top1_agreement": c.top1_agreement, "positions": c.positions,
                })
            })
        };
        serde_json::json!({
            "passed": self.passed,
            "implementation": numbers(&self.implementation),
            "conversion": numbers(&self.conversion),
            "total": numbers(&self.total),
            "perplexity_change": self.perplexity.as_ref().map(PerplexityReport::change),
            "failed_checks": self.checks.iter().filter(|c| !c.passed).map(|c| c.name.as_str()).collect::<Vec<_>>(),
        })
    }
}
