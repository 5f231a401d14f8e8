//! Display of replies: text for people, JSON for programs.

use std::io::{self, IsTerminal, Write};

use q35_runtime::{Chunk, Finish, FinishReason, Reply, ReplyStream};
use serde_json::{Value, json};

use super::args::{Chat, Shown};
use crate::output::note;

/// The settings of displayed text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Console {
    thinking: bool,
    colour: bool,
}

impl Console {
    /// The settings of the command line and of the terminal.
    pub(super) fn new(args: &Chat) -> Self {
        let terminal = io::stdout().is_terminal();
        let thinking = match args.show_thinking {
            Some(shown) => shown == Shown::Always,
            None => terminal,
        };
        Self {
            thinking,
            colour: terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        }
    }

    /// Prints a reply as it is generated.
    pub(super) fn print(self, stream: &mut ReplyStream<'_>) -> anyhow::Result<Option<Printed>> {
        let mut out = io::stdout().lock();
        let (mut thinking, mut answered, mut finish) = (false, false, None);
        for chunk in stream {
            match chunk? {
                Chunk::Reasoning(text) if self.thinking => {
                    if !thinking {
                        thinking = true;
                        out.write_all(if self.colour { b"\x1b[2m" } else { b"(thinking) " })?;
                    }
                    out.write_all(text.as_bytes())?;
                }
                Chunk::Answer(text) => {
                    answered = true;
                    if std::mem::take(&mut thinking) {
                        self.end_thinking(&mut out)?;
                    }
                    out.write_all(text.as_bytes())?;
                }
                Chunk::Finish(end) => finish = Some(end),
                _ => {}
            }
            out.flush()?;
        }
        if thinking {
            self.end_thinking(&mut out)?;
        }
        out.write_all(b"\n")?;
        out.flush()?;
        Ok(finish.map(|finish| Printed { finish, answered }))
    }

    fn end_thinking(self, out: &mut impl Write) -> io::Result<()> {
        out.write_all(if self.colour { b"\x1b[0m\n\n" } else { b"\n\n" })
    }
}

/// The end of a printed reply.
pub(super) struct Printed {
    pub(super) finish: Finish,
    /// True if the reply has an answer, not only reasoning.
    pub(super) answered: bool,
}

/// Prints notes about a reply that a limit shortened: an answer that is missing, or JSON that was closed.
pub(super) fn note_limits(finish: &Finish, answered: bool) {
    let limit = match finish.reason {
        FinishReason::Length => "--max-tokens",
        FinishReason::ContextFull => "--max-context",
        _ => "the loop guard",
    };
    if !answered && matches!(finish.reason, FinishReason::Length | FinishReason::ContextFull) {
        note(format!(
            "no answer: {limit} ended the reply within its reasoning, after {} tokens\n\
             hint: raise {limit}, lower --max-thinking-tokens, or use --no-think",
            finish.usage.completion_tokens
        ));
    }
    if !finish.closed_fields.is_empty() {
        let name =
            |pointer: &String| if pointer.is_empty() { "the whole answer".into() } else { pointer.clone() };
        let fields: Vec<String> = finish.closed_fields.iter().map(name).collect();
        note(format!("the JSON was closed by {limit}; invented or shortened: {}", fields.join(", ")));
    }
    if let Err(broken) = &finish.tool_calls {
        note(format!("{broken}\n{} other calls are valid", broken.valid.len()));
    }
}

/// A reply as a JSON object.
pub(super) fn reply_json(reply: &Reply) -> Value {
    let finish = &reply.finish;
    let mut object = json!({
        "text": reply.text,
        "reasoning": reply.reasoning,
        "finish_reason": finish.reason.as_str(),
        "usage": finish.usage,
        "timing": finish.timing,
        "seed": finish.seed,
    });
    object["timing"]["tokens_per_sec"] = json!(finish.timing.tokens_per_sec(&finish.usage));
    if finish.dropped_messages > 0 {
        object["dropped_messages"] = json!(finish.dropped_messages);
    }
    if !finish.closed_fields.is_empty() {
        object["closed_fields"] = json!(finish.closed_fields);
    }
    match &finish.tool_calls {
        Ok(calls) if calls.is_empty() => {}
        Ok(calls) => object["tool_calls"] = json!(calls),
        Err(broken) => {
            object["tool_calls"] = json!(broken.valid);
            object["tool_calls_error"] = json!(broken.to_string());
        }
    }
    if !reply.tokens.is_empty() {
        object["tokens"] = json!(reply.tokens);
    }
    object
}

/// One line with the counts and times of a reply.
pub(super) fn finish_line(finish: &Finish) -> String {
    let (usage, timing) = (&finish.usage, &finish.timing);
    format!(
        "{}: {} tokens ({} thinking) at {:.1} tokens/s; prompt of {} tokens ({} cached), prefill {:.2} s",
        finish.reason.as_str(),
        usage.completion_tokens,
        usage.thinking_tokens,
        timing.tokens_per_sec(usage),
        usage.prompt_tokens,
        usage.cached_tokens,
        timing.prefill.as_secs_f64(),
    )
}
