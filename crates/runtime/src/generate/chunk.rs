//! The items of a streamed reply, and the whole reply.

use std::time::Duration;

use serde::Serialize;

use crate::tools::{BrokenToolCalls, ToolCall};

/// One item of a reply's stream.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Chunk {
    /// Part of the reasoning, in whole characters.
    Reasoning(String),
    /// Part of the answer, in whole characters.
    Answer(String),
    /// A token, if log-probabilities were requested; precedes the text that it completes.
    Token(TokenDetail),
    /// The last item.
    Finish(Finish),
}

/// A generated token and its probability under the model's unmodified distribution.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TokenDetail {
    /// The token's id.
    pub id: u32,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// The most probable tokens with their log-probabilities, best first.
    pub alternatives: Vec<(u32, f32)>,
}

/// The reason for which a reply ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FinishReason {
    /// The model ended its turn, or completed its JSON.
    Stop,
    /// The answer reached a stop text.
    StopText,
    /// `max_tokens` were generated, or JSON was closed before they were.
    Length,
    /// The context window is full.
    ContextFull,
    /// The reply ends in tool calls.
    ToolCalls,
    /// The answer repeated itself.
    Repetition,
    /// The caller cancelled it.
    Cancelled,
}

impl FinishReason {
    /// The reason as one word, as `--json` prints it.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::StopText => "stop_text",
            Self::Length => "length",
            Self::ContextFull => "context_full",
            Self::ToolCalls => "tool_calls",
            Self::Repetition => "repetition",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Token counts of a reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Number of tokens of the rendered conversation.
    pub prompt_tokens: usize,
    /// Number of prompt tokens that a cache saved from being computed.
    pub cached_tokens: usize,
    /// Number of generated tokens, reasoning included, end marker not included.
    pub completion_tokens: usize,
    /// Number of completion tokens that were reasoning.
    pub thinking_tokens: usize,
}

/// The durations of a reply's phases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Timing {
    /// Time of the prefill.
    #[serde(rename = "prefill_sec", serialize_with = "seconds")]
    pub prefill: Duration,
    /// Time of generation, from the end of the prefill.
    #[serde(rename = "decode_sec", serialize_with = "seconds")]
    pub decode: Duration,
    /// Time from the call to the first generated token.
    #[serde(rename = "first_token_sec", serialize_with = "seconds")]
    pub first_token: Duration,
}

fn seconds<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

impl Timing {
    /// Generated tokens per second of decode.
    pub fn tokens_per_sec(&self, usage: &Usage) -> f64 {
        let seconds = self.decode.as_secs_f64();
        if seconds > 0.0 { usage.completion_tokens as f64 / seconds } else { 0.0 }
    }
}

/// The end of a reply.
#[derive(Clone, Debug, PartialEq)]
pub struct Finish {
    /// The reason.
    pub reason: FinishReason,
    /// Token counts.
    pub usage: Usage,
    /// Durations.
    pub timing: Timing,
    /// The seed that repeats this reply.
    pub seed: u64,
    /// Number of messages that were dropped from the conversation to make room.
    pub dropped_messages: usize,
    /// The tool calls of the answer, if tools were offered; an error, with the valid calls, if one of them is invalid.
    pub tool_calls: Result<Vec<ToolCall>, BrokenToolCalls>,
    /// JSON Pointers of the values that the grammar invented or shortened, because it closed the answer before a limit
    /// or in a loop; `reason` is then `Length`, `ContextFull` or `Repetition`. The empty pointer is the whole answer.
    pub closed_fields: Vec<String>,
}

/// A whole reply.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    /// The answer.
    pub text: String,
    /// The reasoning before the answer.
    pub reasoning: String,
    /// The tokens, if log-probabilities were requested.
    pub tokens: Vec<TokenDetail>,
    /// The end of the reply.
    pub finish: Finish,
}
