//! `--script`: a conversation read from a file. `docs/chat.md` describes the format.

use std::io::Read;
use std::path::Path;

use anyhow::{Context as _, bail};
use q35_runtime::{
    CancelToken, ChatError, Chunk, CutReply, Format, Message, Reply, Role, Sampling, Session, Tool,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::args::{Chat, SamplingArgs};
use super::console::reply_json;
use super::{interrupt, words};
use crate::exit::Outcome;
use crate::output::line;

/// One line: a user message with settings for its reply, or a change of the conversation.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object such as {\"user\": \"Hi\"}")]
struct Line {
    user: Option<String>,
    system: Option<String>,
    /// A conversation that replaces the present one.
    messages: Option<Value>,
    /// The tools on offer from here on, as in OpenAI's chat completions.
    tools: Option<Vec<Value>>,
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

/// Fields of a message, which a line may have in place of `user` and `system`.
const MESSAGE_FIELDS: [&str; 12] = [
    "role",
    "content",
    "tool_calls",
    "reasoning_content",
    "reasoning",
    "name",
    "tool_call_id",
    "id",
    "refusal",
    "audio",
    "function_call",
    "annotations",
];

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

/// A line with its number and its parsed parts.
#[derive(Debug)]
struct Entry {
    number: usize,
    line: Line,
    /// A message that is added to the conversation.
    message: Option<Message>,
    /// The messages that replace the conversation.
    conversation: Option<Vec<Message>>,
    tools: Option<Vec<Tool>>,
}

impl Entry {
    /// The role of the message after which a reply may follow.
    fn last_role(&self) -> Option<Role> {
        let message = self.message.as_ref().or_else(|| self.conversation.as_ref()?.last());
        message.map(|message| message.role)
    }
}

/// The lines of a script.
#[derive(Debug)]
pub(super) struct Script(Vec<Entry>);

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
        // A saved conversation is one JSON value on several lines.
        if bytes.trim_ascii_start().starts_with(b"[") {
            let messages = serde_json::from_slice(bytes).with_context(|| file.display().to_string())?;
            let line = Line { messages: Some(messages), ..Line::default() };
            return Ok(Self(vec![entry(1, line, None).with_context(|| file.display().to_string())?]));
        }
        let mut entries = Vec::new();
        for (index, text) in bytes.split(|byte| *byte == b'\n').enumerate() {
            let entry =
                parse(index + 1, text).with_context(|| format!("{}, line {}", file.display(), index + 1))?;
            entries.extend(entry);
        }
        Ok(Self(entries))
    }
}

/// Parses one line; `None` for an empty one.
fn parse(number: usize, text: &[u8]) -> anyhow::Result<Option<Entry>> {
    let text = std::str::from_utf8(text).context("not UTF-8")?.trim();
    if text.is_empty() {
        return Ok(None);
    }
    let fields: Option<Map<String, Value>> = serde_json::from_str(text).ok();
    if let Some(fields) = fields.filter(|fields| fields.contains_key("role")) {
        return message_entry(number, fields).map(Some);
    }
    let line: Line = serde_json::from_str(text).map_err(|error| {
        // The position that serde_json reports is relative to this line.
        let (message, column) = (error.to_string(), error.column());
        let message = message.split(" at line ").next().unwrap_or_default();
        anyhow::anyhow!("column {column}: {message}")
    })?;
    let changes = line.user.is_some()
        || line.system.is_some()
        || line.messages.is_some()
        || line.tools.is_some()
        || line.drop_last.is_some()
        || line.reset;
    if !changes {
        bail!(
            "none of `user`, `role`, `system`, `messages`, `tools`, `reset`, `drop_last`: the line does nothing"
        );
    }
    entry(number, line, None).map(Some)
}

/// A line that is a message, with settings beside its fields.
fn message_entry(number: usize, mut fields: Map<String, Value>) -> anyhow::Result<Entry> {
    let message = Message::from_json(&Value::Object(fields.clone()))?;
    MESSAGE_FIELDS.iter().for_each(|field| drop(fields.shift_remove(*field)));
    let line: Line = serde_json::from_value(Value::Object(fields))?;
    if line.user.is_some() || line.system.is_some() || line.messages.is_some() {
        bail!("`role` beside `user`, `system` or `messages`: a line is one message");
    }
    entry(number, line, Some(message))
}

fn entry(number: usize, line: Line, message: Option<Message>) -> anyhow::Result<Entry> {
    line.sampling(&Sampling::default())?;
    let conversation = line.messages.as_ref().map(Message::list_from_json).transpose()?;
    let tools = match &line.tools {
        None => None,
        Some(tools) => {
            let parse = |(index, tool)| {
                Tool::from_json(tool).with_context(|| format!("`tools[{index}]` is no function"))
            };
            Some(tools.iter().enumerate().map(parse).collect::<anyhow::Result<Vec<_>>>()?)
        }
    };
    Ok(Entry { number, line, message, conversation, tools })
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
    for (index, entry) in script.0.iter().enumerate() {
        let said = apply(&mut session, entry)?;
        // A message that the next line answers or continues needs no reply.
        let next = script.0.get(index + 1).and_then(|next| next.message.as_ref()).map(|message| message.role);
        let answered = matches!(next, Some(Role::Assistant | Role::Tool));
        let wants_reply = matches!(entry.last_role(), Some(Role::User | Role::Tool)) && !answered;
        if said.is_none() && !wants_reply {
            continue;
        }
        let sampling = entry.line.sampling(sampling)?;
        let question = match &said {
            Some(user) => (*user).to_owned(),
            None => session.messages().last().map(|message| message.content.clone()).unwrap_or_default(),
        };
        match turn(&mut session, said, &sampling, &entry.line) {
            Ok(reply) if args.json => line(reply_json(&reply).to_string())?,
            Ok(reply) => line(format!("> {question}\n{}\n", reply.text))?,
            Err(error) => {
                outcome = Outcome::No;
                let error = match &error {
                    // The fields of a line have the library's names; other limits come from flags.
                    ChatError::Option { .. } => error.to_string(),
                    _ => words::flag_text(&error).unwrap_or_else(|| error.to_string()),
                };
                match args.json {
                    true => line(json!({"error": error, "line": entry.number}).to_string())?,
                    false => line(format!("> {question}\nerror: {error}\n"))?,
                }
            }
        }
    }
    Ok(outcome)
}

/// Changes the conversation as a line says. Returns the user message that is sent with the turn.
fn apply<'e>(session: &mut Session, entry: &'e Entry) -> anyhow::Result<Option<&'e str>> {
    let place = || format!("line {}", entry.number);
    if entry.line.reset {
        session.reset_conversation();
    }
    if let Some(count) = entry.line.drop_last {
        session.drop_last(count);
    }
    if let Some(tools) = &entry.tools {
        session.set_tools(tools.clone());
    }
    if let Some(messages) = &entry.conversation {
        session.set_messages(messages.clone()).with_context(place)?;
    }
    if let Some(system) = &entry.line.system {
        session.set_system(Some(system.clone()));
    }
    if let Some(message) = &entry.message {
        session.push(message.clone()).with_context(place)?;
    }
    Ok(entry.line.user.as_deref())
}

/// Runs a turn. `cancel_after` must see every token, so it requests log-probabilities.
fn turn(
    session: &mut Session,
    user: Option<&str>,
    sampling: &Sampling,
    entry: &Line,
) -> Result<Reply, ChatError> {
    let cancel = CancelToken::new();
    let _guard = interrupt::Guard::new(&cancel);
    let mut counted = sampling.clone();
    if entry.cancel_after.is_some() {
        counted.logprobs = Some(sampling.logprobs.unwrap_or(0));
    }
    if entry.cancel_after == Some(0) {
        cancel.cancel();
    }
    let mut stream = match user {
        Some(user) => session.send_with(user, &counted, cancel.clone())?,
        None => session.respond(&counted, cancel.clone())?,
    };
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
