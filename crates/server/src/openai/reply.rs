//! Parts of a response that chat and text completions share.

use q35_runtime::{Chat, Finish, FinishReason, TokenDetail, ToolCall};
use serde_json::{Value, json};

use super::new_id;
use super::types::FinishDetail;

/// `finish_reason` in OpenAI's terms, with q35's own reason where it says more.
pub(crate) fn finish_reason(finish: &Finish) -> (&'static str, FinishDetail) {
    let calls = finish.tool_calls.as_ref();
    let mut detail = FinishDetail {
        finish_detail: None,
        tool_call_error: calls.err().map(std::string::ToString::to_string),
    };
    let reason = match finish.reason {
        _ if calls.is_ok_and(|calls| !calls.is_empty()) => "tool_calls",
        FinishReason::Stop => "stop",
        FinishReason::StopText => {
            detail.finish_detail = Some("stop_text");
            "stop"
        }
        FinishReason::Length => "length",
        // A reply that the server cut short is not one that the model ended.
        _ => {
            detail.finish_detail = Some(finish.reason.as_str());
            "length"
        }
    };
    (reason, detail)
}

/// The calls of a finished reply; none if they could not be read.
pub(crate) fn calls(finish: &Finish) -> &[ToolCall] {
    finish.tool_calls.as_deref().unwrap_or_default()
}

/// A call as OpenAI's clients read it.
pub(crate) fn call_object(call: &ToolCall) -> Value {
    let arguments = Value::Object(call.arguments.clone()).to_string();
    json!({"id": new_id("call"), "type": "function", "function": {"name": call.name, "arguments": arguments}})
}

/// Tokens with their log-probabilities, in the form of chat completions.
pub(crate) fn logprobs(chat: &Chat, tokens: &[TokenDetail], alternatives: usize) -> Value {
    let entry = |id: u32, logprob: f32| {
        let bytes = chat.token_bytes(&[id]).unwrap_or_default();
        // JSON has no minus infinity.
        json!({"token": String::from_utf8_lossy(&bytes), "logprob": logprob.max(-9999.0), "bytes": bytes})
    };
    let content = tokens.iter().map(|token| {
        let mut object = entry(token.id, token.logprob);
        let top = token.alternatives.iter().take(alternatives).map(|(id, logprob)| entry(*id, *logprob));
        object["top_logprobs"] = top.collect();
        object
    });
    json!({"content": content.collect::<Vec<_>>(), "refusal": null})
}
