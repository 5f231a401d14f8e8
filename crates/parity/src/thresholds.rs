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
    /// Candidate as executed against its own weights in float, by arithmetic: "f32", "f16", "int8-activations".
    pub implementation: BTreeMap<String, Limits>,
    /// Against the original, by encoding: "mlx-4", "coreml-8", "float"; "default" for what is not listed.
    pub conversion: BTreeMap<String, Limits>,
    /// The same for models of fewer than [`SMALL`] weights, which lose more to the same rounding.
    #[serde(default)]
    pub small_conversion: BTreeMap<String, Limits>,
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

    /// Limits of the encoding `kind` for a model of so many weights, or the default ones.
    pub fn conversion_of(&self, kind: &str, weights: u64) -> Option<&Limits> {
        let small = if weights < SMALL { listed(&self.small_conversion, kind) } else { None };
        small.or_else(|| listed(&self.conversion, kind))
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
        assert!(thresholds.conversion_of("mlx-4", 5).is_some());
        assert!(thresholds.implementation_of("f16").is_none());
        assert!(Thresholds::from_json(&text.replace("mean_kl", "mean_kI")).unwrap_err().contains("mean_kI"));
        assert!(Thresholds::from_json(&text.replace(": 1,", ": 7,")).unwrap_err().contains("version 7"));
    }

    #[test]
    fn small_models_have_their_own_limits() {
        let thresholds = Thresholds::from_json(crate::DEFAULT_THRESHOLDS).unwrap();
        let limit =
            |weights| thresholds.conversion_of("mlx-4", weights).unwrap().mean_kl.clone().unwrap().limit;
        assert!(limit(5_000_000) > limit(750_000_000));
        for arithmetic in ["f32", "f16", "bf16", "int8-activations"] {
            assert!(thresholds.implementation_of(arithmetic).unwrap().mean_kl.is_some(), "{arithmetic}");
        }
    }
}
