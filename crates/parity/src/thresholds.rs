//! How far is too far.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A number that must not be passed, and where it comes from.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// The number: a largest value, or a smallest for what should be large (agreement, cosine, equal tokens).
    pub limit: f64,
    /// Why this number: a measurement or a requirement.
    pub because: String,
}

/// The limits of one comparison. What is absent is reported and not judged.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Largest mean KL, in nats.
    pub mean_kl: Option<Limit>,
    /// Largest 99th percentile of KL.
    pub p99_kl: Option<Limit>,
    /// Largest KL of a position.
    pub max_kl: Option<Limit>,
    /// Smallest part of positions with the same likeliest token, exact ties apart.
    pub top1_agreement: Option<Limit>,
    /// Largest preference, in logits, of the reference where the likeliest token differs all the same: below it the
    /// reference itself has no opinion, and the position does not count against `top1_agreement`.
    pub undecided_margin: Option<Limit>,
    /// Smallest mean cosine of logits.
    pub cosine_mean: Option<Limit>,
    /// Smallest cosine of any recurrent state.
    pub state_cosine: Option<Limit>,
    /// Largest relative error of the residual stream at any place.
    pub hidden_relative: Option<Limit>,
    /// Largest mean KL of the same tokens prefilled, decoded one by one, or cut elsewhere.
    pub consistency_kl: Option<Limit>,
    /// Smallest number of greedy tokens that are the same from the first on.
    pub greedy_tokens: Option<Limit>,
}

/// All limits, as `manifests/thresholds.json` holds them.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Thresholds {
    /// Version of this file's form: 1.
    pub schema_version: u32,
    /// How the numbers were obtained.
    pub description: String,
    /// Candidate as executed against its own weights in float, by arithmetic: "f32", "f16", "fast".
    pub implementation: BTreeMap<String, Limits>,
    /// Against the original, by encoding: "mlx-4", "coreml-8", "float"; "default" for what is not listed.
    pub conversion: BTreeMap<String, Limits>,
    /// The same for models of fewer than [`SMALL`] weights, which lose more to the same rounding.
    #[serde(default)]
    pub small_conversion: BTreeMap<String, Limits>,
    /// The same where the reference predicts the text no better than by chance, whose distributions are noise that any
    /// rounding turns into other noise.
    #[serde(default)]
    pub untrained_conversion: BTreeMap<String, Limits>,
}

/// What is known of the reference when limits of conversion are chosen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Subject {
    /// Its weights.
    pub weights: u64,
    /// Tokens of its vocabulary.
    pub vocab_size: usize,
    /// Its perplexity on the prompts, if they were long enough to tell.
    pub perplexity: Option<f64>,
}

impl Subject {
    /// Whether it predicts hardly better than who gives every token the same chance.
    fn untrained(self) -> bool {
        self.perplexity
            .is_some_and(|perplexity| perplexity.is_nan() || perplexity > self.vocab_size as f64 / 2.0)
    }
}

/// Models of fewer weights than this are judged by the limits of small ones, where there are any.
pub const SMALL: u64 = 100_000_000;

impl Thresholds {
    /// Reads thresholds.
    ///
    /// # Errors
    /// Not JSON of this form, or of another version.
    pub fn from_json(text: &str) -> Result<Self, String> {
        let thresholds: Self =
            serde_json::from_str(text).map_err(|error| format!("not thresholds: {error}"))?;
        match thresholds.schema_version {
            1 => Ok(thresholds),
            found => Err(format!("thresholds of schema version {found}; this program reads version 1")),
        }
    }

    /// Limits of the arithmetic `execution`.
    pub fn implementation_of(&self, execution: &str) -> Option<&Limits> {
        self.implementation.get(execution)
    }

    /// Limits of the encoding `kind` for that model, or the default ones.
    pub fn conversion_of(&self, kind: &str, subject: Subject) -> Option<&Limits> {
        let untrained = subject.untrained().then(|| listed(&self.untrained_conversion, kind)).flatten();
        let small = || (subject.weights < SMALL).then(|| listed(&self.small_conversion, kind)).flatten();
        untrained.or_else(small).or_else(|| listed(&self.conversion, kind))
    }
}

fn listed<'a>(limits: &'a BTreeMap<String, Limits>, kind: &str) -> Option<&'a Limits> {
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
        let limit = thresholds.implementation_of("f32").unwrap().mean_kl.clone().unwrap();
        assert_eq!(limit.limit, 1e-6);
        assert!(thresholds.conversion_of("mlx-4", Subject::default()).is_some());
        assert!(thresholds.implementation_of("f16").is_none());
        assert!(Thresholds::from_json(&text.replace("mean_kl", "mean_kI")).unwrap_err().contains("mean_kI"));
        assert!(Thresholds::from_json(&text.replace(": 1,", ": 7,")).unwrap_err().contains("version 7"));
    }

    #[test]
    fn small_and_untrained_models_have_their_own_limits() {
        let thresholds = Thresholds::from_json(crate::DEFAULT_THRESHOLDS).unwrap();
        let of = |weights, perplexity| {
            let subject = Subject { weights, vocab_size: 1000, perplexity };
            thresholds.conversion_of("mlx-4", subject).unwrap().mean_kl.clone().unwrap().limit
        };
        let large = of(750_000_000, Some(20.0));
        assert_eq!(of(750_000_000, None), large);
        assert!(of(5_000_000, Some(20.0)) > large);
        assert!(of(750_000_000, Some(501.0)) > large && of(750_000_000, Some(f64::NAN)) > large);
        for arithmetic in ["f32", "f16", "bf16", "fast"] {
            assert!(thresholds.implementation_of(arithmetic).unwrap().mean_kl.is_some(), "{arithmetic}");
        }
    }
}
