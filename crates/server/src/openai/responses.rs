//! `POST /v1/responses`: OpenAI's Responses API, translated to and from chat completions. Nothing is stored.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use q35_runtime::{Finish, FinishReason, ToolCall};
use serde_json::{Map, Value, json};

use super::chat::{Context, Plan};
use super::tool_text::ToolText;
use super::types::ChatRequest;
use super::{new_id, reply};
use crate::engine::{Event, Generation};
use crate::error::ApiError;
use crate::info::check_model;
use crate::request::{Body, EventSender, Gone, event_stream, read};
use crate::server::{App, unix_time};

/// Generates a response, whole or as a stream.
pub(crate) async fn handle(State(app): State<App>, Body(request): Body<Value>) -> Result<Response, ApiError> {
    check_model(&app, request.get("model").and_then(Value::as_str))?;
    let plan = Plan::new(&translate(&request)?, &app.config)?;
    let mut generation = app.engine.submit(plan.work, plan.samplings)?;
    generation.begun().await?;
    let context = Context::new(&app, plan.options)?;
    let mut object = Object::new(&app, &request);
    if request.get("stream").and_then(Value::as_bool).unwrap_or(false) {
        let keep_alive = app.config.keep_alive;
        return Ok(event_stream(keep_alive, move |sender| async move {
            // The client's departure needs no answer.
            let _ = stream(&context, object, generation, &sender).await;
        }));
    }
    let reply = context.reply(generation).await?;
    if !reply.reasoning.is_empty() {
        object.output.push(reasoning_item(&new_id("rs"), &reply.reasoning));
    }
    if !reply.content.is_empty() || reply.calls().is_empty() {
        object.output.push(message_item(&new_id("msg"), &reply.content, "completed"));
    }
    object.output.extend(reply.calls().iter().map(|call| call_item(&new_id("fc"), call)));
    Ok(Json(object.finished(&reply.finish)).into_response())
}

/// The request as one for chat completions.
fn translate(request: &Value) -> Result<ChatRequest, ApiError> {
    for name in ["previous_response_id", "conversation", "prompt"] {
        if request.get(name).is_some_and(|value| !value.is_null()) {
            return Err(ApiError::field(
                name,
                "not supported: this server stores nothing; send the whole input",
            ));
        }
    }
    if request.get("background").and_then(Value::as_bool) == Some(true) {
        return Err(ApiError::field("background", "not supported: this server stores nothing"));
    }
    let mut chat = Map::new();
    for (from, to) in [
        ("model", "model"),
        ("max_output_tokens", "max_tokens"),
        ("temperature", "temperature"),
        ("top_p", "top_p"),
        ("parallel_tool_calls", "parallel_tool_calls"),
    ] {
        if let Some(value) = request.get(from).filter(|value| !value.is_null()) {
            chat.insert(to.into(), value.clone());
        }
    }
    let mut messages = Vec::new();
    if let Some(instructions) = request.get("instructions").and_then(Value::as_str) {
        messages.push(json!({"role": "system", "content": instructions}));
    }
    match request.get("input") {
        Some(Value::String(text)) => messages.push(json!({"role": "user", "content": text})),
        Some(Value::Array(items)) => {
            for (index, item) in items.iter().enumerate() {
                translate_item(item, &format!("input[{index}]"), &mut messages)?;
            }
        }
        _ => return Err(ApiError::field("input", "a text or a list of items is required")),
    }
    chat.insert("messages".into(), messages.into());
    // Tools of other types run on OpenAI's servers; clients list them beside their own.
    let functions = request.get("tools").and_then(Value::as_array).into_iter().flatten();
    let functions = functions.filter(|tool| tool.get("type").and_then(Value::as_str) == Some("function"));
    let tools: Vec<Value> = functions
        .map(|tool| {
            let function = json!({
                "name": tool.get("name"), "description": tool.get("description"), "parameters": tool.get("parameters"),
            });
            json!({"type": "function", "function": function})
        })
        .collect();
    if !tools.is_empty() {
        chat.insert("tools".into(), tools.into());
    }
    match request.get("tool_choice") {
        None | Some(Value::Null) => {}
        Some(choice @ Value::String(_)) => {
            chat.insert("tool_choice".into(), choice.clone());
        }
        Some(choice) => {
            let function = json!({"type": choice.get("type"), "function": {"name": choice.get("name")}});
            chat.insert("tool_choice".into(), function);
        }
    }
    if let Some(format) = request.pointer("/text/format") {
        let translated = match format.get("type").and_then(Value::as_str) {
            Some("json_schema") => json!({"type": "json_schema", "json_schema": format}),
            _ => format.clone(),
        };
        chat.insert("response_format".into(), translated);
    }
    if let Some(effort) = request.pointer("/reasoning/effort").filter(|effort| !effort.is_null()) {
        chat.insert("reasoning_effort".into(), effort.clone());
    }
    read(Value::Object(chat))
}

/// Adds one input item. Consecutive calls of the assistant become one message.
fn translate_item(item: &Value, at: &str, messages: &mut Vec<Value>) -> Result<(), ApiError> {
    match item.get("type").and_then(Value::as_str) {
        None | Some("message") => {
            messages.push(json!({"role": item.get("role"), "content": item.get("content")}));
        }
        Some("function_call") => {
            let call = json!({
                "id": item.get("call_id"), "type": "function",
                "function": {"name": item.get("name"), "arguments": item.get("arguments")},
            });
            match messages.last_mut().filter(|last| last["role"] == "assistant") {
                Some(last) => match last["tool_calls"].as_array_mut() {
                    Some(calls) => calls.push(call),
                    None => last["tool_calls"] = json!([call]),
                },
                None => messages.push(json!({"role": "assistant", "content": null, "tool_calls": [call]})),
            }
        }
        Some("function_call_output") => {
            let content = item.get("output").cloned().unwrap_or_else(|| json!(""));
            messages.push(json!({"role": "tool", "tool_call_id": item.get("call_id"), "content": content}));
        }
        // Summaries of earlier reasoning; the template replays no reasoning of earlier turns.
        Some("reasoning") => {}
        Some(other) => {
            return Err(ApiError::field(format!("{at}.type"), format!("`{other}` is not supported")));
        }
    }
    Ok(())
}

fn message_item(id: &str, text: &str, status: &str) -> Value {
    let part = json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []});
    json!({"type": "message", "id": id, "role": "assistant", "status": status, "content": [part]})
}

fn reasoning_item(id: &str, text: &str) -> Value {
    json!({"type": "reasoning", "id": id, "summary": [], "content": [{"type": "reasoning_text", "text": text}]})
}

fn call_item(id: &str, call: &ToolCall) -> Value {
    let arguments = Value::Object(call.arguments.clone()).to_string();
    json!({
        "type": "function_call", "id": id, "call_id": new_id("call"), "name": call.name, "arguments": arguments,
        "status": "completed",
    })
}

/// The response object with the settings that the request asked for.
struct Object {
    fields: Value,
    output: Vec<Value>,
}

impl Object {
    fn new(app: &App, request: &Value) -> Self {
        let echo = |name: &str, default: Value| {
            request.get(name).filter(|value| !value.is_null()).cloned().unwrap_or(default)
        };
        let fields = json!({
            "id": new_id("resp"), "object": "response", "created_at": unix_time(), "status": "in_progress",
            "error": null, "incomplete_details": null, "instructions": echo("instructions", Value::Null),
            "max_output_tokens": echo("max_output_tokens", Value::Null), "model": app.config.model_id, "output": [],
            "parallel_tool_calls": echo("parallel_tool_calls", json!(true)), "previous_response_id": null,
            "reasoning": echo("reasoning", json!({"effort": null, "summary": null})), "store": false,
            "temperature": echo("temperature", json!(app.config.sampling.temperature)),
            "text": echo("text", json!({"format": {"type": "text"}})), "tool_choice": echo("tool_choice", json!("auto")),
            "tools": echo("tools", json!([])), "top_p": echo("top_p", json!(app.config.sampling.top_p)),
            "truncation": "disabled", "usage": null, "user": null, "metadata": echo("metadata", json!({})),
        });
        Self { fields, output: Vec::new() }
    }

    fn finished(mut self, finish: &Finish) -> Value {
        let usage = finish.usage;
        self.fields["output"] = self.output.into();
        self.fields["usage"] = json!({
            "input_tokens": usage.prompt_tokens, "input_tokens_details": {"cached_tokens": usage.cached_tokens},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": usage.thinking_tokens},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        });
        let complete =
            matches!(finish.reason, FinishReason::Stop | FinishReason::StopText | FinishReason::ToolCalls);
        if complete {
            self.fields["status"] = "completed".into();
        } else {
            self.fields["status"] = "incomplete".into();
            let reason = if finish.reason == FinishReason::Length {
                "max_output_tokens"
            } else {
                finish.reason.as_str()
            };
            self.fields["incomplete_details"] = json!({"reason": reason});
        }
        self.fields
    }
}

/// Events of a stream, numbered.
struct Events<'a> {
    sender: &'a EventSender,
    sequence: u64,
}

impl Events<'_> {
    async fn send(&mut self, name: &str, mut data: Value) -> Result<(), Gone> {
        data["type"] = name.into();
        data["sequence_number"] = self.sequence.into();
        self.sequence += 1;
        self.sender.send(Some(name), &data).await
    }
}

/// The item that is being written.
struct OpenItem {
    id: String,
    reasoning: bool,
    text: String,
}

impl OpenItem {
    async fn open(events: &mut Events<'_>, index: usize, reasoning: bool) -> Result<Self, Gone> {
        let id = new_id(if reasoning { "rs" } else { "msg" });
        let item = match reasoning {
            true => json!({"type": "reasoning", "id": id, "summary": [], "content": []}),
            false => {
                json!({"type": "message", "id": id, "role": "assistant", "status": "in_progress", "content": []})
            }
        };
        events.send("response.output_item.added", json!({"output_index": index, "item": item})).await?;
        let part = match reasoning {
            true => json!({"type": "reasoning_text", "text": ""}),
            false => json!({"type": "output_text", "text": "", "annotations": [], "logprobs": []}),
        };
        let data = json!({"item_id": id, "output_index": index, "content_index": 0, "part": part});
        events.send("response.content_part.added", data).await?;
        Ok(Self { id, reasoning, text: String::new() })
    }

    async fn push(&mut self, events: &mut Events<'_>, index: usize, text: &str) -> Result<(), Gone> {
        self.text.push_str(text);
        let mut data = json!({"item_id": self.id, "output_index": index, "content_index": 0, "delta": text});
        let name = match self.reasoning {
            true => "response.reasoning_text.delta",
            false => {
                data["logprobs"] = json!([]);
                "response.output_text.delta"
            }
        };
        events.send(name, data).await
    }

    async fn close(self, events: &mut Events<'_>, index: usize) -> Result<Value, Gone> {
        let place = json!({"item_id": self.id, "output_index": index, "content_index": 0});
        let (name, item) = match self.reasoning {
            true => ("response.reasoning_text.done", reasoning_item(&self.id, &self.text)),
            false => ("response.output_text.done", message_item(&self.id, &self.text, "completed")),
        };
        let mut done = place.clone();
        done["text"] = self.text.into();
        if !self.reasoning {
            done["logprobs"] = json!([]);
        }
        events.send(name, done).await?;
        let mut part = place;
        part["part"] = item["content"][0].clone();
        events.send("response.content_part.done", part).await?;
        events.send("response.output_item.done", json!({"output_index": index, "item": item})).await?;
        Ok(item)
    }
}

async fn stream(
    context: &Context,
    mut object: Object,
    mut generation: Generation,
    sender: &EventSender,
) -> Result<(), Gone> {
    let mut events = Events { sender, sequence: 0 };
    events.send("response.created", json!({"response": object.fields})).await?;
    events.send("response.in_progress", json!({"response": object.fields})).await?;
    let mut withholding = context.options().tools.then(ToolText::default);
    let mut open: Option<OpenItem> = None;
    loop {
        let next = tokio::select! {
            () = sender.closed() => return Err(Gone),
            next = generation.next() => next,
        };
        let Some((_, event)) = next else { return Ok(()) };
        let (reasoning, text, finish) = match event {
            Event::Reasoning(text) => (true, text, None),
            Event::Answer(text) => match &mut withholding {
                Some(withheld) => (false, withheld.push(&text), None),
                None => (false, text, None),
            },
            Event::Started | Event::Token { .. } => continue,
            Event::Failed(error) => {
                let message =
                    json!({"code": error.type_name(), "message": error.message, "param": error.param});
                return events.send("error", message).await;
            }
            Event::Finish(finish) => {
                let calls = !reply::calls(&finish).is_empty();
                let rest = withholding.take().map(|withheld| withheld.finish(calls)).unwrap_or_default();
                (false, rest, Some(finish))
            }
        };
        if !text.is_empty() {
            if let Some(other) = open.take_if(|item| item.reasoning != reasoning) {
                let item = other.close(&mut events, object.output.len()).await?;
                object.output.push(item);
            }
            let item = match &mut open {
                Some(item) => item,
                None => open.insert(OpenItem::open(&mut events, object.output.len(), reasoning).await?),
            };
            item.push(&mut events, object.output.len(), &text).await?;
        }
        let Some(finish) = finish else { continue };
        context.finished(&finish);
        if let Some(item) = open.take() {
            let item = item.close(&mut events, object.output.len()).await?;
            object.output.push(item);
        }
        for call in reply::calls(&finish) {
            let (index, item) = (object.output.len(), call_item(&new_id("fc"), call));
            let mut begun = item.clone();
            begun["arguments"] = "".into();
            begun["status"] = "in_progress".into();
            events.send("response.output_item.added", json!({"output_index": index, "item": begun})).await?;
            let place = json!({"item_id": item["id"], "output_index": index});
            let mut delta = place.clone();
            delta["delta"] = item["arguments"].clone();
            events.send("response.function_call_arguments.delta", delta).await?;
            let mut done = place;
            done["arguments"] = item["arguments"].clone();
            done["name"] = item["name"].clone();
            events.send("response.function_call_arguments.done", done).await?;
            events.send("response.output_item.done", json!({"output_index": index, "item": item})).await?;
            object.output.push(item);
        }
        let response = object.finished(&finish);
        let name = match response["status"].as_str() {
            Some("completed") => "response.completed",
            _ => "response.incomplete",
        };
        return events.send(name, json!({"response": response})).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_become_chat_requests() {
        let request = json!({
            "instructions": "Be brief.", "max_output_tokens": 9, "reasoning": {"effort": "low"},
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
                {"type": "reasoning", "id": "rs_1", "summary": []},
                {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{\"city\": \"Oslo\"}"},
                {"type": "function_call", "call_id": "c2", "name": "weather", "arguments": "{\"city\": \"Rome\"}"},
                {"type": "function_call_output", "call_id": "c1", "output": "rain"},
            ],
            "tools": [{"type": "function", "name": "weather", "parameters": {"type": "object"}}, {"type": "web_search"}],
            "tool_choice": {"type": "function", "name": "weather"},
            "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}},
        });
        let chat = translate(&request).unwrap();
        let roles: Vec<&str> =
            chat.messages.iter().map(|message| message["role"].as_str().unwrap()).collect();
        assert_eq!(roles, ["system", "user", "assistant", "tool"]);
        assert_eq!(chat.messages[2]["tool_calls"].as_array().map(Vec::len), Some(2));
        assert_eq!((chat.common.max_tokens, chat.tools.map(|tools| tools.len())), (Some(9), Some(1)));
        assert_eq!(chat.response_format.unwrap()["json_schema"]["schema"], json!({"type": "object"}));
    }

    #[test]
    fn what_would_need_storage_is_refused_by_name() {
        for name in ["previous_response_id", "conversation"] {
            let request = json!({"input": "Hi", name: "resp_1"});
            assert_eq!(translate(&request).unwrap_err().param.as_deref(), Some(name));
        }
        assert_eq!(translate(&json!({})).unwrap_err().param.as_deref(), Some("input"));
    }
}
