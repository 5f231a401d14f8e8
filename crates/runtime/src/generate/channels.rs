//! Separation of reasoning and answer in streamed text.

use crate::tools::{CallStart, CodeTracker, Tool, find_call_start};

/// The tag that opens reasoning.
pub(crate) const OPEN: &str = "<think>";
/// The tag that closes reasoning.
pub(crate) const CLOSE: &str = "</think>";

/// The two parts of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Channel {
    Reasoning,
    Answer,
}

/// Splits streamed text into channels. The thinking tags are never emitted, not even partly: text that may become one
/// is held back. A call of an offered tool ends the reasoning; a tool-call tag that is only mentioned does not.
///
/// White space around the reasoning and before the answer belongs to the template and is left out.
#[derive(Clone, Debug)]
pub(crate) struct ChannelSplitter {
    channel: Channel,
    /// Text held back: a possible beginning of a tag, or white space at a possible end of the reasoning.
    pending: String,
    /// True until this channel has text other than white space.
    fresh: bool,
    /// True once reasoning was emitted: more of it, after a tag, begins on a new line.
    reasoned: bool,
    /// The code blocks of the reasoning so far.
    code: CodeTracker,
    /// The names of the tools on offer.
    tools: Vec<String>,
}

impl ChannelSplitter {
    /// A splitter for the reply to a rendered prompt: inside reasoning if the prompt ends with the opening tag.
    pub(crate) fn after_prompt(prompt: &str) -> Self {
        let thinking = prompt.trim_end().ends_with(OPEN);
        Self::new(if thinking { Channel::Reasoning } else { Channel::Answer })
    }

    pub(crate) fn new(channel: Channel) -> Self {
        let code = CodeTracker::default();
        Self { channel, pending: String::new(), fresh: true, reasoned: false, code, tools: Vec::new() }
    }

    /// Sets the tools whose calls end the reasoning.
    pub(crate) fn with_tools(mut self, tools: &[Tool]) -> Self {
        self.tools = tools.iter().map(|tool| tool.name.clone()).collect();
        self
    }

    pub(crate) fn channel(&self) -> Channel {
        self.channel
    }

    /// Adds text, and appends the text whose channel is certain to `out`.
    pub(crate) fn push(&mut self, text: &str, out: &mut Vec<(Channel, String)>) {
        self.pending.push_str(text);
        while self.step(out) {}
    }

    /// Ends the text: the text held back is emitted.
    pub(crate) fn finish(&mut self, out: &mut Vec<(Channel, String)>) {
        let rest = std::mem::take(&mut self.pending);
        let rest = match self.channel {
            Channel::Reasoning => rest.trim_end().to_owned(),
            Channel::Answer => rest,
        };
        self.emit(&rest, out);
    }

    /// Closes the reasoning by force: the answer follows, and the text held back is dropped.
    pub(crate) fn close_reasoning(&mut self) {
        let tools = std::mem::take(&mut self.tools);
        *self = Self { reasoned: self.reasoned, tools, ..Self::new(Channel::Answer) };
    }

    /// Makes one decision; returns true if another may follow.
    fn step(&mut self, out: &mut Vec<(Channel, String)>) -> bool {
        match self.channel {
            Channel::Reasoning => {
                let close = self.pending.find(CLOSE).map(|at| (at, at + CLOSE.len()));
                let start = find_call_start(&self.pending, &self.code, &self.tools);
                let call = if let CallStart::At(at) = start { Some((at, at)) } else { None };
                let Some((end, next)) = close.into_iter().chain(call).min() else {
                    let undecided =
                        if let CallStart::Undecided(at) = start { self.pending.len() - at } else { 0 };
                    let held = held_back(&self.pending, &[CLOSE]).max(undecided);
                    let certain = self.pending[..self.pending.len() - held].trim_end().len();
                    let rest = self.pending.split_off(certain);
                    let certain = std::mem::replace(&mut self.pending, rest);
                    self.code.push_str(&certain);
                    self.emit(&certain, out);
                    return false;
                };
                let reasoning = self.pending[..end].trim_end().to_owned();
                self.emit(&reasoning, out);
                self.pending.drain(..next);
                self.code = CodeTracker::default();
                self.channel = Channel::Answer;
                self.fresh = true;
                true
            }
            Channel::Answer if self.fresh => {
                let start = self.pending.len() - self.pending.trim_start().len();
                let text = &self.pending[start..];
                if text.starts_with(OPEN) {
                    self.pending.drain(..start + OPEN.len());
                    self.channel = Channel::Reasoning;
                    return true;
                }
                if text.starts_with(CLOSE) {
                    self.pending.drain(..start + CLOSE.len());
                    return true;
                }
                let undecided = OPEN.starts_with(text) || CLOSE.starts_with(text);
                if !undecided {
                    let text = std::mem::take(&mut self.pending);
                    self.emit(&text, out);
                }
                false
            }
            Channel::Answer => {
                let text = std::mem::take(&mut self.pending);
                self.emit(&text, out);
                false
            }
        }
    }

    fn emit(&mut self, text: &str, out: &mut Vec<(Channel, String)>) {
        let text = if self.fresh { text.trim_start() } else { text };
        if text.is_empty() {
            return;
        }
        let mut text = text.to_owned();
        if self.channel == Channel::Reasoning {
            if self.fresh && self.reasoned {
                text.insert(0, '\n');
            }
            self.reasoned = true;
        }
        self.fresh = false;
        out.push((self.channel, text));
    }
}

/// Length of the longest suffix of `text` that is a proper prefix of one of `tags`.
pub(crate) fn held_back<S: AsRef<str>>(text: &str, tags: &[S]) -> usize {
    let longest = |tag: &str| {
        let most = text.len().min(tag.len().saturating_sub(1));
        let fits =
            |n: &usize| text.is_char_boundary(text.len() - n) && tag.starts_with(&text[text.len() - n..]);
        (1..=most).rev().find(fits).unwrap_or(0)
    };
    tags.iter().map(|tag| longest(tag.as_ref())).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn split(start: Channel, pieces: &[&str]) -> (String, String) {
        let tool = Tool::new("f", "", serde_json::Value::Null);
        let (mut splitter, mut out) = (ChannelSplitter::new(start).with_tools(&[tool]), Vec::new());
        pieces.iter().for_each(|piece| splitter.push(piece, &mut out));
        splitter.finish(&mut out);
        let join = |channel| out.iter().filter(|(c, _)| *c == channel).map(|(_, t)| t.as_str()).collect();
        (join(Channel::Reasoning), join(Channel::Answer))
    }

    #[test]
    fn what_belongs_where() {
        use Channel::{Answer, Reasoning};
        let cases = [
            (Reasoning, "hm, well\n</think>\n\nYes.", "hm, well", "Yes."),
            (Reasoning, "\n\n</think>\n\nYes.", "", "Yes."),
            (Reasoning, "never closed ", "never closed", ""),
            (Reasoning, "use it <tool_call>\n<function=f>", "use it", "<tool_call>\n<function=f>"),
            (Reasoning, "the tag <tool_call> is\nmeant</think>d", "the tag <tool_call> is\nmeant", "d"),
            (Reasoning, "`<tool_call>` and <function=g></think>d", "`<tool_call>` and <function=g>", "d"),
            (
                Reasoning,
                "```\n<tool_call><function=f>\n```\n</think>d",
                "```\n<tool_call><function=f>\n```",
                "d",
            ),
            (Reasoning, "now\n<function=f></function>", "now", "<function=f></function>"),
            (Reasoning, "so <tool_call> {\"name\": 1}", "so", "<tool_call> {\"name\": 1}"),
            (Reasoning, "a < b </thin air> c</think>d", "a < b </thin air> c", "d"),
            (Reasoning, "x</think></think>y", "x", "y"),
            (Answer, "Plain <b>text</b>\n", "", "Plain <b>text</b>\n"),
            (Answer, "<think>\nwhy\n</think>\nSo.", "why", "So."),
            (Answer, "</think>\n\nSo.", "", "So."),
            (
                Answer,
                "The tag <think> opens, </think> closes.",
                "",
                "The tag <think> opens, </think> closes.",
            ),
            (Answer, "<thin", "", "<thin"),
            (Reasoning, "one</think><think>two</think>three", "one\ntwo", "three"),
            (Reasoning, "</th</think><think>ink>", "</th\nink>", ""),
        ];
        for (start, text, reasoning, answer) in cases {
            assert_eq!(split(start, &[text]), (reasoning.into(), answer.into()), "{text:?}");
            let letters: Vec<String> = text.chars().map(String::from).collect();
            let letters: Vec<&str> = letters.iter().map(String::as_str).collect();
            assert_eq!(
                split(start, &letters),
                (reasoning.into(), answer.into()),
                "letter by letter: {text:?}"
            );
        }
    }

    #[test]
    fn the_prompt_says_where_the_reply_starts() {
        let cases = [
            ("<|im_start|>assistant\n<think>\n", Channel::Reasoning),
            ("<|im_start|>assistant\n<think>\n\n</think>\n\n", Channel::Answer),
            ("<|im_start|>assistant\n", Channel::Answer),
        ];
        for (prompt, channel) in cases {
            assert_eq!(ChannelSplitter::after_prompt(prompt).channel(), channel, "{prompt:?}");
        }
    }

    proptest! {
        #[test]
        fn no_cut_changes_the_parts_and_no_tag_begins_to_show(
            parts in prop::collection::vec(prop::sample::select(vec![
                "</think>", "<think>", "<tool_call>", "<function=f>", "`", "</th", "a", " ", "\n", "世", "<", "ink>",
            ]), 0..10),
            cuts in prop::collection::vec(1usize..4, 0..40),
            thinking in any::<bool>(),
        ) {
            let text = parts.concat();
            let start = if thinking { Channel::Reasoning } else { Channel::Answer };
            let (mut pieces, mut rest) = (Vec::new(), text.as_str());
            for cut in cuts {
                let at = rest.char_indices().nth(cut).map_or(rest.len(), |(at, _)| at);
                pieces.push(&rest[..at]);
                rest = &rest[at..];
            }
            pieces.push(rest);
            let cut = split(start, &pieces);
            prop_assert_eq!(&cut, &split(start, &[&text]));
            let names = ["f".to_owned()];
            let call = find_call_start(&cut.0, &CodeTracker::default(), &names);
            prop_assert!(!cut.0.contains(CLOSE) && !matches!(call, CallStart::At(_)), "{:?}", cut);
        }
    }
}
