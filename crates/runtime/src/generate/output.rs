//! The text of a reply: from token ids to the chunks that a caller reads.

use std::collections::VecDeque;

use q35_text::{Detokenizer, Tokenizer};

use super::channels::{Channel, ChannelSplitter};
use super::stop_text::StopMatcher;
use super::{Chunk, Finish, TokenDetail};

/// Decodes tokens, separates reasoning from answer, cuts at stop texts, and queues the chunks.
pub(super) struct ReplyOutput {
    detokenizer: Detokenizer,
    splitter: ChannelSplitter,
    stops: StopMatcher,
    queue: VecDeque<Chunk>,
    answer: String,
    reasoning: String,
}

impl ReplyOutput {
    pub(super) fn new(splitter: ChannelSplitter, stop_texts: &[String]) -> Self {
        Self {
            detokenizer: Detokenizer::new(),
            splitter,
            stops: StopMatcher::new(stop_texts),
            queue: VecDeque::new(),
            answer: String::new(),
            reasoning: String::new(),
        }
    }

    /// The channel of the next token.
    pub(super) fn channel(&self) -> Channel {
        self.splitter.channel()
    }

    /// The answer so far.
    pub(super) fn answer(&self) -> &str {
        &self.answer
    }

    /// Removes the next chunk that is ready.
    pub(super) fn pop(&mut self) -> Option<Chunk> {
        self.queue.pop_front()
    }

    /// Returns answer and reasoning.
    pub(super) fn into_texts(self) -> (String, String) {
        (self.answer, self.reasoning)
    }

    /// Adds a token's log-probability.
    pub(super) fn push_detail(&mut self, detail: TokenDetail) {
        self.queue.push_back(Chunk::Token(detail));
    }

    /// Adds a token's text. Returns true if a stop text is now complete.
    pub(super) fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> bool {
        let text = self.detokenizer.push(tokenizer, id);
        self.show(&text);
        self.stops.is_hit()
    }

    /// Drops an incomplete character or tag of the reasoning: the answer follows.
    pub(super) fn close_reasoning(&mut self) {
        self.detokenizer = Detokenizer::new();
        self.splitter.close_reasoning();
    }

    /// Adds the text that was held back because it could have become a tag or a stop text. `whole` is false for a reply
    /// that was cut: its incomplete last character is left out, because it can be neither read nor spoken.
    pub(super) fn flush(&mut self, whole: bool) {
        if whole {
            let rest = self.detokenizer.finish();
            self.show(&rest);
        }
        let mut parts = Vec::new();
        self.splitter.finish(&mut parts);
        self.queue_parts(parts);
        let rest = self.stops.finish();
        self.queue_answer(rest);
    }

    /// Adds the last chunk.
    pub(super) fn finish(&mut self, finish: Finish) {
        self.queue.push_back(Chunk::Finish(finish));
    }

    fn show(&mut self, text: &str) {
        let mut parts = Vec::new();
        self.splitter.push(text, &mut parts);
        self.queue_parts(parts);
    }

    fn queue_parts(&mut self, parts: Vec<(Channel, String)>) {
        for (channel, text) in parts {
            match channel {
                Channel::Reasoning => {
                    self.reasoning.push_str(&text);
                    self.queue.push_back(Chunk::Reasoning(text));
                }
                Channel::Answer => {
                    let text = self.stops.push(&text);
                    self.queue_answer(text);
                }
            }
        }
    }

    fn queue_answer(&mut self, text: String) {
        if !text.is_empty() {
            self.answer.push_str(&text);
            self.queue.push_back(Chunk::Answer(text));
        }
    }
}
