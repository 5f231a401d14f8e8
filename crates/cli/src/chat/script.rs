//! `--script`: a conversation read from a file.

use std::io::Read;
use std::path::Path;

use anyhow::{Context as _, bail};
use q35_runtime::{CancelToken, ChatError, Chunk, CutReply, Format, Reply, Sampling, Session};
use serde::Deserialize;
use serde_json::{Value, json};

use super::args::{Chat, SamplingArgs};
use super::console::reply_json;
use super::interrupt;
use crate::exit::Outcome;
use crate::output::line;

/// One line: a user message with settings for its reply, or a change of the conversation.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object such as {\"user\": \"Hi\"}")]
struct Line {
    user: Option<String>,
    system: Option<String>,
    #[serde(default)]
    reset: bool,
    drop_last: Option<usize>,
    temperature: Option<f32>,
    top_k: Option<usize>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    seed: Option<u64>,
    max_tokens: Option<usize>,
    stop: Option<Stops>,
    thinking: Option<bool>,
    max_thinking_tokens: Option<usize>,
    /// A JSON Schema, or true for any JSON object.
    schema: Option<Value>,
    /// Requests log-probabilities with this many alternatives.
    logprobs: Option<usize>,
    /// Cancels the reply after this many tokens.
    cancel_after: Option<usize>,
    /// Removes the turn if it is cancelled.
    #[serde(default)]
    roll_back: bool,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Stops {
    One(String),
    Several(Vec<String>),
}

impl Line {
    fn sampling(&self, base: &Sampling) -> anyhow::Result<Sampling> {
        let args = SamplingArgs {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            seed: self.seed,
            max_tokens: self.max_tokens,
            stop: match &self.stop {
                None => Vec::new(),
                Some(Stops::One(stop)) => vec![stop.clone()],
                Some(Stops::Several(stops)) => stops.clone(),
            },
            think: self.thinking == Some(true),
            no_think: self.thinking == Some(false),
            max_thinking_tokens: self.max_thinking_tokens,
            ..SamplingArgs::default()
        };
        let mut sampling = args.apply_to(base.clone())?;
        match &self.schema {
            None | Some(Value::Null | Value::Bool(false)) => {}
            Some(Value::Bool(true)) => sampling.format = Format::Json,
            Some(schema) => sampling.format = Format::Schema(schema.clone()),
        }
        sampling.logprobs = self.logprobs.or(sampling.logprobs);
        Ok(sampling)
    }
}

/// The lines of a script with their numbers.
pub(super) struct Script(Vec<(usize, Line)>);

impl Script {
    /// Reads the whole script. An invalid line is reported before anything is computed.
    pub(super) fn read(file: &Path) -> anyhow::Result<Self> {
        let bytes = if file == Path::new("-") {
            let mut bytes = Vec::new();
            std::io::stdin().read_to_end(&mut bytes).context("cannot read stdin")?;
            bytes
        } else {
            std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?
        };
        // Some editors begin a file with a byte order mark.
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
        let mut lines = Vec::new();
        for (index, text) in bytes.split(|byte| *byte == b'\n').enumerate() {
            let entry = parse(text).with_context(|| format!("{}, line {}", file.display(), index + 1))?;
            lines.extend(entry.map(|line| (index + 1, line)));
        }
        Ok(Self(lines))
    }
}

/// Parses one line; `None` for an empty one.
fn parse(text: &[u8]) -> anyhow::Result<Option<Line>> {
    let text = std::str::from_utf8(text).context("not UTF-8")?.trim();
    if text.is_empty() {
        return Ok(None);
    }
    let entry: Line = serde_json::from_str(text).map_err(|error| {
        // The position that serde_json reports is relative to this line.
        let (message, column) = (error.to_string(), error.column());
        let message = message.split(" at line ").next().unwrap_or_default();
        anyhow::anyhow!("column {column}: {message}")
    })?;
    if entry.user.is_none() && entry.system.is_none() && entry.drop_last.is_none() && !entry.reset {
        bail!("none of `user`, `system`, `reset`, `drop_last`: the line does nothing");
    }
    entry.sampling(&Sampling::default())?;
    Ok(Some(entry))
}

pub(super) fn run(
    args: &Chat,
    chat: &q35_runtime::Chat,
    script: &Script,
    sampling: &Sampling,
) -> anyhow::Result<Outcome> {
    let mut session = chat.session();
    session.set_system(args.system.clone());
    interrupt::listen()?;
    let mut outcome = Outcome::Done;
    for (number, entry) in &script.0 {
        if entry.reset {
            session.reset_conversation();
        }
        if let Some(count) = entry.drop_last {
            session.drop_last(count);
        }
        if let Some(system) = &entry.system {
            session.set_system(Some(system.clone()));
        }
        let Some(user) = &entry.user else { continue };
        let sampling = entry.sampling(sampling)?;
        match turn(&mut session, user, &sampling, entry) {
            Ok(reply) if args.json => line(reply_json(&reply).to_string())?,
            Ok(reply) => line(format!("> {user}\n{}\n", reply.text))?,
            Err(error) => {
                outcome = Outcome::No;
                match args.json {
                    true => line(json!({"error": error.to_string(), "line": number}).to_string())?,
                    false => line(format!("> {user}\nerror: {error}\n"))?,
                }
            }
        }
    }
    Ok(outcome)
}

/// Runs a turn. `cancel_after` must see every token, so it requests log-probabilities.
fn turn(session: &mut Session, user: &str, sampling: &Sampling, entry: &Line) -> Result<Reply, ChatError> {
    let cancel = CancelToken::new();
    let _guard = interrupt::Guard::new(&cancel);
    let mut counted = sampling.clone();
    if entry.cancel_after.is_some() {
        counted.logprobs = Some(sampling.logprobs.unwrap_or(0));
    }
    if entry.cancel_after == Some(0) {
        cancel.cancel();
    }
    let mut stream = session.send_with(user, &counted, cancel.clone())?;
    let (mut text, mut reasoning, mut tokens, mut finish) = (String::new(), String::new(), Vec::new(), None);
    for chunk in stream.by_ref() {
        match chunk? {
            Chunk::Answer(part) => text.push_str(&part),
            Chunk::Reasoning(part) => reasoning.push_str(&part),
            Chunk::Token(token) => {
                tokens.push(token);
                if entry.cancel_after == Some(tokens.len()) {
                    cancel.cancel();
                }
            }
            Chunk::Finish(end) => finish = Some(end),
            _ => {}
        }
    }
    stream.cut(if entry.roll_back { CutReply::RollBack } else { CutReply::Keep });
    if sampling.logprobs.is_none() {
        tokens.clear();
    }
    // Every stream that does not fail ends with its finish.
    finish.map(|finish| Reply { text, reasoning, tokens, finish }).ok_or(ChatError::NotLoaded)
}
