//! The constraint on one answer.

use llguidance::Matcher;
use llguidance::toktrie::{SimpleVob, TokEnv};

use super::closing::{Closers, close};
use crate::ChatError;

/// Maximum number of tokens in which a way to close the answer is searched.
const LONGEST_CLOSE: usize = 1024;

/// The constraint on one answer, and its state.
pub(crate) struct Grammar {
    matcher: Matcher,
    closers: Closers,
    environment: TokEnv,
    /// Number of tokens of the shortest valid answer; `None` if none was found.
    shortest: Option<usize>,
    /// True once the answer must be closed without delay.
    closing: bool,
    /// Number of bytes of the answer so far.
    length: usize,
    cut_at: Option<usize>,
}

impl Grammar {
    pub(super) fn new(mut matcher: Matcher, closers: Closers, environment: TokEnv) -> Self {
        let shortest = close(&mut matcher, &closers, LONGEST_CLOSE).map(|tokens| tokens.len());
        Self { matcher, closers, environment, shortest, closing: false, length: 0, cut_at: None }
    }

    /// Number of tokens that must be left for the answer when it begins.
    pub(crate) fn shortest(&self) -> usize {
        self.shortest.unwrap_or(0)
    }

    /// Closes the answer with the next tokens. Returns false if no way to close it is known.
    pub(crate) fn begin_closing(&mut self) -> bool {
        self.closing = close(&mut self.matcher, &self.closers, LONGEST_CLOSE).is_some();
        self.closing
    }

    /// Byte offset from which the answer differs from the most probable one because it had to be closed; `None` if the
    /// model closed it.
    pub(crate) fn cut_at(&self) -> Option<usize> {
        self.cut_at
    }

    /// Masks the logits [vocab] of tokens that must not come next, with `left` tokens until the limit.
    pub(crate) fn mask(&mut self, logits: &mut [f32], left: usize) -> Result<(), ChatError> {
        let mask = self.matcher.compute_mask_or_eos().map_err(failed)?;
        apply_mask(&mask, logits);
        // Far from the limit every token leaves enough room.
        if !self.closing && left > self.shortest() + 64 {
            return Ok(());
        }
        let Some(tokens) = close(&mut self.matcher, &self.closers, LONGEST_CLOSE) else { return Ok(()) };
        match tokens.first() {
            // Any other token would leave too few for closing.
            Some(first) if self.closing || tokens.len() >= left => self.force(*first, logits),
            Some(first) => self.force_closable(logits, left, *first),
            None if self.closing => {
                let end = self.environment.tok_trie().eos_token();
                self.force(end, logits);
            }
            None => {}
        }
        Ok(())
    }

    /// Forces the most probable token after which the answer can still be closed in time.
    fn force_closable(&mut self, logits: &mut [f32], left: usize, fallback: u32) {
        let mut candidates = logits.to_vec();
        for _ in 0..8 {
            let Some(best) = most_probable(&candidates) else { break };
            if self.is_closable_after(best, left - 1) {
                return self.force(best, logits);
            }
            candidates[best as usize] = f32::NEG_INFINITY;
        }
        self.force(fallback, logits);
    }

    /// True if a token does not lead into a repeated item of a unique array.
    pub(crate) fn permits(&mut self, id: u32) -> bool {
        self.closers.unique.is_none()
            || self.holds_after(id, |matcher, closers| closers.can_be_distinct(matcher))
    }

    fn is_closable_after(&mut self, id: u32, left: usize) -> bool {
        self.holds_after(id, |matcher, closers| close(matcher, closers, left).is_some())
    }

    /// Tests the state after a token, and restores the present one. The end of the reply passes.
    fn holds_after(&mut self, id: u32, test: impl FnOnce(&mut Matcher, &Closers) -> bool) -> bool {
        let trie = self.environment.tok_trie();
        if trie.eos_tokens().contains(&id) {
            return true;
        }
        let mut closers = self.closers.clone();
        let distinct = closers.follow(trie.token(id));
        let Ok(consumed) = self.matcher.try_consume_tokens(&[id]) else { return false };
        let holds = consumed == 1 && distinct && test(&mut self.matcher, &closers);
        self.matcher.rollback(consumed).is_ok() && holds
    }

    /// Leaves only `id` possible. If another token was more probable, the answer is cut here.
    fn force(&mut self, id: u32, logits: &mut [f32]) {
        if most_probable(logits) != Some(id) {
            self.cut_at.get_or_insert(self.length);
        }
        for (other, logit) in logits.iter_mut().enumerate() {
            if other != id as usize {
                *logit = f32::NEG_INFINITY;
            }
        }
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit = logit.max(0.0);
        }
    }

    /// Advances by a chosen token.
    pub(crate) fn accept(&mut self, id: u32) -> Result<(), ChatError> {
        let bytes = self.environment.tok_trie().token(id);
        self.closers.follow(bytes);
        self.length += bytes.len();
        self.matcher.consume_token(id).map_err(failed)
    }

    /// True if the answer is complete and nothing may follow it.
    pub(crate) fn is_complete(&self) -> bool {
        self.matcher.is_stopped()
    }
}

fn failed(error: impl std::fmt::Display) -> ChatError {
    ChatError::Grammar { message: error.to_string() }
}

fn most_probable(logits: &[f32]) -> Option<u32> {
    logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(id, _)| id as u32)
}

fn apply_mask(mask: &SimpleVob, logits: &mut [f32]) {
    for (id, logit) in logits.iter_mut().enumerate() {
        if id >= mask.len() || !mask.is_allowed(id as u32) {
            *logit = f32::NEG_INFINITY;
        }
    }
}
