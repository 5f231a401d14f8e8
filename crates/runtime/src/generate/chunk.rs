//! What a reply consists of while it is being written, and what it was in the end.

use std::time::Duration;

use serde::Serialize;

use crate::tools::{ToolCall, ToolCallError};

/// One item of a reply's stream.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Chunk {
    /// A piece of the reasoning: whole characters.
    Reasoning(String),
    /// A piece of the answer: whole characters.
    Answer(String),
    /// A token, when log-probabilities were asked for; comes before the text that it completes.
    Token(TokenDetail),
    /// The last item.
    Finish(Finish),
}

/// A generated token and how probable it was, under the model's own distribution.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TokenDetail {
    /// The token.
    pub id: u32,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// The most probable tokens with theirs, best first.
    pub alternatives: Vec<(u32, f32)>,
}

/// Why a reply ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FinishReason {
    /// The model ended its turn, or its JSON was complete.
    Stop,
    /// A stop text came.
    StopText,
    /// `max_tokens` were generated.
    Length,
    /// The context window is full.
    ContextFull,
    /// The reply ends in tool calls.
    ToolCalls,
    /// The answer went in circles.
    Repetition,
    /// It was cancelled.
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
    /// Tokens of the rendered conversation.
    pub prompt_tokens: usize,
    /// Those of them that a cache spared computing.
    pub cached_tokens: usize,
    /// Generated tokens, reasoning included; the end marker is not counted.
    pub completion_tokens: usize,
    /// Those of them that were reasoning.
    pub thinking_tokens: usize,
}

/// Where a reply's time went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Timing {
    /// Computing the prompt.
    #[serde(rename = "prefill_sec", serialize_with = "seconds")]
    pub prefill: Duration,
    /// Generating, from the end of the prefill on.
    #[serde(rename = "decode_sec", serialize_with = "seconds")]
    pub decode: Duration,
    /// From the call to the first generated token.
    #[serde(rename = "first_token_sec", serialize_with = "seconds")]
    pub first_token: Duration,
}

fn seconds<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

impl Timing {
    /// Generated tokens per second of decoding.
    pub fn tokens_per_sec(&self, usage: &Usage) -> f64 {
        let seconds = self.decode.as_secs_f64();
        if seconds > 0.0 { usage.completion_tokens as f64 / seconds } else { 0.0 }
    }
}

/// The end of a reply.
#[derive(Clone, Debug, PartialEq)]
pub struct Finish {
    /// Why.
    pub reason: FinishReason,
    /// Token counts.
    pub usage: Usage,
    /// Times.
    pub timing: Timing,
    /// The seed that repeats this reply.
    pub seed: u64,
    /// Turns that were dropped from the conversation to make room.
    pub dropped_messages: usize,
    /// Calls that the answer asks for, when tools were offered; an error if they are not in the agreed form.
    pub tool_calls: Result<Vec<ToolCall>, ToolCallError>,
}

/// A whole reply.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    /// The answer.
    pub text: String,
    /// What was thought before it.
    pub reasoning: String,
    /// The tokens, when log-probabilities were asked for.
    pub tokens: Vec<TokenDetail>,
    /// How it ended.
    pub finish: Finish,
}
