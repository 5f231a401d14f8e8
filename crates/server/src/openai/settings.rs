//! Sampling settings of a request.

use q35_runtime::Sampling;
use serde_json::Value;

use super::types::Common;
use crate::ServerConfig;
use crate::error::ApiError;

/// Largest number of choices.
const MOST_CHOICES: usize = 16;

/// Largest number of stop texts.
const MOST_STOPS: usize = 16;

/// The settings of each choice: the server's, replaced by the request's. Choice `i` adds `i` to the seed.
///
/// # Errors
/// A 400 that names the field.
pub(crate) fn samplings(
    config: &ServerConfig,
    common: &Common,
    adjust: impl Fn(&mut Sampling) -> Result<(), ApiError>,
) -> Result<Vec<Sampling>, ApiError> {
    let mut sampling = Sampling { max_tokens: config.max_tokens, ..config.sampling.clone() };
    let number = |name: &str, value: Option<f32>, low: f32, high: f32| match value {
        Some(value) if !(low..=high).contains(&value) => {
            Err(ApiError::field(name, format!("expected a number from {low} to {high}, found {value}")))
        }
        value => Ok(value),
    };
    sampling.temperature =
        number("temperature", common.temperature, 0.0, 2.0)?.unwrap_or(sampling.temperature);
    if common.top_p == Some(0.0) {
        // Clients send 0 for greedy decoding.
        sampling.top_k = 1;
    } else {
        sampling.top_p = number("top_p", common.top_p, 0.0, 1.0)?.unwrap_or(sampling.top_p);
    }
    sampling.top_k = common.top_k.unwrap_or(sampling.top_k);
    sampling.min_p = number("min_p", common.min_p, 0.0, 1.0)?.unwrap_or(sampling.min_p);
    sampling.presence_penalty =
        number("presence_penalty", common.presence_penalty, -2.0, 2.0)?.unwrap_or(sampling.presence_penalty);
    sampling.frequency_penalty = number("frequency_penalty", common.frequency_penalty, -2.0, 2.0)?
        .unwrap_or(sampling.frequency_penalty);
    if let Some(penalty) = common.repetition_penalty {
        if !(penalty > 0.0 && penalty.is_finite()) {
            return Err(ApiError::field(
                "repetition_penalty",
                format!("expected a number above 0, found {penalty}"),
            ));
        }
        sampling.repetition_penalty = penalty;
    }
    if let Some(most) = common.max_tokens {
        sampling.max_tokens = max_tokens("max_tokens", most, config)?;
    }
    sampling.stop = common.stop.clone().map(super::types::Stop::into_texts).unwrap_or_default();
    if sampling.stop.len() > MOST_STOPS || sampling.stop.iter().any(String::is_empty) {
        return Err(ApiError::field("stop", format!("expected up to {MOST_STOPS} texts that are not empty")));
    }
    for (id, bias) in common.logit_bias.iter().flatten() {
        let field = || format!("logit_bias.{id}");
        let id = id.parse().map_err(|_| ApiError::field(field(), "expected a token id"))?;
        let bias = number("logit_bias", Some(*bias), -100.0, 100.0)?.unwrap_or_default();
        sampling.logit_bias.insert(id, if bias <= -100.0 { f32::NEG_INFINITY } else { bias });
    }
    adjust(&mut sampling)?;
    sampling.check().map_err(|error| ApiError::from(&error))?;
    let choices = common.n.unwrap_or(1);
    if !(1..=MOST_CHOICES).contains(&choices) {
        return Err(ApiError::field(
            "n",
            format!("expected a whole number from 1 to {MOST_CHOICES}, found {choices}"),
        ));
    }
    let choice = |index: usize| Sampling {
        seed: common.seed.map(|seed| (seed as u64).wrapping_add(index as u64)),
        ..sampling.clone()
    };
    Ok((0..choices).map(choice).collect())
}

/// A token limit of a request, which must not exceed the server's.
pub(crate) fn max_tokens(name: &str, most: usize, config: &ServerConfig) -> Result<usize, ApiError> {
    if (1..=config.max_tokens).contains(&most) {
        return Ok(most);
    }
    let message =
        format!("expected a whole number from 1 to {} (the server's limit), found {most}", config.max_tokens);
    Err(ApiError::field(name, message))
}

/// Applies the fields that control reasoning, in this order of precedence: `chat_template_kwargs.enable_thinking`,
/// `reasoning_effort`, `thinking_budget`.
///
/// # Errors
/// A 400 that names the field.
pub(crate) fn reasoning(
    sampling: &mut Sampling,
    config: &ServerConfig,
    effort: Option<&str>,
    budget: Option<usize>,
    template_arguments: Option<&Value>,
) -> Result<(), ApiError> {
    let thinking = &mut sampling.thinking;
    thinking.max_tokens = Some(config.thinking_tokens);
    if let Some(effort) = effort {
        let tokens = match effort {
            "none" => 0,
            "minimal" => config.thinking_tokens.div_ceil(8),
            "low" => config.thinking_tokens.div_ceil(4),
            "medium" => config.thinking_tokens,
            "high" => 4 * config.thinking_tokens,
            other => {
                let message = format!("expected none, minimal, low, medium or high, found `{other}`");
                return Err(ApiError::field("reasoning_effort", message));
            }
        };
        thinking.enable = Some(tokens > 0);
        thinking.max_tokens = Some(tokens);
    }
    if let Some(budget) = budget {
        thinking.enable = Some(budget > 0);
        thinking.max_tokens = Some(budget);
    }
    for (name, value) in template_arguments.and_then(Value::as_object).into_iter().flatten() {
        match (name.as_str(), value) {
            ("enable_thinking", Value::Bool(enable)) => thinking.enable = Some(*enable),
            ("enable_thinking", _) => {
                return Err(ApiError::field(
                    "chat_template_kwargs.enable_thinking",
                    "expected true or false",
                ));
            }
            (other, _) => {
                return Err(ApiError::field(
                    format!("chat_template_kwargs.{other}"),
                    "this argument is not supported",
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(fields: Value) -> Result<Vec<Sampling>, ApiError> {
        let common: Common = serde_json::from_value(fields).unwrap();
        samplings(&ServerConfig::default(), &common, |_| Ok(()))
    }

    #[test]
    fn fields_replace_the_defaults() {
        let fields = json!({
            "temperature": 1.5, "top_p": 0.5, "seed": 7, "n": 2, "stop": "END", "max_tokens": 9,
            "logit_bias": {"5": -100, "6": 2.5}, "presence_penalty": 1, "frequency_penalty": -1, "top_k": 3,
        });
        let both = read(fields).unwrap();
        let first = &both[0];
        assert_eq!((first.temperature, first.top_p, first.top_k, first.max_tokens), (1.5, 0.5, 3, 9));
        assert_eq!((first.seed, both[1].seed), (Some(7), Some(8)));
        assert_eq!((first.presence_penalty, first.frequency_penalty), (1.0, -1.0));
        assert_eq!((first.logit_bias[&5], first.logit_bias[&6]), (f32::NEG_INFINITY, 2.5));
        assert_eq!(first.stop, ["END"]);
    }

    #[test]
    fn values_out_of_range_are_refused_by_name() {
        let cases = [
            (json!({"temperature": 2.1}), "temperature"),
            (json!({"top_p": 1.1}), "top_p"),
            (json!({"n": 0}), "n"),
            (json!({"n": 17}), "n"),
            (json!({"max_tokens": 0}), "max_tokens"),
            (json!({"max_tokens": 1_000_000}), "max_tokens"),
            (json!({"stop": [""]}), "stop"),
            (json!({"presence_penalty": 3}), "presence_penalty"),
            (json!({"repetition_penalty": 0}), "repetition_penalty"),
            (json!({"logit_bias": {"x": 1}}), "logit_bias.x"),
            (json!({"logit_bias": {"1": 101}}), "logit_bias"),
        ];
        for (fields, param) in cases {
            assert_eq!(read(fields.clone()).unwrap_err().param.as_deref(), Some(param), "{fields}");
        }
    }

    #[test]
    fn reasoning_fields_override_each_other_in_order() {
        let config = ServerConfig { thinking_tokens: 100, ..ServerConfig::default() };
        let apply = |effort: Option<&str>, budget, arguments: Option<Value>| {
            let mut sampling = Sampling::default();
            reasoning(&mut sampling, &config, effort, budget, arguments.as_ref())
                .map(|()| (sampling.thinking.enable, sampling.thinking.max_tokens))
        };
        assert_eq!(apply(None, None, None).unwrap(), (None, Some(100)));
        assert_eq!(apply(Some("none"), None, None).unwrap(), (Some(false), Some(0)));
        assert_eq!(apply(Some("high"), None, None).unwrap(), (Some(true), Some(400)));
        assert_eq!(apply(Some("high"), Some(7), None).unwrap(), (Some(true), Some(7)));
        let off = json!({"enable_thinking": false});
        assert_eq!(apply(Some("low"), None, Some(off)).unwrap().0, Some(false));
        assert!(apply(Some("extreme"), None, None).is_err());
        assert!(apply(None, None, Some(json!({"other": 1}))).is_err());
    }
}
