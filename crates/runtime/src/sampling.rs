//! Settings of one reply: sampling, limits, reasoning, form of the answer.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::ChatError;

/// The settings of one reply. The sampling defaults are those of speech-swift.
///
/// ```
/// let sampling = q35_runtime::Sampling::default().with_temperature(0.0).with_max_tokens(64).with_stop(["\n\n"]);
/// assert_eq!((sampling.top_k, sampling.repetition_penalty), (50, 1.1));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Divisor of the logits; 0 selects the most probable token always. 0.6.
    pub temperature: f32,
    /// Number of most probable tokens that are kept; 0 keeps all. 50.
    pub top_k: usize,
    /// Probability that the smallest set of most probable tokens must reach together; 1 keeps all. 0.95.
    pub top_p: f32,
    /// Fraction of the highest probability that a token must have; 0 keeps all. 0.
    pub min_p: f32,
    /// Divisor of positive logits, and factor of negative ones, of tokens that the reply already has; 1 has no effect.
    /// 1.1.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens that the reply already has. 0.
    pub presence_penalty: f32,
    /// Subtracted once for each time that the reply already has the token. 0.
    pub frequency_penalty: f32,
    /// Number of latest tokens of the reply that the penalties consider; `None` considers all. The prompt is never
    /// penalised: a reply must be able to repeat a name from the question.
    pub penalty_window: Option<usize>,
    /// Added to the logits of these tokens; minus infinity forbids one.
    pub logit_bias: BTreeMap<u32, f32>,
    /// Seed of the random numbers: the same seed produces the same text, on any number of threads. `None` draws one,
    /// which [`crate::Finish`] reports.
    pub seed: Option<u64>,
    /// Maximum number of generated tokens, reasoning included. 512.
    pub max_tokens: usize,
    /// Texts before which the answer ends; no part of them is ever emitted.
    pub stop: Vec<String>,
    /// Requests each token's log-probability, and those of this many most probable alternatives.
    pub logprobs: Option<usize>,
    /// Reasoning before the answer.
    pub thinking: Thinking,
    /// The guard that ends text which repeats itself; `None` disables it.
    pub loop_guard: Option<LoopGuard>,
    /// The form of the answer.
    pub format: Format,
}

/// Reasoning before the answer.
///
/// ```
/// use q35_runtime::{Sampling, Thinking};
/// # let files = q35_backend_tests::nano_mlx();
/// # let chat = q35_runtime::Chat::from_pretrained(files.path_str())?;
/// let thinking = Thinking { enable: Some(true), max_tokens: Some(16), ..Thinking::default() };
/// let reply = chat.generate("What is 2 + 2?", None, &Sampling { thinking, ..Sampling::default() })?;
/// assert!(reply.finish.usage.thinking_tokens <= 16);
/// # Ok::<(), q35_runtime::ChatError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Thinking {
    /// Switches reasoning on or off; `None` leaves it to the chat template's default.
    pub enable: Option<bool>,
    /// Maximum number of reasoning tokens: the reasoning is then closed and the answer begins. `None` sets no maximum;
    /// 0 disables reasoning.
    pub max_tokens: Option<usize>,
    /// Text that is appended to reasoning which the budget ends, before the closing tag; it is not emitted.
    pub close_text: String,
}

/// The definition of text that repeats itself: a passage that occurs several times in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoopGuard {
    /// Maximum length of the passage in tokens.
    pub longest_passage: usize,
    /// Minimum number of consecutive occurrences.
    pub repeats: usize,
    /// Minimum length in tokens of all occurrences together.
    pub span: usize,
}

/// The form of an answer.
///
/// ```
/// use q35_runtime::{Format, Sampling};
/// # let files = q35_backend_tests::nano_mlx();
/// # let chat = q35_runtime::Chat::from_pretrained(files.path_str())?;
/// let schema = serde_json::json!({
///     "type": "object", "required": ["name"], "properties": {"name": {"type": "string"}},
/// });
/// let sampling = Sampling::default().with_thinking(false).with_format(Format::Schema(schema));
/// let reply = chat.generate("My name is Ada. As JSON, please.", None, &sampling)?;
/// let value: serde_json::Value = serde_json::from_str(&reply.text).unwrap();
/// assert!(value["name"].is_string());
/// # Ok::<(), q35_runtime::ChatError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Format {
    /// Any text.
    #[default]
    Text,
    /// A JSON object.
    Json,
    /// JSON that is valid under this JSON Schema.
    Schema(Value),
    /// Calls of the offered tools and nothing else: one, or one or more if `parallel`.
    ToolCalls {
        /// True if several calls are permitted.
        parallel: bool,
    },
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.6,
            top_k: 50,
            top_p: 0.95,
            min_p: 0.0,
            repetition_penalty: 1.1,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            penalty_window: None,
            logit_bias: BTreeMap::new(),
            seed: None,
            max_tokens: 512,
            stop: Vec::new(),
            logprobs: None,
            thinking: Thinking::default(),
            loop_guard: Some(LoopGuard::default()),
            format: Format::Text,
        }
    }
}

impl Default for Thinking {
    fn default() -> Self {
        Self { enable: None, max_tokens: Some(100), close_text: String::new() }
    }
}

impl Default for LoopGuard {
    fn default() -> Self {
        Self { longest_passage: 48, repeats: 4, span: 64 }
    }
}

impl Sampling {
    /// Settings that select the most probable token always, without penalties.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, repetition_penalty: 1.0, ..Self::default() }
    }

    /// Overrides the sampling settings by those of a checkpoint's `generation_config.json`.
    pub fn with_generation_config(mut self, config: &Value) -> Self {
        let number = |name: &str| config.get(name).and_then(Value::as_f64).map(|n| n as f32);
        if config.get("do_sample").and_then(Value::as_bool) == Some(false) {
            self.temperature = 0.0;
        } else if let Some(temperature) = number("temperature") {
            self.temperature = temperature;
        }
        self.top_k = number("top_k").map_or(self.top_k, |k| k.max(0.0) as usize);
        self.top_p = number("top_p").unwrap_or(self.top_p);
        self.min_p = number("min_p").unwrap_or(self.min_p);
        self.repetition_penalty = number("repetition_penalty").unwrap_or(1.0);
        self
    }

    /// Sets the temperature.
    pub fn with_temperature(mut self, temperature: f32) -> Self {
        self.temperature = temperature;
        self
    }

    /// Sets `top_k`.
    pub fn with_top_k(mut self, top_k: usize) -> Self {
        self.top_k = top_k;
        self
    }

    /// Sets `top_p`.
    pub fn with_top_p(mut self, top_p: f32) -> Self {
        self.top_p = top_p;
        self
    }

    /// Sets `min_p`.
    pub fn with_min_p(mut self, min_p: f32) -> Self {
        self.min_p = min_p;
        self
    }

    /// Sets the repetition penalty.
    pub fn with_repetition_penalty(mut self, penalty: f32) -> Self {
        self.repetition_penalty = penalty;
        self
    }

    /// Sets the seed.
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Sets the maximum number of generated tokens.
    pub fn with_max_tokens(mut self, max_tokens: usize) -> Self {
        self.max_tokens = max_tokens;
        self
    }

    /// Sets the texts before which the answer ends.
    pub fn with_stop<S: Into<String>>(mut self, stop: impl IntoIterator<Item = S>) -> Self {
        self.stop = stop.into_iter().map(Into::into).collect();
        self
    }

    /// Requests log-probabilities, with this many alternatives.
    pub fn with_logprobs(mut self, alternatives: usize) -> Self {
        self.logprobs = Some(alternatives);
        self
    }

    /// Switches reasoning on or off, overriding the template's default.
    pub fn with_thinking(mut self, enable: bool) -> Self {
        self.thinking.enable = Some(enable);
        self
    }

    /// Sets the maximum number of reasoning tokens.
    pub fn with_max_thinking_tokens(mut self, max_tokens: usize) -> Self {
        self.thinking.max_tokens = Some(max_tokens);
        self
    }

    /// Sets the form of the answer.
    pub fn with_format(mut self, format: Format) -> Self {
        self.format = format;
        self
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// The first invalid setting.
    pub fn check(&self) -> Result<(), ChatError> {
        let require = |option, valid: bool, expected, found: &dyn std::fmt::Display| match valid {
            true => Ok(()),
            false => Err(ChatError::Option { option, expected, found: found.to_string() }),
        };
        let finite = |x: f32| x.is_finite();
        let (t, p, m, r) = (self.temperature, self.top_p, self.min_p, self.repetition_penalty);
        require("temperature", finite(t) && t >= 0.0, "a number from 0", &t)?;
        require("top_p", p > 0.0 && p <= 1.0, "a number above 0, up to 1", &p)?;
        require("min_p", (0.0..=1.0).contains(&m), "a number from 0 to 1", &m)?;
        require("repetition_penalty", finite(r) && r > 0.0, "a number above 0", &r)?;
        require("presence_penalty", finite(self.presence_penalty), "a number", &self.presence_penalty)?;
        require("frequency_penalty", finite(self.frequency_penalty), "a number", &self.frequency_penalty)?;
        require("max_tokens", self.max_tokens > 0, "a whole number from 1", &self.max_tokens)?;
        require(
            "stop",
            self.stop.iter().all(|s| !s.is_empty()),
            "texts that are not empty",
            &"an empty one",
        )?;
        let valid = |bias: &f32| !bias.is_nan() && *bias < f32::INFINITY;
        require("logit_bias", self.logit_bias.values().all(valid), "numbers or minus infinity", &"another")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn senseless_settings_are_named() {
        let base = Sampling::default;
        let cases = [
            (base().with_temperature(-1.0), "temperature"),
            (base().with_temperature(f32::NAN), "temperature"),
            (base().with_top_p(0.0), "top_p"),
            (base().with_min_p(1.5), "min_p"),
            (base().with_repetition_penalty(0.0), "repetition_penalty"),
            (base().with_max_tokens(0), "max_tokens"),
            (base().with_stop([""]), "stop"),
        ];
        for (sampling, name) in cases {
            let error = sampling.check().unwrap_err();
            assert!(matches!(&error, ChatError::Option { option, .. } if *option == name), "{error}");
        }
        assert!(base().check().is_ok() && Sampling::greedy().check().is_ok());
    }

    #[test]
    fn a_generation_config_replaces_the_defaults() {
        let config = serde_json::json!({"do_sample": true, "temperature": 1.0, "top_k": 20, "top_p": 0.9});
        let sampling = Sampling::default().with_generation_config(&config);
        assert_eq!((sampling.temperature, sampling.top_k, sampling.top_p), (1.0, 20, 0.9));
        assert_eq!(sampling.repetition_penalty, 1.0);
        let config = serde_json::json!({"do_sample": false});
        assert_eq!(Sampling::default().with_generation_config(&config).temperature, 0.0);
    }
}
