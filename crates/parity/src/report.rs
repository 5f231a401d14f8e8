//! The result of a check. Every output (table, Markdown, HTML, JSON) is a rendering of [`ParityReport`].

use std::collections::BTreeMap;

use q35_metrics::{Calibration, Histogram, Summarizer};
use serde::{Deserialize, Serialize};

pub use crate::consistency::ConsistencyReport;
pub use crate::hidden::SiteReport;
use crate::{Check, CheckpointText, ConfigDifference, Fidelity, Finding, Grade, WeightCheck, WorstPosition};

/// Version of the JSON format; increased when a field changes its meaning or is removed.
pub const SCHEMA_VERSION: u32 = 1;

/// The result of a check.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ParityReport {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Name and version of the program.
    pub tool: String,
    /// Time of the check, RFC 3339 in UTC.
    #[serde(default)]
    pub date: String,
    /// The implementation verdict: true if every check is within its limit.
    pub passed: bool,
    /// The fidelity verdict; none if nothing was run.
    #[serde(default)]
    pub fidelity: Option<Fidelity>,
    /// The lowest accepted grade; none if the fidelity verdict is not required.
    #[serde(default)]
    pub required: Option<Grade>,
    /// The float model.
    pub reference: ModelInfo,
    /// The converted model.
    pub candidate: ModelInfo,
    /// Each number against its limit.
    pub checks: Vec<Check>,
    /// Faults and their places.
    pub findings: Vec<Finding>,
    /// Fields of config.json that differ.
    pub config: Vec<ConfigDifference>,
    /// Comparison of all tensors.
    pub weights: Option<WeightCheck>,
    /// Executed candidate against the float reference on the candidate's weights.
    pub implementation: Option<Comparison>,
    /// Float reference on the candidate's weights against the float reference on the original.
    pub conversion: Option<Comparison>,
    /// Executed candidate against the float reference on the original.
    pub total: Option<Comparison>,
    /// Perplexities over the scored positions whose next token is known.
    pub perplexity: Option<PerplexityReport>,
    /// KL by prompt and position.
    pub prompts: Vec<PromptReport>,
    /// Residual stream along the layers, of `implementation`.
    pub implementation_sites: Vec<SiteReport>,
    /// Residual stream along the layers, of `conversion`.
    pub conversion_sites: Vec<SiteReport>,
    /// Recurrent states after the run, the worst over all prompts.
    pub states: Vec<StateReport>,
    /// The same tokens computed other ways.
    pub consistency: Vec<ConsistencyReport>,
    /// The position with the largest KL between the executed candidate and the original.
    #[serde(default)]
    pub worst_position: Option<WorstPosition>,
    /// Greedy continuations.
    pub greedy: Vec<GreedyReport>,
    /// Seconds by stage.
    pub seconds: BTreeMap<String, f64>,
}

/// Identity of one of the two models.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct ModelInfo {
    /// Name that the user gave.
    pub name: String,
    /// Format and backend.
    pub description: String,
    /// Encoding, the key of the conversion limits: "mlx-4".
    pub kind: String,
    /// Arithmetic, the key of the implementation limits: "f32", "f16".
    pub execution: String,
    /// Recipe or encoding options that the artefact's manifest records.
    #[serde(default)]
    pub recipe: Option<String>,
    /// SHA-256 of config.json and the weight files.
    pub hash: Option<String>,
    /// Size of the weight files.
    pub size_bytes: Option<u64>,
}

/// Mean, quantiles and maximum of a distribution.
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
    /// Share of the positions with the same top-1 token, exact ties counted as equal.
    pub top1_agreement: f64,
    /// The same share, without the positions where the expected side is undecided within rounding.
    pub decided_agreement: f64,
    /// Exact ties among them.
    pub top1_ties: usize,
    /// Mean overlap of the two top-5 sets, 0 to 1.
    pub top5_overlap: f64,
    /// Mean cosine of logits.
    pub cosine_mean: f64,
    /// Worst cosine of logits.
    pub cosine_min: f64,
    /// Largest absolute difference of two logits.
    pub max_abs_difference: f64,
    /// The first position with another top-1 token.
    pub first_different: Option<Position>,
    /// The position with the largest KL.
    pub worst: Option<Position>,
    /// Candidate's confidence against agreement, in ten bins.
    pub calibration: Vec<CalibrationPoint>,
    /// Lower exponent of the first bin of `histogram`.
    pub histogram_from: i32,
    /// Bins to a decade of `histogram`.
    pub histogram_per_decade: usize,
    /// Number of positions by KL, in logarithmic bins.
    pub histogram: Vec<usize>,
}

/// A position of a prompt of the suite.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Position {
    /// The prompt.
    pub prompt: String,
    /// Index of the token.
    pub position: usize,
}

/// One bin of the calibration plot.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct CalibrationPoint {
    /// Positions in the bin.
    pub positions: usize,
    /// Their mean confidence.
    pub confidence: f64,
    /// Share of them with the expected side's top-1 token.
    pub agreement: f64,
}

/// Perplexity of the same text under three models.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq)]
pub struct PerplexityReport {
    /// Tokens predicted.
    pub tokens: u64,
    /// The float model.
    pub reference: f64,
    /// The float reference on the candidate's weights.
    pub own_float: f64,
    /// The executed candidate.
    pub candidate: Option<f64>,
}

impl PerplexityReport {
    /// Relative change from the float model to the candidate; 0.01 is one percent more.
    pub fn change(&self) -> f64 {
        self.candidate.unwrap_or(self.own_float) / self.reference - 1.0
    }
}

/// KL of one prompt, position by position.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct PromptReport {
    /// Name of the prompt.
    pub name: String,
    /// Kind of text.
    pub kind: String,
    /// Tokens of the prompt.
    pub tokens: usize,
    /// The first scored position.
    pub scored_from: usize,
    /// KL of each scored position, of `implementation`.
    pub implementation_kl: Vec<f64>,
    /// KL of each scored position, of `conversion`.
    pub conversion_kl: Vec<f64>,
    /// KL of each scored position, of `total`.
    pub total_kl: Vec<f64>,
}

/// Error of one layer's recurrent state.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq)]
pub struct StateReport {
    /// The layer.
    pub layer: usize,
    /// Smallest cosine over the prompts.
    pub cosine: f64,
    /// Largest relative error over the prompts.
    pub relative: f64,
}

/// Agreement on a greedy continuation.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct GreedyReport {
    /// The prompt.
    pub prompt: String,
    /// Tokens that the candidate generated.
    pub tokens: usize,
    /// Number of leading tokens that the float reference on the candidate's weights would choose too.
    pub same_as_own_float: usize,
    /// Number of leading tokens that the float model would choose too.
    pub same_as_reference: usize,
    /// The float model's greedy continuation.
    #[serde(default)]
    pub reference_tokens: Vec<u32>,
    /// Number of `reference_tokens` that the candidate would choose too, given the float model's tokens before.
    #[serde(default)]
    pub agreeing: usize,
    /// The candidate's greedy continuation.
    #[serde(default)]
    pub candidate_tokens: Vec<u32>,
    /// The continued tokens of the prompt.
    #[serde(default)]
    pub context: Vec<u32>,
    /// The three token lists as text.
    #[serde(default)]
    pub texts: Option<GreedyTexts>,
}

/// A prompt and both continuations as text.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct GreedyTexts {
    /// End of the continued prompt.
    pub prompt: String,
    /// The float model's continuation.
    pub reference: String,
    /// The candidate's continuation.
    pub candidate: String,
}

impl GreedyReport {
    /// Share of the float model's greedy tokens that the candidate would choose too; none without tokens.
    pub fn agreement(reports: &[Self]) -> Option<f64> {
        let tokens: usize = reports.iter().map(|report| report.reference_tokens.len()).sum();
        let agreeing: usize = reports.iter().map(|report| report.agreeing).sum();
        (tokens > 0).then(|| agreeing as f64 / tokens as f64)
    }
}

/// Accumulates a [`Comparison`].
pub(crate) struct ComparisonBuilder {
    pub(crate) summary: Summarizer,
    calibration: Calibration,
}

impl ComparisonBuilder {
    pub(crate) fn new() -> Self {
        Self { summary: Summarizer::default(), calibration: Calibration::new(10) }
    }

    pub(crate) fn push(&mut self, row: &q35_metrics::RowComparison) {
        self.summary.push(row);
        self.calibration.push(row);
    }

    /// The comparison; `positions` holds the position of every pushed row. Another top-1 token does not count against
    /// `decided_agreement` where the expected side prefers its own by at most `undecided_margin` logits.
    pub(crate) fn finish(&self, positions: &[Position], undecided_margin: f64) -> Comparison {
        let summary = self.summary.finish();
        let histogram = Histogram::of(self.summary.kl(), -14, 2, 2);
        let point = |bin: &q35_metrics::CalibrationBin| CalibrationPoint {
            positions: bin.positions,
            confidence: bin.confidence().unwrap_or(0.0),
            agreement: bin.agreement().unwrap_or(0.0),
        };
        Comparison {
            positions: summary.positions,
            kl: Spread {
                mean: summary.kl.mean,
                median: summary.kl.median,
                p99: summary.kl.p99,
                max: summary.kl.max,
            },
            top1_agreement: summary.top1_agreement,
            decided_agreement: self.summary.agreement_beyond(undecided_margin),
            top1_ties: summary.top1_ties,
            top5_overlap: summary.top5_overlap,
            cosine_mean: summary.cosine_mean,
            cosine_min: summary.cosine_min,
            max_abs_difference: summary.max_abs_difference,
            first_different: summary.first_different.and_then(|index| positions.get(index).cloned()),
            worst: positions.get(summary.kl.max_at).cloned(),
            calibration: self.calibration.bins().iter().map(point).collect(),
            histogram_from: histogram.lowest_exponent,
            histogram_per_decade: histogram.per_decade,
            histogram: histogram.counts,
        }
    }
}

/// Tokens at the end of a prompt that are shown as text.
const SHOWN_CONTEXT: usize = 48;

impl ParityReport {
    /// True if the artefact is computed right and its grade is not below the required one.
    pub fn accepted(&self) -> bool {
        let close_enough = match (self.required, &self.fidelity) {
            (Some(required), Some(fidelity)) => fidelity.grade >= required,
            // Without a run there is no fidelity verdict to require.
            (_, None) | (None, _) => true,
        };
        self.passed && close_enough
    }

    /// The grade of the fidelity verdict, if anything was run.
    pub fn grade(&self) -> Option<Grade> {
        self.fidelity.as_ref().map(|fidelity| fidelity.grade)
    }

    /// The implementation verdict as a phrase: "computed right", or the number of failed checks.
    pub fn implementation_phrase(&self) -> String {
        match self.failed_checks().count() {
            0 => format!("computed right ({} checks)", self.checks.len()),
            failed => format!("NOT computed right: {failed} of {} checks failed", self.checks.len()),
        }
    }

    /// The fidelity verdict as a phrase, with its metrics.
    pub fn fidelity_phrase(&self) -> String {
        match &self.fidelity {
            Some(fidelity) => fidelity.to_string(),
            None => "not judged, since nothing was run".into(),
        }
    }

    /// Both verdicts as one sentence without a full stop, for model cards and the end of a conversion.
    pub fn sentence(&self) -> String {
        format!("{}; {}", self.fidelity_phrase(), self.implementation_phrase())
    }

    /// Checks outside their limits.
    pub fn failed_checks(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|check| !check.passed)
    }

    /// Adds the texts of all reported tokens.
    pub fn decode_tokens(&mut self, text: &CheckpointText) {
        for greedy in &mut self.greedy {
            let shown = greedy.context.len().saturating_sub(SHOWN_CONTEXT);
            greedy.texts = Some(GreedyTexts {
                prompt: text.visible_text(&greedy.context[shown..]),
                reference: text.reply_text(&greedy.reference_tokens),
                candidate: text.reply_text(&greedy.candidate_tokens),
            });
        }
        if let Some(worst) = &mut self.worst_position {
            worst.decode(&|ids| text.visible_text(ids));
        }
    }

    /// The report as JSON.
    ///
    /// # Panics
    /// Never: every field is a plain value.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("plain values")
    }

    /// The summary that goes into a manifest.
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
            "grade": self.grade(),
            "implementation": numbers(&self.implementation),
            "conversion": numbers(&self.conversion),
            "total": numbers(&self.total),
            "perplexity_change": self.perplexity.as_ref().map(PerplexityReport::change),
            "failed_checks": self.failed_checks().map(|check| check.name.as_str()).collect::<Vec<_>>(),
        })
    }
}
