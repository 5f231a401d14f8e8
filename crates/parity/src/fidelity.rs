//! The fidelity verdict: an absolute grade of a candidate's closeness to the original model.
//!
//! The implementation verdict says whether an artefact is computed right; a model of two bits can be. The fidelity verdict
//! says whether it is still the model. Each metric has its own grade, by the limits in `manifests/thresholds.json`, and
//! the worst of them is the candidate's.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Comparison, GreedyReport, Limit, PerplexityReport};

/// Closeness of a candidate to the original model, in ascending order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Grade {
    /// Not the model any more.
    Destroyed,
    /// The model with a clear loss: other answers, more errors.
    Degraded,
    /// The model with a small loss: other wording in places.
    Close,
    /// The model, without a loss that shows in use.
    Faithful,
}

impl Grade {
    /// All grades, best first.
    pub const ALL: [Self; 4] = [Self::Faithful, Self::Close, Self::Degraded, Self::Destroyed];

    /// Name in reports, manifests and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Faithful => "faithful",
            Self::Close => "close",
            Self::Degraded => "degraded",
            Self::Destroyed => "destroyed",
        }
    }

    /// Meaning of the grade, as a phrase.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Faithful => "the model, without a loss that shows in use",
            Self::Close => "the model with a small loss: other wording in places",
            Self::Degraded => "the model with a clear loss: other answers, more errors",
            Self::Destroyed => "not the model any more",
        }
    }
}

impl fmt::Display for Grade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Grade {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let grade = Self::ALL.into_iter().find(|grade| grade.name() == name);
        grade.ok_or_else(|| format!("`{name}` is no grade: faithful, close, degraded or destroyed"))
    }
}

/// Limits of one metric for the three grades above `destroyed`.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct GradeLimits {
    /// Limit of `faithful`.
    pub faithful: Limit,
    /// Limit of `close`.
    pub close: Limit,
    /// Limit of `degraded`.
    pub degraded: Limit,
}

/// Limits of all metrics of the fidelity verdict. A metric without limits is not graded.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct FidelityLimits {
    /// Largest mean KL, in nats.
    pub mean_kl: Option<GradeLimits>,
    /// Smallest share of positions with the same top-1 token.
    pub top1_agreement: Option<GradeLimits>,
    /// Largest relative increase of perplexity; 0.01 is one percent.
    pub perplexity_change: Option<GradeLimits>,
    /// Smallest share of the float model's greedy tokens that the candidate would choose too.
    pub greedy_agreement: Option<GradeLimits>,
}

/// The fidelity verdict.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Fidelity {
    /// The worst grade of all metrics.
    pub grade: Grade,
    /// Scored positions on which the verdict is based.
    pub positions: usize,
    /// The graded metrics.
    pub metrics: Vec<FidelityMetric>,
}

/// One graded metric.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct FidelityMetric {
    /// "mean_kl", "top1_agreement", "perplexity_change" or "greedy_agreement".
    pub name: String,
    /// The measured value.
    pub value: f64,
    /// Its grade.
    pub grade: Grade,
    /// True if large values are good.
    pub at_least: bool,
    /// Its limits.
    pub limits: GradeLimits,
}

impl FidelityMetric {
    fn new(name: &str, value: f64, at_least: bool, limits: &GradeLimits) -> Self {
        // Comparisons with NaN are false, which leaves the lowest grade.
        let within = |limit: &Limit| if at_least { value >= limit.limit } else { value <= limit.limit };
        let grade = if within(&limits.faithful) {
            Grade::Faithful
        } else if within(&limits.close) {
            Grade::Close
        } else if within(&limits.degraded) {
            Grade::Degraded
        } else {
            Grade::Destroyed
        };
        Self { name: name.to_owned(), value, grade, at_least, limits: limits.clone() }
    }
}

impl Fidelity {
    /// Grades a candidate by its comparison with the original, its perplexity and its greedy agreement, where measured.
    /// None if no metric has limits.
    pub fn new(
        comparison: &Comparison,
        perplexity: Option<&PerplexityReport>,
        greedy: &[GreedyReport],
        limits: &FidelityLimits,
    ) -> Option<Self> {
        let perplexity_change = perplexity.map(PerplexityReport::change);
        let graded = [
            ("mean_kl", Some(comparison.kl.mean), false, &limits.mean_kl),
            ("top1_agreement", Some(comparison.top1_agreement), true, &limits.top1_agreement),
            ("perplexity_change", perplexity_change, false, &limits.perplexity_change),
            ("greedy_agreement", GreedyReport::agreement(greedy), true, &limits.greedy_agreement),
        ];
        let metrics: Vec<FidelityMetric> = graded
            .into_iter()
            .filter_map(|(name, value, at_least, limits)| {
                Some(FidelityMetric::new(name, value?, at_least, limits.as_ref()?))
            })
            .collect();
        let grade = metrics.iter().map(|metric| metric.grade).min()?;
        Some(Self { grade, positions: comparison.positions, metrics })
    }

    /// Value of a metric, if it was measured.
    pub fn value(&self, name: &str) -> Option<f64> {
        self.metrics.iter().find(|metric| metric.name == name).map(|metric| metric.value)
    }
}

impl fmt::Display for Fidelity {
    /// "close to the float model (mean KL 1.1e-1, top-1 81.0 %, perplexity +2.7 %, greedy 90.0 %, over 612 positions)".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.grade {
            Grade::Faithful => f.write_str("faithful to the float model")?,
            Grade::Close => f.write_str("close to the float model")?,
            Grade::Degraded => f.write_str("degraded against the float model")?,
            Grade::Destroyed => f.write_str("destroyed: not the float model any more")?,
        }
        f.write_str(" (")?;
        for metric in &self.metrics {
            let value = metric.value;
            match metric.name.as_str() {
                "mean_kl" => write!(f, "mean KL {value:.2e}, ")?,
                "top1_agreement" => write!(f, "top-1 agreement {:.1} %, ", 100.0 * value)?,
                "perplexity_change" => write!(f, "perplexity {:+.1} %, ", 100.0 * value)?,
                _ => write!(f, "greedy agreement {:.1} %, ", 100.0 * value)?,
            }
        }
        write!(f, "over {} positions)", self.positions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DEFAULT_THRESHOLDS, Spread, Thresholds};

    fn graded(mean_kl: f64, top1_agreement: f64, candidate: f64) -> Fidelity {
        let thresholds = Thresholds::from_json(DEFAULT_THRESHOLDS).unwrap();
        let kl = Spread { mean: mean_kl, ..Spread::default() };
        let comparison = Comparison { positions: 500, kl, top1_agreement, ..Comparison::default() };
        let perplexity = PerplexityReport {
            tokens: 500,
            reference: 20.0,
            own_float: candidate,
            candidate: Some(candidate),
        };
        Fidelity::new(&comparison, Some(&perplexity), &[], thresholds.fidelity()).unwrap()
    }

    /// LLaMA 3 8B under llama.cpp's quantizations (tools/perplexity/README.md), perplexity scaled to 20.
    #[test]
    fn published_quantizations_have_the_grades_that_people_expect() {
        let cases = [
            ("q8_0", 0.001355, 0.97674, 1.000425, Grade::Faithful),
            ("q6_K", 0.005452, 0.96031, 1.00349, Grade::Faithful),
            ("q4_K_M", 0.031273, 0.91901, 1.02816, Grade::Close),
            ("q2_K", 0.445132, 0.71138, 1.564849, Grade::Degraded),
            ("iq1_S", 2.211278, 0.3, 9.32, Grade::Destroyed),
        ];
        for (name, mean_kl, top1_agreement, ratio, expected) in cases {
            assert_eq!(graded(mean_kl, top1_agreement, 20.0 * ratio).grade, expected, "{name}");
        }
    }

    #[test]
    fn the_worst_metric_decides() {
        assert_eq!(graded(1e-4, 0.99, 20.0).grade, Grade::Faithful);
        assert_eq!(graded(1e-4, 0.99, 60.0).grade, Grade::Destroyed);
        assert_eq!(graded(1e-4, 0.30, 20.0).grade, Grade::Destroyed);
        assert_eq!(graded(f64::NAN, 0.99, 20.0).grade, Grade::Destroyed);
        assert_eq!(graded(1e-4, 0.99, f64::NAN).grade, Grade::Destroyed);
        assert_eq!(graded(1e-4, 0.99, 15.0).grade, Grade::Faithful, "a lower perplexity is no loss");
    }

    #[test]
    fn grades_are_ordered_and_read_back() {
        assert!(Grade::Faithful > Grade::Close && Grade::Degraded > Grade::Destroyed);
        for grade in Grade::ALL {
            assert_eq!(grade.name().parse(), Ok(grade));
        }
        assert!("good".parse::<Grade>().unwrap_err().contains("faithful, close"));
    }
}
