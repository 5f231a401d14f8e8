//! The thinking policy: the end of the reasoning, and the answer that must follow it.

use super::channels::CLOSE;
use crate::Thinking;

/// The rules for reasoning within one reply.
#[derive(Debug)]
pub(super) struct ThinkingPolicy {
    settings: Thinking,
    /// True from a forced end of the reasoning to the next token: that token must not end the turn.
    must_answer: bool,
    /// True once the reasoning was closed, by the model or by force, or thinking is off.
    reasoning_closed: bool,
}

impl ThinkingPolicy {
    pub(super) fn new(settings: &Thinking) -> Self {
        Self { settings: settings.clone(), must_answer: false, reasoning_closed: false }
    }

    /// True if the settings allow no reasoning.
    pub(super) fn is_off(&self) -> bool {
        self.settings.max_tokens == Some(0) || self.settings.enable == Some(false)
    }

    /// True if the budget allows no reasoning, so that even reasoning which the template opened is closed.
    pub(super) fn budget_is_zero(&self) -> bool {
        self.settings.max_tokens == Some(0)
    }

    /// True if `thinking_tokens` have used up the budget.
    pub(super) fn is_spent(&self, thinking_tokens: usize) -> bool {
        self.settings.max_tokens.is_some_and(|budget| thinking_tokens >= budget)
    }

    /// Records that no more reasoning follows. Returns true at the first call.
    pub(super) fn close(&mut self) -> bool {
        !std::mem::replace(&mut self.reasoning_closed, true)
    }

    /// The text that closes the reasoning in the model's context.
    pub(super) fn closing_text(&self) -> String {
        format!("{}\n{CLOSE}\n\n", self.settings.close_text)
    }

    /// Requires an answer after reasoning that was closed by force.
    pub(super) fn force_answer(&mut self) {
        self.must_answer = true;
    }

    /// True if the next token must not end the turn; asked once per token.
    pub(super) fn take_must_answer(&mut self) -> bool {
        std::mem::take(&mut self.must_answer)
    }
}
