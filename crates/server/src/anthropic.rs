//! `POST /v1/messages` and `/v1/messages/count_tokens`: Anthropic's API, translated to and from chat completions.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use q35_runtime::{Finish, FinishReason};
use serde_json::{Map, Value, json};

use crate::engine::{Event, Generation};
use crate::error::{ApiError, Kind};
use crate::info::check_model;
use crate::openai::chat::{Context, Plan};
use crate::openai::tool_text::ToolText;
use crate::openai::types::ChatRequest;
use crate::openai::{new_id, reply};
use crate::request::{Body, EventSender, Gone, event_stream, read};
use crate::server::App;

/// An error in the form that Anthropic's clients parse.
pub(crate) struct Failure(ApiError);

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl Failure {
    fn body(&self) -> Value {
        let kind = match self.0.kind {
            Kind::Internal => "api_error",
            Kind::Loading => "overloaded_error",
            _ => self.0.type_name(),
        };
        json!({"type": "error", "error": {"type": kind, "message": self.0.message}})
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let body = self.body();
        let (mut parts, _) = self.0.into_response().into_parts();
        // The body has another length.
        parts.headers.remove(axum::http::header::CONTENT_LENGTH);
        (parts, Json(body)).into_response()
    }
}

/// Generates a message, whole or as a stream.
pub(crate) async fn handle(
    State(app): State<App>,
    body: Result<Body<Value>, ApiError>,
) -> Result<Response, Failure> {
    let request = body?.0;
    let max_tokens = request.get("max_tokens").is_some_and(Value::is_u64);
    if !max_tokens {
        return Err(ApiError::field("max_tokens", "a whole number is required").into());
    }
    let stream = request.get("stream").and_then(Value::as_bool).unwrap_or(false);
    let (plan, generation) = begin(&app, &request).await?;
    let context = Context::new(&app, plan.options)?;
    let id = new_id("msg");
    if stream {
        let keep_alive = app.config.keep_alive;
        return Ok(event_stream(keep_alive, move |sender| async move {
            // The client's departure needs no answer.
            let _ = send(&app, &context, &id, generation, &sender).await;
        }));
    }
    let reply = context.reply(generation).await?;
    let mut content = Vec::new();
    if !reply.reasoning.is_empty() {
        content.push(json!({"type": "thinking", "thinking": reply.reasoning, "signature": ""}));
    }
    if !reply.content.is_empty() || reply.calls().is_empty() {
        content.push(json!({"type": "text", "text": reply.content}));
    }
    for call in reply.calls() {
        content.push(
            json!({"type": "tool_use", "id": new_id("toolu"), "name": call.name, "input": call.arguments}),
        );
    }
    Ok(Json(json!({
        "id": id, "type": "message", "role": "assistant", "model": app.config.model_id, "content": content,
        "stop_reason": stop_reason(&reply.finish), "stop_sequence": null, "usage": usage(&reply.finish),
    }))
    .into_response())
}

/// Counts the tokens that the conversation's prompt has.
pub(crate) async fn count_tokens(
    State(app): State<App>,
    body: Result<Body<Value>, ApiError>,
) -> Result<Response, Failure> {
    let request = body?.0;
    check_model(&app, request.get("model").and_then(Value::as_str))?;
    let plan = Plan::new(&translate(&request)?, &app.config)?;
    let chat = app.engine.chat()?.clone();
    let count = tokio::task::spawn_blocking(move || plan.prompt_tokens(&chat)).await;
    let count = count.map_err(|_| ApiError::new(Kind::Internal, "the task failed"))??;
    Ok(Json(json!({"input_tokens": count})).into_response())
}

async fn begin(app: &App, request: &Value) -> Result<(Plan, Generation), ApiError> {
    check_model(app, request.get("model").and_then(Value::as_str))?;
    let plan = Plan::new(&translate(request)?, &app.config)?;
    let mut generation = app.engine.submit(plan.work.clone(), plan.samplings.clone())?;
    generation.begun().await?;
    Ok((plan, generation))
}

/// The request as one for chat completions.
fn translate(request: &Value) -> Result<ChatRequest, ApiError> {
    let mut chat = Map::new();
    for (from, to) in [
        ("model", "model"),
        ("max_tokens", "max_tokens"),
        ("temperature", "temperature"),
        ("top_p", "top_p"),
        ("top_k", "top_k"),
        ("stop_sequences", "stop"),
    ] {
        if let Some(value) = request.get(from).filter(|value| !value.is_null()) {
            chat.insert(to.into(), value.clone());
        }
    }
    let mut messages = Vec::new();
    match request.get("system") {
        None | Some(Value::Null) => {}
        Some(system) => messages.push(json!({"role": "system", "content": system})),
    }
    let turns = request.get("messages").and_then(Value::as_array);
    let turns = turns.ok_or_else(|| ApiError::field("messages", "a list is required"))?;
    for (index, turn) in turns.iter().enumerate() {
        translate_turn(turn, &format!("messages[{index}]"), &mut messages)?;
    }
    chat.insert("messages".into(), messages.into());
    if let Some(tools) = request.get("tools").and_then(Value::as_array) {
        let tools = tools.iter().map(|tool| {
            let function = json!({
                "name": tool.get("name"), "description": tool.get("description"), "parameters": tool.get("input_schema"),
            });
            json!({"type": "function", "function": function})
        });
        chat.insert("tools".into(), tools.collect());
    }
    if let Some(choice) = request.get("tool_choice").filter(|choice| !choice.is_null()) {
        let translated = match choice.get("type").and_then(Value::as_str) {
            Some("auto") => json!("auto"),
            Some("none") => json!("none"),
            Some("any") => json!("required"),
            Some("tool") => json!({"type": "function", "function": {"name": choice.get("name")}}),
            _ => return Err(ApiError::field("tool_choice.type", "expected auto, any, tool or none")),
        };
        chat.insert("tool_choice".into(), translated);
        if choice.get("disable_parallel_tool_use") == Some(&json!(true)) {
            chat.insert("parallel_tool_calls".into(), json!(false));
        }
    }
    match request.get("thinking").and_then(|thinking| thinking.get("type")).and_then(Value::as_str) {
        None => {}
        Some("disabled") => {
            chat.insert("thinking_budget".into(), json!(0));
        }
        Some("enabled") => {
            match request.pointer("/thinking/budget_tokens").filter(|budget| budget.is_u64()) {
                Some(budget) => {
                    chat.insert("thinking_budget".into(), budget.clone());
                }
                None => return Err(ApiError::field("thinking.budget_tokens", "a whole number is required")),
            }
        }
        Some("adaptive") => {
            chat.insert("chat_template_kwargs".into(), json!({"enable_thinking": true}));
        }
        Some(_) => return Err(ApiError::field("thinking.type", "expected enabled, adaptive or disabled")),
    }
    read(Value::Object(chat))
}

/// Adds one turn: text and calls of the assistant become one message, each tool result a message of its own.
fn translate_turn(turn: &Value, at: &str, messages: &mut Vec<Value>) -> Result<(), ApiError> {
    let role = turn.get("role").cloned().unwrap_or_default();
    let Some(blocks) = turn.get("content").and_then(Value::as_array) else {
        messages.push(json!({"role": role, "content": turn.get("content")}));
        return Ok(());
    };
    let (mut parts, mut calls, mut reasoning) = (Vec::new(), Vec::new(), String::new());
    for (index, block) in blocks.iter().enumerate() {
        match block.get("type").and_then(Value::as_str) {
            Some("tool_use") => calls.push(json!({
                "id": block.get("id"), "type": "function",
                "function": {"name": block.get("name"), "arguments": block.get("input")},
            })),
            Some("tool_result") => messages.push(json!({
                "role": "tool", "tool_call_id": block.get("tool_use_id"),
                "content": block.get("content").cloned().unwrap_or_else(|| json!("")),
            })),
            Some("thinking") => {
                reasoning.push_str(block.get("thinking").and_then(Value::as_str).unwrap_or_default())
            }
            Some("redacted_thinking") => {}
            Some("text") => parts.push(block.clone()),
            Some(other) => {
                let message = format!("`{other}` is not supported: this model reads text only");
                return Err(ApiError::field(format!("{at}.content[{index}]"), message));
            }
            None => {
                return Err(ApiError::field(format!("{at}.content[{index}].type"), "a string is required"));
            }
        }
    }
    if !parts.is_empty() || !calls.is_empty() {
        let mut message = json!({"role": role, "content": parts});
        if !calls.is_empty() {
            message["tool_calls"] = calls.into();
        }
        if !reasoning.is_empty() {
            message["reasoning_content"] = reasoning.into();
        }
        messages.push(message);
    }
    Ok(())
}

fn stop_reason(finish: &Finish) -> &'static str {
    match finish.reason {
        _ if !reply::calls(finish).is_empty() => "tool_use",
        FinishReason::StopText => "stop_sequence",
        FinishReason::Stop => "end_turn",
        _ => "max_tokens",
    }
}

fn usage(finish: &Finish) -> Value {
    let usage = finish.usage;
    json!({
        "input_tokens": usage.prompt_tokens - usage.cached_tokens, "output_tokens": usage.completion_tokens,
        "cache_read_input_tokens": usage.cached_tokens, "cache_creation_input_tokens": 0,
    })
}

/// The content blocks of a stream: one is open at a time.
struct Blocks<'a> {
    sender: &'a EventSender,
    index: usize,
    open: Option<&'static str>,
}

impl Blocks<'_> {
    async fn delta(&mut self, kind: &'static str, text: String) -> Result<(), Gone> {
        if text.is_empty() {
            return Ok(());
        }
        if self.open != Some(kind) {
            self.close().await?;
            let block = match kind {
                "thinking" => json!({"type": "thinking", "thinking": "", "signature": ""}),
                _ => json!({"type": "text", "text": ""}),
            };
            self.start(block).await?;
            self.open = Some(kind);
        }
        let delta = json!({"type": format!("{kind}_delta"), kind: text});
        self.event("content_block_delta", json!({"index": self.index, "delta": delta})).await
    }

    async fn start(&self, block: Value) -> Result<(), Gone> {
        self.event("content_block_start", json!({"index": self.index, "content_block": block})).await
    }

    async fn close(&mut self) -> Result<(), Gone> {
        if self.open.take().is_some() {
            self.event("content_block_stop", json!({"index": self.index})).await?;
            self.index += 1;
        }
        Ok(())
    }

    async fn event(&self, name: &str, mut data: Value) -> Result<(), Gone> {
        data["type"] = name.into();
        self.sender.send(Some(name), &data).await
    }
}

async fn send(
    app: &App,
    context: &Context,
    id: &str,
    mut generation: Generation,
    sender: &EventSender,
) -> Result<(), Gone> {
    let mut blocks = Blocks { sender, index: 0, open: None };
    let message = json!({
        "id": id, "type": "message", "role": "assistant", "model": app.config.model_id, "content": [],
        "stop_reason": null, "stop_sequence": null, "usage": {"input_tokens": 0, "output_tokens": 0},
    });
    blocks.event("message_start", json!({"message": message})).await?;
    let mut text = context.options().tools.then(ToolText::default);
    loop {
        let next = tokio::select! {
            () = sender.closed() => return Err(Gone),
            next = generation.next() => next,
        };
        let Some((_, event)) = next else { return Ok(()) };
        match event {
            Event::Reasoning(part) => blocks.delta("thinking", part).await?,
            Event::Answer(part) => {
                let part = match &mut text {
                    Some(withholding) => withholding.push(&part),
                    None => part,
                };
                blocks.delta("text", part).await?;
            }
            Event::Started | Event::Token { .. } => {}
            Event::Failed(error) => return sender.send(Some("error"), &Failure(error).body()).await,
            Event::Finish(finish) => {
                context.finished(&finish);
                let calls = reply::calls(&finish);
                if let Some(withholding) = text.take() {
                    blocks.delta("text", withholding.finish(!calls.is_empty())).await?;
                }
                blocks.close().await?;
                for call in calls {
                    let block =
                        json!({"type": "tool_use", "id": new_id("toolu"), "name": call.name, "input": {}});
                    blocks.start(block).await?;
                    let input = Value::Object(call.arguments.clone()).to_string();
                    let delta = json!({"type": "input_json_delta", "partial_json": input});
                    blocks
                        .event("content_block_delta", json!({"index": blocks.index, "delta": delta}))
                        .await?;
                    blocks.open = Some("tool_use");
                    blocks.close().await?;
                }
                let delta = json!({"stop_reason": stop_reason(&finish), "stop_sequence": null});
                blocks.event("message_delta", json!({"delta": delta, "usage": usage(&finish)})).await?;
                blocks.event("message_stop", json!({})).await?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_become_chat_requests() {
        let request = json!({
            "model": "m", "max_tokens": 5, "system": [{"type": "text", "text": "Be brief."}], "stop_sequences": ["END"],
            "messages": [
                {"role": "user", "content": "Weather?"},
                {"role": "assistant", "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "x"}, {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Oslo"}}]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "rain"}]},
                    {"type": "text", "text": "And?"}]},
            ],
            "tools": [{"name": "weather", "input_schema": {"type": "object"}}], "tool_choice": {"type": "any"},
            "thinking": {"type": "enabled", "budget_tokens": 7},
        });
        let chat = translate(&request).unwrap();
        let roles: Vec<&str> =
            chat.messages.iter().map(|message| message["role"].as_str().unwrap()).collect();
        assert_eq!(roles, ["system", "user", "assistant", "tool", "user"]);
        assert_eq!(chat.messages[2]["tool_calls"][0]["function"]["arguments"], json!({"city": "Oslo"}));
        assert_eq!((chat.thinking_budget, chat.tool_choice), (Some(7), Some(json!("required"))));
    }

    #[test]
    fn images_and_senseless_fields_are_refused_by_name() {
        let image = json!({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]});
        assert_eq!(translate(&image).unwrap_err().param.as_deref(), Some("messages[0].content[0]"));
        let thinking = json!({"messages": [], "thinking": {"type": "enabled"}});
        assert_eq!(translate(&thinking).unwrap_err().param.as_deref(), Some("thinking.budget_tokens"));
        assert!(translate(&json!({})).is_err());
    }
}
