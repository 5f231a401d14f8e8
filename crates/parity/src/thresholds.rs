//! Limits of the comparisons, with their reasons.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use crate::FidelityLimits;

/// A limit and its reason.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// Largest allowed value, or smallest for metrics that should be large (agreement, cosine, equal tokens).
    pub limit: f64,
    /// Reason for this number: a measurement or a requirement.
    pub because: String,
}

/// The limits of one comparison. A metric without a limit is reported and not judged.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Largest mean KL, in nats.
    pub mean_kl: Option<Limit>,
    /// Largest 99th percentile of KL.
    pub p99_kl: Option<Limit>,
    /// Largest KL of any position.
    pub max_kl: Option<Limit>,
    /// Smallest share of positions with the same top-1 token, exact ties counted as equal.
    pub top1_agreement: Option<Limit>,
    /// Margin in logits below which the reference is undecided: a position where it prefers its own top-1 token by less
    /// does not count against `top1_agreement`.
    pub undecided_margin: Option<Limit>,
    /// Smallest mean cosine of logits.
    pub cosine_mean: Option<Limit>,
    /// Smallest cosine of any recurrent state.
    pub state_cosine: Option<Limit>,
    /// Largest relative error of the residual stream at any site.
    pub hidden_relative: Option<Limit>,
    /// Largest mean KL of the same tokens by prefill, by decode, or with the prompt split.
    pub consistency_kl: Option<Limit>,
    /// Smallest number of equal leading greedy tokens.
    pub greedy_tokens: Option<Limit>,
}

/// All limits, the format of `manifests/thresholds.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Thresholds {
    /// Version of the file format: 1.
    pub schema_version: u32,
    /// Origin of the numbers.
    pub description: String,
    /// Executed candidate against the float reference on the candidate's weights, by arithmetic: "f32", "f16", "fast".
    pub implementation: BTreeMap<String, Limits>,
    /// Candidate against the original, by encoding: "mlx-4", "coreml-8", "float"; "default" for any other.
    pub conversion: BTreeMap<String, Limits>,
    /// The same for models of fewer than [`SMALL_MODEL_WEIGHTS`] weights, which lose more to the same rounding.
    #[serde(default)]
    pub small_conversion: BTreeMap<String, Limits>,
    /// The same for references that predict the text hardly better than chance: their distributions are noise, which any
    /// rounding changes.
    #[serde(default)]
    pub untrained_conversion: BTreeMap<String, Limits>,
    /// Limits of the grades of the fidelity verdict; the default ones if absent.
    #[serde(default)]
    pub fidelity: Option<FidelityLimits>,
}

/// Properties of the reference that select the conversion limits.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReferenceTraits {
    /// Number of weights.
    pub weights: u64,
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// Perplexity on the prompts, if any token was predicted.
    pub perplexity: Option<f64>,
}

impl ReferenceTraits {
    /// True if it predicts hardly better than a uniform distribution.
    fn is_untrained(self) -> bool {
        self.perplexity
            .is_some_and(|perplexity| perplexity.is_nan() || perplexity > self.vocab_size as f64 / 2.0)
    }
}

/// Models of fewer weights use the limits of small models, where there are any.
pub const SMALL_MODEL_WEIGHTS: u64 = 100_000_000;

impl Thresholds {
    /// Reads thresholds.
    ///
    /// # Errors
    /// Not JSON of this format, or of another version.
    pub fn from_json(text: &str) -> Result<Self, String> {
        let thresholds: Self =
            serde_json::from_str(text).map_err(|error| format!("not thresholds: {error}"))?;
        match thresholds.schema_version {
            1 => Ok(thresholds),
            found => Err(format!("thresholds of schema version {found}; this program reads version 1")),
        }
    }

    /// Limits of the grades of the fidelity verdict.
    pub fn fidelity(&self) -> &FidelityLimits {
        static DEFAULT: OnceLock<FidelityLimits> = OnceLock::new();
        let default = || {
            let thresholds = Self::from_json(crate::DEFAULT_THRESHOLDS).ok();
            thresholds.and_then(|thresholds| thresholds.fidelity).unwrap_or_default()
        };
        self.fidelity.as_ref().unwrap_or_else(|| DEFAULT.get_or_init(default))
    }

    /// Implementation limits for the arithmetic `execution`.
    pub fn implementation_limits(&self, execution: &str) -> Option<&Limits> {
        self.implementation.get(execution)
    }

    /// Conversion limits for the encoding `kind`, or the default ones.
    pub fn conversion_limits(&self, kind: &str, reference: ReferenceTraits) -> Option<&Limits> {
        let untrained =
            reference.is_untrained().then(|| limits_or_default(&self.untrained_conversion, kind)).flatten();
        let small = || {
            (reference.weights < SMALL_MODEL_WEIGHTS)
                .then(|| limits_or_default(&self.small_conversion, kind))
                .flatten()
        };
        untrained.or_else(small).or_else(|| limits_or_default(&self.conversion, kind))
    }
}

fn limits_or_default<'a>(limits: &'a BTreeMap<String, Limits>, kind: &str) -> Option<&'a Limits> {
    limits.get(kind).or_else(|| limits.get("default"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_limits_and_refuses_what_it_does_not_know() {
        let text = r#"{"schema_version": 1, "description": "", "conversion": {"default": {}},
            "implementation": {"f32": {"mean_kl": {"limit": 1e-6, "because": "required"}}}}"#;
        let thresholds = Thresholds::from_json(text).unwrap();
        let limit = thresholds.implementation_limits("f32").unwrap().mean_kl.clone().unwrap();
        assert_eq!(limit.limit, 1e-6);
        assert!(thresholds.conversion_limits("mlx-4", ReferenceTraits::default()).is_some());
        assert!(thresholds.implementation_limits("f16").is_none());
        assert!(Thresholds::from_json(&text.replace("mean_kl", "mean_kI")).unwrap_err().contains("mean_kI"));
        assert!(Thresholds::from_json(&text.replace(": 1,", ": 7,")).unwrap_err().contains("version 7"));
    }

    #[test]
    fn small_and_untrained_models_have_their_own_limits() {
        let thresholds = Thresholds::from_json(crate::DEFAULT_THRESHOLDS).unwrap();
        let of = |weights, perplexity| {
            let reference = ReferenceTraits { weights, vocab_size: 1000, perplexity };
            thresholds.conversion_limits("mlx-4", reference).unwrap().mean_kl.clone().unwrap().limit
        };
        let large = of(750_000_000, Some(20.0));
        assert_eq!(of(750_000_000, None), large);
        assert!(of(5_000_000, Some(20.0)) > large);
        assert!(of(750_000_000, Some(501.0)) > large && of(750_000_000, Some(f64::NAN)) > large);
        for arithmetic in ["f32", "f16", "bf16", "fast"] {
            assert!(thresholds.implementation_limits(arithmetic).unwrap().mean_kl.is_some(), "{arithmetic}");
        }
    }
}
