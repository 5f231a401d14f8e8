//! `POST /v1/completions`: continues a text as it is.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use q35_runtime::{Chat, Finish, TokenDetail};
use serde_json::{Value, json};

use super::chat::log_reply;
use super::types::{CompletionChoice, CompletionRequest, CompletionResponse, Prompt, UsageObject};
use super::{new_id, reply, settings};
use crate::engine::{Event, Generation, Work};
use crate::error::ApiError;
use crate::info::check_model;
use crate::request::{Body, EventSender, event_stream};
use crate::server::{App, unix_time};

/// Continues a text, whole or as a stream.
#[utoipa::path(
    post, path = "/v1/completions", request_body = CompletionRequest,
    responses((status = 200, body = CompletionResponse), (status = 400), (status = 429), (status = 503))
)]
pub(crate) async fn handle(
    State(app): State<App>,
    Body(request): Body<CompletionRequest>,
) -> Result<Response, ApiError> {
    check_model(&app, request.common.model.as_deref())?;
    let refuse = |set: bool, name: &str| match set {
        true => Err(ApiError::field(name, "not supported")),
        false => Ok(()),
    };
    refuse(request.echo == Some(true), "echo")?;
    refuse(request.suffix.as_ref().is_some_and(|suffix| !suffix.is_empty()), "suffix")?;
    refuse(request.best_of.is_some_and(|best_of| best_of > request.common.n.unwrap_or(1)), "best_of")?;
    if request.logprobs.is_some_and(|top| top > 20) {
        return Err(ApiError::field("logprobs", "expected 0 to 20"));
    }
    let prompt = match request.prompt {
        Prompt::One(text) => text,
        Prompt::Several(texts) => match <[String; 1]>::try_from(texts) {
            Ok([text]) => text,
            Err(_) => return Err(ApiError::field("prompt", "exactly one text is supported")),
        },
    };
    if prompt.is_empty() {
        return Err(ApiError::field("prompt", "a text that is not empty is required"));
    }
    let logprobs = request.logprobs;
    let samplings = settings::samplings(&app.config, &request.common, |sampling| {
        sampling.logprobs = logprobs;
        Ok(())
    })?;
    let (chat, choices) = (app.engine.chat()?.clone(), samplings.len());
    let mut generation = app.engine.submit(Work::Text(prompt), samplings)?;
    generation.begun().await?;
    let context = Context { app: app.clone(), chat, id: new_id("cmpl"), created: unix_time(), logprobs };
    if request.common.stream.unwrap_or(false) {
        let usage = request.common.stream_options.and_then(|options| options.include_usage).unwrap_or(false);
        return Ok(event_stream(app.config.keep_alive, move |sender| {
            context.stream(generation, usage, sender)
        }));
    }
    Ok(Json(context.collect(generation, choices).await?).into_response())
}

/// One continuation while it is generated.
#[derive(Default)]
struct Choice {
    text: String,
    tokens: Vec<TokenDetail>,
    finish: Option<Box<Finish>>,
}

struct Context {
    app: App,
    chat: Chat,
    id: String,
    created: u64,
    logprobs: Option<usize>,
}

impl Context {
    async fn collect(
        &self,
        mut generation: Generation,
        choices: usize,
    ) -> Result<CompletionResponse, ApiError> {
        let mut collected: Vec<Choice> = (0..choices).map(|_| Choice::default()).collect();
        while let Some((index, event)) = generation.next().await {
            let choice = &mut collected[index];
            match event {
                Event::Answer(part) | Event::Reasoning(part) => choice.text.push_str(&part),
                Event::Token { detail, .. } => choice.tokens.push(detail),
                Event::Finish(end) => {
                    self.app.metrics.reply(&end);
                    log_reply(&self.id, &end);
                    choice.finish = Some(end);
                }
                Event::Failed(error) => return Err(error),
                Event::Started => {}
            }
        }
        let mut usage = UsageObject::default();
        let choice = |(index, choice): (usize, Choice)| {
            let finish = choice.finish?;
            usage.add(&finish.usage);
            let (finish_reason, detail) = reply::finish_reason(&finish);
            let logprobs = self.logprobs.map(|top| self.token_logprobs(&choice.tokens, top));
            Some(CompletionChoice { index, text: choice.text, logprobs, finish_reason, detail })
        };
        let choices = collected.into_iter().enumerate().filter_map(choice).collect();
        Ok(CompletionResponse {
            id: self.id.clone(),
            object: "text_completion",
            created: self.created,
            model: self.app.config.model_id.clone(),
            choices,
            usage,
        })
    }

    /// Tokens with their log-probabilities, in the form of text completions.
    fn token_logprobs(&self, tokens: &[TokenDetail], top: usize) -> Value {
        let text =
            |id: u32| String::from_utf8_lossy(&self.chat.token_bytes(&[id]).unwrap_or_default()).into_owned();
        let mut offset = 0;
        let (mut texts, mut offsets, mut values, mut alternatives) = (vec![], vec![], vec![], vec![]);
        for token in tokens {
            let token_text = text(token.id);
            offsets.push(offset);
            offset += token_text.chars().count();
            texts.push(token_text);
            values.push(token.logprob.max(-9999.0));
            let top =
                token.alternatives.iter().take(top).map(|(id, logprob)| (text(*id), logprob.max(-9999.0)));
            alternatives.push(top.collect::<std::collections::BTreeMap<_, _>>());
        }
        json!({"tokens": texts, "token_logprobs": values, "top_logprobs": alternatives, "text_offset": offsets})
    }

    async fn stream(self, mut generation: Generation, usage: bool, sender: EventSender) {
        let mut total = UsageObject::default();
        let mut tokens: Vec<TokenDetail> = Vec::new();
        loop {
            let next = tokio::select! {
                () = sender.closed() => return,
                next = generation.next() => next,
            };
            let Some((index, event)) = next else { break };
            let (text, finish) = match event {
                Event::Answer(text) | Event::Reasoning(text) => (text, None),
                Event::Finish(finish) => {
                    self.app.metrics.reply(&finish);
                    log_reply(&self.id, &finish);
                    total.add(&finish.usage);
                    (String::new(), Some(finish))
                }
                Event::Failed(error) => {
                    let _ = sender.send(None, &error.body()).await;
                    return;
                }
                Event::Token { detail, .. } => {
                    tokens.push(detail);
                    continue;
                }
                Event::Started => continue,
            };
            let taken = std::mem::take(&mut tokens);
            let logprobs = match self.logprobs.filter(|_| !taken.is_empty()) {
                Some(top) => self.token_logprobs(&taken, top),
                None => Value::Null,
            };
            let mut choice =
                json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": null});
            if let Some(finish) = finish {
                choice["finish_reason"] = reply::finish_reason(&finish).0.into();
            }
            if sender.send(None, &self.chunk(vec![choice])).await.is_err() {
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

    fn chunk(&self, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id, "object": "text_completion", "created": self.created,
            "model": self.app.config.model_id, "choices": choices,
        })
    }
}
