//! `POST /v1/chat/completions`.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use q35_runtime::{Chat, Finish, Format, Sampling, TokenDetail, ToolCall};
use serde_json::{Value, json};

use super::tool_text::ToolText;
use super::types::{AssistantMessage, ChatChoice, ChatRequest, ChatResponse, UsageObject};
use super::{conversation, new_id, reply, settings};
use crate::ServerConfig;
use crate::engine::{Event, Generation, Work};
use crate::error::{ApiError, Kind};
use crate::info::check_model;
use crate::request::{Body, EventSender, Gone, event_stream};
use crate::server::{App, unix_time};

/// Generates a reply to a conversation, whole or as a stream.
#[utoipa::path(
    post, path = "/v1/chat/completions", request_body = ChatRequest,
    responses((status = 200, body = ChatResponse), (status = 400), (status = 429), (status = 503))
)]
pub(crate) async fn handle(
    State(app): State<App>,
    Body(request): Body<ChatRequest>,
) -> Result<Response, ApiError> {
    check_model(&app, request.common.model.as_deref())?;
    let plan = Plan::new(&request, &app.config)?;
    let choices = plan.samplings.len();
    let mut generation = app.engine.submit(plan.work, plan.samplings)?;
    generation.begun().await?;
    let context = Context::new(&app, plan.options)?;
    if request.common.stream.unwrap_or(false) {
        let usage = request.common.stream_options.and_then(|options| options.include_usage).unwrap_or(false);
        let keep_alive = app.config.keep_alive;
        return Ok(event_stream(keep_alive, move |sender| {
            context.stream(generation, choices, usage, sender)
        }));
    }
    Ok(Json(context.collect(generation, choices).await?).into_response())
}

/// Options that shape the response.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// Number of alternatives per token, if log-probabilities were requested.
    pub(crate) logprobs: Option<usize>,
    /// True if the model may call tools.
    pub(crate) tools: bool,
}

/// A checked request.
pub(crate) struct Plan {
    pub(crate) work: Work,
    pub(crate) samplings: Vec<Sampling>,
    pub(crate) options: Options,
}

impl Plan {
    pub(crate) fn new(request: &ChatRequest, config: &ServerConfig) -> Result<Self, ApiError> {
        refuse_unsupported(request)?;
        let messages = conversation::messages(&request.messages)?;
        let mut tools = conversation::tools(request.tools.as_deref().unwrap_or_default())?;
        let forced = tool_choice(request, &mut tools)?;
        let format = response_format(request.response_format.as_ref())?;
        if !tools.is_empty() && format != Format::Text {
            let message = "a JSON form cannot be combined with tools; set `tool_choice` to `none`";
            return Err(ApiError::field("response_format", message));
        }
        let logprobs = match (request.logprobs.unwrap_or(false), request.top_logprobs) {
            (_, Some(top)) if top > 20 => {
                return Err(ApiError::field("top_logprobs", format!("expected 0 to 20, found {top}")));
            }
            (false, Some(1..)) => return Err(ApiError::field("top_logprobs", "needs `logprobs: true`")),
            (false, _) => None,
            (true, top) => Some(top.unwrap_or(0)),
        };
        let samplings = settings::samplings(config, &request.common, |sampling| {
            if let Some(most) = request.max_completion_tokens {
                sampling.max_tokens = settings::max_tokens("max_completion_tokens", most, config)?;
            }
            sampling.logprobs = logprobs;
            sampling.format = forced.clone().unwrap_or_else(|| format.clone());
            if !tools.is_empty() && request.parallel_tool_calls == Some(false) && forced.is_none() {
                sampling.stop.push("</tool_call>".into());
            }
            let effort = request.reasoning_effort.as_deref();
            let arguments = request.chat_template_kwargs.as_ref();
            settings::reasoning(sampling, config, effort, request.thinking_budget, arguments)
        })?;
        let options = Options { logprobs, tools: !tools.is_empty() };
        Ok(Self { work: Work::Conversation { messages, tools }, samplings, options })
    }

    /// Number of tokens of the rendered conversation.
    ///
    /// # Errors
    /// The template refuses the conversation.
    pub(crate) fn prompt_tokens(&self, chat: &Chat) -> Result<usize, ApiError> {
        let Work::Conversation { messages, tools } = &self.work else { return Ok(0) };
        let mut session = chat.session().with_tools(tools.clone());
        session.set_messages(messages.clone()).map_err(|error| ApiError::from(&error))?;
        let sampling = self.samplings.first().cloned().unwrap_or_default();
        session.prompt_tokens(&sampling).map_err(|error| ApiError::from(&error))
    }
}

/// Refuses fields whose silent omission would surprise.
fn refuse_unsupported(request: &ChatRequest) -> Result<(), ApiError> {
    let set = |value: &Option<Value>| value.as_ref().is_some_and(|value| !value.is_null());
    if set(&request.functions) || set(&request.function_call) {
        return Err(ApiError::field("functions", "deprecated and not supported; use `tools`"));
    }
    if request.modalities.as_ref().is_some_and(|value| !value.is_null() && *value != json!(["text"])) {
        return Err(ApiError::field("modalities", "only [\"text\"] is supported"));
    }
    if set(&request.audio) {
        return Err(ApiError::field("audio", "not supported: this model writes text only"));
    }
    if set(&request.web_search_options) {
        return Err(ApiError::field("web_search_options", "not supported"));
    }
    Ok(())
}

/// Applies `tool_choice`: removes the tools for `none`, all but one for a name. Returns the form of a forced call.
fn tool_choice(
    request: &ChatRequest,
    tools: &mut Vec<q35_runtime::Tool>,
) -> Result<Option<Format>, ApiError> {
    let single = request.parallel_tool_calls == Some(false);
    match &request.tool_choice {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(choice)) => match choice.as_str() {
            "auto" => Ok(None),
            "none" => {
                tools.clear();
                Ok(None)
            }
            "required" if tools.is_empty() => Err(ApiError::field("tool_choice", "`required` needs `tools`")),
            "required" => Ok(Some(Format::ToolCalls { parallel: !single })),
            other => Err(ApiError::field(
                "tool_choice",
                format!("expected none, auto, required or a function, found `{other}`"),
            )),
        },
        Some(choice) => {
            let function = choice.get("type").and_then(Value::as_str) == Some("function");
            let name =
                choice.get("function").and_then(|function| function.get("name")).and_then(Value::as_str);
            let Some(name) = name.filter(|_| function) else {
                let message = "expected {\"type\": \"function\", \"function\": {\"name\": …}}";
                return Err(ApiError::field("tool_choice", message));
            };
            tools.retain(|tool| tool.name == name);
            match tools.is_empty() {
                true => Err(ApiError::field(
                    "tool_choice.function.name",
                    format!("`{name}` is not among the tools"),
                )),
                false => Ok(Some(Format::ToolCalls { parallel: false })),
            }
        }
    }
}

fn response_format(value: Option<&Value>) -> Result<Format, ApiError> {
    let Some(value) = value.filter(|value| !value.is_null()) else { return Ok(Format::Text) };
    match value.get("type").and_then(Value::as_str) {
        Some("text") => Ok(Format::Text),
        Some("json_object") => Ok(Format::Json),
        Some("json_schema") => match value.get("json_schema").and_then(|object| object.get("schema")) {
            Some(schema @ (Value::Object(_) | Value::Bool(_))) => Ok(Format::Schema(schema.clone())),
            _ => Err(ApiError::field("response_format.json_schema.schema", "a JSON schema is required")),
        },
        Some(other) => Err(ApiError::field(
            "response_format.type",
            format!("expected text, json_object or json_schema, found `{other}`"),
        )),
        None => Err(ApiError::field("response_format.type", "a string is required")),
    }
}

/// One choice while it is generated.
#[derive(Default)]
struct Choice {
    content: String,
    reasoning: String,
    tokens: Vec<TokenDetail>,
    finish: Option<Box<Finish>>,
}

/// A whole reply.
pub(crate) struct WholeReply {
    /// The answer without the markup of tool calls.
    pub(crate) content: String,
    pub(crate) reasoning: String,
    pub(crate) finish: Box<Finish>,
}

impl WholeReply {
    pub(crate) fn calls(&self) -> &[ToolCall] {
        reply::calls(&self.finish)
    }
}

/// The identity and options of a response.
pub(crate) struct Context {
    app: App,
    chat: Chat,
    id: String,
    created: u64,
    options: Options,
}

impl Context {
    pub(crate) fn new(app: &App, options: Options) -> Result<Self, ApiError> {
        let chat = app.engine.chat()?.clone();
        Ok(Self { app: app.clone(), chat, id: new_id("chatcmpl"), created: unix_time(), options })
    }

    pub(crate) fn options(&self) -> Options {
        self.options
    }

    /// The reply of a request with one choice.
    ///
    /// # Errors
    /// The failure that ended it.
    pub(crate) async fn reply(&self, generation: Generation) -> Result<WholeReply, ApiError> {
        let choice = self.choices(generation, 1).await?.pop().unwrap_or_default();
        let stopped = || ApiError::new(Kind::Internal, "the engine has stopped");
        let finish = choice.finish.ok_or_else(stopped)?;
        let content = self.visible(&choice.content, &finish);
        Ok(WholeReply { content, reasoning: choice.reasoning, finish })
    }

    /// The answer without the markup of tool calls.
    fn visible(&self, content: &str, finish: &Finish) -> String {
        if !self.options.tools {
            return content.to_owned();
        }
        let mut text = ToolText::default();
        let shown = text.push(content);
        shown + &text.finish(!reply::calls(finish).is_empty())
    }

    async fn choices(&self, mut generation: Generation, choices: usize) -> Result<Vec<Choice>, ApiError> {
        let mut collected: Vec<Choice> = (0..choices).map(|_| Choice::default()).collect();
        while let Some((index, event)) = generation.next().await {
            let choice = &mut collected[index];
            match event {
                Event::Started => {}
                Event::Reasoning(text) => choice.reasoning.push_str(&text),
                Event::Answer(text) => choice.content.push_str(&text),
                Event::Token { detail, reasoning: false } => choice.tokens.push(detail),
                Event::Token { .. } => {}
                Event::Finish(finish) => {
                    self.finished(&finish);
                    choice.finish = Some(finish);
                }
                Event::Failed(error) => return Err(error),
            }
        }
        Ok(collected)
    }

    async fn collect(&self, generation: Generation, choices: usize) -> Result<ChatResponse, ApiError> {
        let collected = self.choices(generation, choices).await?;
        let mut usage = UsageObject::default();
        let choices = collected.into_iter().enumerate().filter_map(|(index, choice)| {
            let finish = choice.finish.as_ref()?;
            usage.add(&finish.usage);
            Some(self.choice(index, &choice, finish))
        });
        let choices: Vec<ChatChoice> = choices.collect();
        Ok(ChatResponse {
            id: self.id.clone(),
            object: "chat.completion",
            created: self.created,
            model: self.app.config.model_id.clone(),
            choices,
            usage,
        })
    }

    fn choice(&self, index: usize, choice: &Choice, finish: &Finish) -> ChatChoice {
        let calls = reply::calls(finish);
        let content = self.visible(&choice.content, finish);
        let reasoning = Some(choice.reasoning.clone()).filter(|text| !text.is_empty());
        let (finish_reason, detail) = reply::finish_reason(finish);
        ChatChoice {
            index,
            message: AssistantMessage {
                role: "assistant",
                content: Some(content).filter(|content| calls.is_empty() || !content.is_empty()),
                refusal: None,
                reasoning: reasoning.clone().filter(|_| self.app.config.reasoning_alias),
                reasoning_content: reasoning,
                tool_calls: calls.iter().map(reply::call_object).collect(),
            },
            logprobs: self.options.logprobs.map(|top| reply::logprobs(&self.chat, &choice.tokens, top)),
            finish_reason,
            detail,
        }
    }

    /// Counts and logs a finished reply.
    pub(crate) fn finished(&self, finish: &Finish) {
        self.app.metrics.reply(finish);
        log_reply(&self.id, finish);
    }

    async fn stream(self, mut generation: Generation, choices: usize, usage: bool, sender: EventSender) {
        let mut streams: Vec<StreamedChoice> = (0..choices)
            .map(|_| StreamedChoice { text: self.options.tools.then(ToolText::default), tokens: Vec::new() })
            .collect();
        let mut total = UsageObject::default();
        for index in 0..choices {
            let delta = json!({"role": "assistant", "content": null});
            if self.send(&sender, index, delta, None, Value::Null).await.is_err() {
                return;
            }
        }
        loop {
            let next = tokio::select! {
                // The drop of `generation` cancels the computation.
                () = sender.closed() => return,
                next = generation.next() => next,
            };
            let Some((index, event)) = next else { break };
            let sent = match event {
                Event::Finish(finish) => {
                    self.finished(&finish);
                    total.add(&finish.usage);
                    self.send_finish(&sender, index, &mut streams[index], &finish).await
                }
                Event::Failed(error) => {
                    let _ = sender.send(None, &error.body()).await;
                    return;
                }
                other => self.send_event(&sender, index, &mut streams[index], other).await,
            };
            if sent.is_err() {
                return;
            }
        }
        if usage {
            let mut chunk = self.chunk(Vec::new());
            chunk["usage"] = json!(total);
            if sender.send(None, &chunk).await.is_err() {
                return;
            }
        }
        let _ = sender.send_text("[DONE]").await;
    }

    async fn send_event(
        &self,
        sender: &EventSender,
        index: usize,
        choice: &mut StreamedChoice,
        event: Event,
    ) -> Result<(), Gone> {
        match event {
            Event::Reasoning(text) => self.send_reasoning(sender, index, &text).await,
            Event::Answer(text) => {
                let text = match &mut choice.text {
                    Some(withholding) => withholding.push(&text),
                    None => text,
                };
                self.send_content(sender, index, choice, text).await
            }
            Event::Token { detail, reasoning: false } => {
                choice.tokens.push(detail);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    async fn send_reasoning(&self, sender: &EventSender, index: usize, text: &str) -> Result<(), Gone> {
        let mut delta = json!({"reasoning_content": text});
        if self.app.config.reasoning_alias {
            delta["reasoning"] = text.into();
        }
        self.send(sender, index, delta, None, Value::Null).await
    }

    async fn send_content(
        &self,
        sender: &EventSender,
        index: usize,
        choice: &mut StreamedChoice,
        text: String,
    ) -> Result<(), Gone> {
        if text.is_empty() {
            return Ok(());
        }
        let logprobs = self.take_logprobs(choice);
        self.send(sender, index, json!({"content": text}), None, logprobs).await
    }

    async fn send_finish(
        &self,
        sender: &EventSender,
        index: usize,
        choice: &mut StreamedChoice,
        finish: &Finish,
    ) -> Result<(), Gone> {
        let calls = reply::calls(finish);
        if let Some(text) = choice.text.take() {
            let rest = text.finish(!calls.is_empty());
            self.send_content(sender, index, choice, rest).await?;
        }
        for (at, call) in calls.iter().enumerate() {
            let mut head = reply::call_object(call);
            let arguments = head["function"]["arguments"].take();
            head["index"] = at.into();
            head["function"]["arguments"] = "".into();
            self.send(sender, index, json!({"tool_calls": [head]}), None, Value::Null).await?;
            let fragment = json!({"tool_calls": [{"index": at, "function": {"arguments": arguments}}]});
            self.send(sender, index, fragment, None, Value::Null).await?;
        }
        // Tokens of withheld markup and of the end have no content chunk to travel with.
        let logprobs = self.take_logprobs(choice);
        self.send(sender, index, json!({}), Some(finish), logprobs).await
    }

    fn take_logprobs(&self, choice: &mut StreamedChoice) -> Value {
        let tokens = std::mem::take(&mut choice.tokens);
        match self.options.logprobs.filter(|_| !tokens.is_empty()) {
            Some(top) => reply::logprobs(&self.chat, &tokens, top),
            None => Value::Null,
        }
    }

    async fn send(
        &self,
        sender: &EventSender,
        index: usize,
        delta: Value,
        finish: Option<&Finish>,
        logprobs: Value,
    ) -> Result<(), Gone> {
        let mut choice = json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": null});
        if let Some(finish) = finish {
            let (reason, detail) = reply::finish_reason(finish);
            choice["finish_reason"] = reason.into();
            if let (Some(object), Ok(Value::Object(fields))) =
                (choice.as_object_mut(), serde_json::to_value(detail))
            {
                object.extend(fields);
            }
        }
        sender.send(None, &self.chunk(vec![choice])).await
    }

    fn chunk(&self, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id, "object": "chat.completion.chunk", "created": self.created,
            "model": self.app.config.model_id, "choices": choices,
        })
    }
}

/// One choice of a stream.
struct StreamedChoice {
    /// Withholds the markup of tool calls, where tools were offered.
    text: Option<ToolText>,
    /// Tokens whose text has not been sent yet.
    tokens: Vec<TokenDetail>,
}

/// Logs a finished reply in one line, without its text.
pub(crate) fn log_reply(id: &str, finish: &Finish) {
    tracing::info!(
        id,
        prompt_tokens = finish.usage.prompt_tokens,
        cached_tokens = finish.usage.cached_tokens,
        completion_tokens = finish.usage.completion_tokens,
        prefill_ms = finish.timing.prefill.as_millis() as u64,
        decode_ms = finish.timing.decode.as_millis() as u64,
        outcome = finish.reason.as_str(),
        "reply"
    );
}
