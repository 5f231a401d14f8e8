//! Display of replies: text for people, JSON for programs.

use std::io::{self, IsTerminal, Write};

use q35_runtime::{Chunk, Finish, Reply, ReplyStream};
use serde_json::{Value, json};

use super::args::{Chat, Shown};

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
    pub(super) fn print(self, stream: &mut ReplyStream<'_>) -> anyhow::Result<Option<Finish>> {
        let mut out = io::stdout().lock();
        let (mut thinking, mut finish) = (false, None);
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
        Ok(finish)
    }

    fn end_thinking(self, out: &mut impl Write) -> io::Result<()> {
        out.write_all(if self.colour { b"\x1b[0m\n\n" } else { b"\n\n" })
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
