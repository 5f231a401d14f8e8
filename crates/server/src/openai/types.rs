//! Request and response types. `/openapi.json` is generated from them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

/// Stop texts: one or several.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Stop {
    One(String),
    Several(Vec<String>),
}

impl Stop {
    pub(crate) fn into_texts(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::Several(texts) => texts,
        }
    }
}

/// Options of a stream.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub(crate) struct StreamOptions {
    /// Sends a last chunk with token counts.
    pub(crate) include_usage: Option<bool>,
}

/// Fields that chat and text completions share.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub(crate) struct Common {
    /// Name of the served model; may be left out.
    pub(crate) model: Option<String>,
    /// Streams the reply as server-sent events.
    pub(crate) stream: Option<bool>,
    /// Options of the stream.
    pub(crate) stream_options: Option<StreamOptions>,
    /// Number of choices, 1 to 16.
    #[schema(minimum = 1, maximum = 16)]
    pub(crate) n: Option<usize>,
    /// Most tokens to generate, reasoning included.
    #[schema(minimum = 1)]
    pub(crate) max_tokens: Option<usize>,
    /// 0 to 2; 0 always takes the most probable token.
    #[schema(minimum = 0, maximum = 2)]
    pub(crate) temperature: Option<f32>,
    /// Above 0, up to 1.
    pub(crate) top_p: Option<f32>,
    /// Number of most probable tokens to choose from; 0 is all.
    pub(crate) top_k: Option<usize>,
    /// 0 to 1.
    pub(crate) min_p: Option<f32>,
    /// -2 to 2.
    pub(crate) presence_penalty: Option<f32>,
    /// -2 to 2.
    pub(crate) frequency_penalty: Option<f32>,
    /// Above 0; 1 is none.
    pub(crate) repetition_penalty: Option<f32>,
    /// Seed of the random numbers; the same request with the same seed yields the same text.
    pub(crate) seed: Option<i64>,
    /// Texts before which the answer ends.
    pub(crate) stop: Option<Stop>,
    /// Values from -100 (never) to 100, added to the logits of token ids.
    pub(crate) logit_bias: Option<BTreeMap<String, f32>>,
}

/// A request to `/v1/chat/completions`. Unknown fields are ignored.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub(crate) struct ChatRequest {
    /// The conversation, oldest message first.
    #[schema(value_type = Vec<Object>)]
    pub(crate) messages: Vec<Value>,
    #[serde(flatten)]
    pub(crate) common: Common,
    /// The newer name of `max_tokens`.
    #[schema(minimum = 1)]
    pub(crate) max_completion_tokens: Option<usize>,
    /// Returns log-probabilities.
    pub(crate) logprobs: Option<bool>,
    /// Alternatives to each token, 0 to 20; needs `logprobs`.
    #[schema(minimum = 0, maximum = 20)]
    pub(crate) top_logprobs: Option<usize>,
    /// `{"type": "text" | "json_object" | "json_schema", …}`.
    #[schema(value_type = Option<Object>)]
    pub(crate) response_format: Option<Value>,
    /// Functions that the model may call.
    #[schema(value_type = Option<Vec<Object>>)]
    pub(crate) tools: Option<Vec<Value>>,
    /// `none`, `auto`, `required` or `{"type": "function", "function": {"name": …}}`.
    #[schema(value_type = Option<Object>)]
    pub(crate) tool_choice: Option<Value>,
    /// Permits several calls in one reply. True.
    pub(crate) parallel_tool_calls: Option<bool>,
    /// `none`, `minimal`, `low`, `medium` or `high`.
    pub(crate) reasoning_effort: Option<String>,
    /// Most tokens of reasoning; 0 switches it off.
    pub(crate) thinking_budget: Option<usize>,
    /// Arguments of the chat template; `enable_thinking` is the one that is supported.
    #[schema(value_type = Option<Object>)]
    pub(crate) chat_template_kwargs: Option<Value>,
    /// Deprecated by OpenAI; refused.
    #[schema(ignore)]
    pub(crate) functions: Option<Value>,
    #[schema(ignore)]
    pub(crate) function_call: Option<Value>,
    /// Only `["text"]` is supported.
    #[schema(ignore)]
    pub(crate) modalities: Option<Value>,
    #[schema(ignore)]
    pub(crate) audio: Option<Value>,
    #[schema(ignore)]
    pub(crate) web_search_options: Option<Value>,
}

/// A request to `/v1/completions`. Unknown fields are ignored.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub(crate) struct CompletionRequest {
    /// The text to continue.
    pub(crate) prompt: Prompt,
    #[serde(flatten)]
    pub(crate) common: Common,
    /// Alternatives to each token, 0 to 20.
    #[schema(minimum = 0, maximum = 20)]
    pub(crate) logprobs: Option<usize>,
    /// Repeats the prompt before the completion; refused.
    #[schema(ignore)]
    pub(crate) echo: Option<bool>,
    #[schema(ignore)]
    pub(crate) suffix: Option<String>,
    #[schema(ignore)]
    pub(crate) best_of: Option<usize>,
}

/// Prompts: one or several texts.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Prompt {
    One(String),
    Several(Vec<String>),
}

/// Token counts.
#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
pub(crate) struct UsageObject {
    pub(crate) prompt_tokens: usize,
    pub(crate) completion_tokens: usize,
    pub(crate) total_tokens: usize,
    pub(crate) prompt_tokens_details: PromptDetails,
    pub(crate) completion_tokens_details: CompletionDetails,
}

/// Parts of the prompt tokens.
#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
pub(crate) struct PromptDetails {
    /// Tokens that the prompt cache supplied.
    pub(crate) cached_tokens: usize,
}

/// Parts of the completion tokens.
#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
pub(crate) struct CompletionDetails {
    pub(crate) reasoning_tokens: usize,
}

impl UsageObject {
    /// Adds the counts of one choice. The prompt counts once, whatever the number of choices.
    pub(crate) fn add(&mut self, usage: &q35_runtime::Usage) {
        self.prompt_tokens = usage.prompt_tokens;
        self.prompt_tokens_details.cached_tokens = usage.cached_tokens;
        self.completion_tokens += usage.completion_tokens;
        self.completion_tokens_details.reasoning_tokens += usage.thinking_tokens;
        self.total_tokens = self.prompt_tokens + self.completion_tokens;
    }
}

/// Reply to `/v1/chat/completions`.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct ChatResponse {
    pub(crate) id: String,
    pub(crate) object: &'static str,
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) choices: Vec<ChatChoice>,
    pub(crate) usage: UsageObject,
}

/// One reply.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct ChatChoice {
    pub(crate) index: usize,
    pub(crate) message: AssistantMessage,
    #[schema(value_type = Option<Object>)]
    pub(crate) logprobs: Option<Value>,
    /// `stop`, `length` or `tool_calls`.
    pub(crate) finish_reason: &'static str,
    #[serde(flatten)]
    pub(crate) detail: FinishDetail,
}

/// Fields of q35 beside `finish_reason`.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub(crate) struct FinishDetail {
    /// q35's own reason, where it says more: `context_full`, `repetition`, `stop_text`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) finish_detail: Option<&'static str>,
    /// The reason why the reply's tool calls could not be read; the content then holds them as text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tool_call_error: Option<String>,
}

/// The assistant's message.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct AssistantMessage {
    pub(crate) role: &'static str,
    pub(crate) content: Option<String>,
    /// Always null: the model has no refusals of its own kind.
    #[schema(value_type = Option<String>)]
    pub(crate) refusal: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reasoning: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<Object>)]
    pub(crate) tool_calls: Vec<Value>,
}

/// Reply to `/v1/completions`.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct CompletionResponse {
    pub(crate) id: String,
    pub(crate) object: &'static str,
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) choices: Vec<CompletionChoice>,
    pub(crate) usage: UsageObject,
}

/// One continuation.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct CompletionChoice {
    pub(crate) index: usize,
    pub(crate) text: String,
    #[schema(value_type = Option<Object>)]
    pub(crate) logprobs: Option<Value>,
    pub(crate) finish_reason: &'static str,
    #[serde(flatten)]
    pub(crate) detail: FinishDetail,
}
