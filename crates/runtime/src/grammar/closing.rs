//! The shortest way to complete a JSON answer.

use std::sync::Arc;

use llguidance::Matcher;
use llguidance::toktrie::SimpleVob;

use super::unique_items::UniqueItems;

/// Chooses the tokens that close JSON soonest, and tracks the state of the text.
#[derive(Clone)]
pub(super) struct Closers {
    /// Single-byte tokens by byte.
    by_byte: Arc<[Option<u32>; 256]>,
    in_string: bool,
    escaped: bool,
    /// The items of arrays, if the schema has `uniqueItems`.
    pub(super) unique: Option<UniqueItems>,
}

impl Closers {
    pub(super) fn new(words: &[Vec<u8>]) -> Self {
        let mut by_byte = [None; 256];
        for (id, word) in words.iter().enumerate() {
            if let [byte] = word[..] {
                by_byte[usize::from(byte)].get_or_insert(id as u32);
            }
        }
        Self { by_byte: Arc::new(by_byte), in_string: false, escaped: false, unique: None }
    }

    /// Advances by the bytes of a token. Returns false if they repeat an item of a unique array.
    pub(super) fn follow(&mut self, bytes: &[u8]) -> bool {
        let mut distinct = true;
        for byte in bytes {
            match (byte, self.in_string, self.escaped) {
                (_, true, true) => self.escaped = false,
                (b'\\', true, false) => self.escaped = true,
                (b'"', open, _) => self.in_string = !open,
                _ => {}
            }
            distinct &= self.unique.as_mut().is_none_or(|unique| unique.push(*byte));
        }
        distinct
    }

    /// The allowed single-byte tokens, those that close soonest first: closing brackets, then the shortest values, then
    /// all others.
    fn candidates<'a>(&'a self, mask: &'a SimpleVob) -> impl Iterator<Item = u32> + 'a {
        let order: &[u8] = match (self.in_string, self.escaped) {
            (true, true) => b"n\"/\\bfrtu",
            (true, false) => b"\"a0@.:-/TZ",
            // A comma before digits: a number must not grow.
            _ => b"}],\"01tfn[{: ",
        };
        let wanted = order.iter().filter_map(|byte| self.by_byte[usize::from(*byte)]);
        wanted.chain(self.by_byte.iter().flatten().copied()).filter(|id| mask.is_allowed(*id))
    }

    /// In a string that cannot end yet, because of its pattern or format: the token that brings its end nearer. That is
    /// one after which the string may end, otherwise one that leads to a state not seen before: a repetition within the
    /// pattern leads to the same state again. `None` elsewhere. The matcher is restored.
    fn progress(&self, matcher: &mut Matcher, mask: &SimpleVob, seen: &mut Vec<[u64; 4]>) -> Option<u32> {
        let quote = self.by_byte[usize::from(b'"')]?;
        if !self.in_string || self.escaped || mask.is_allowed(quote) {
            return None;
        }
        seen.push(self.signature(mask));
        let mut tried: Vec<u32> = Vec::new();
        for id in self.candidates(mask).take(16) {
            if !tried.contains(&id) {
                tried.push(id);
            }
        }
        if tried.len() == 1 {
            return tried.pop();
        }
        let mut unseen = None;
        for id in tried {
            if matcher.consume_token(id).is_err() {
                return unseen;
            }
            let next = matcher.compute_mask();
            if matcher.rollback(1).is_err() {
                return None;
            }
            match next {
                Ok(next) if next.is_allowed(quote) => return Some(id),
                Ok(next) if unseen.is_none() && !seen.contains(&self.signature(&next)) => unseen = Some(id),
                _ => {}
            }
        }
        unseen
    }

    /// The bytes that may follow, as a set: it tells most states of a pattern apart.
    fn signature(&self, mask: &SimpleVob) -> [u64; 4] {
        let mut set = [0; 4];
        for (byte, id) in self.by_byte.iter().enumerate() {
            if id.is_some_and(|id| mask.is_allowed(id)) {
                set[byte / 64] |= 1 << (byte % 64);
            }
        }
        set
    }

    /// True if the current items of unique arrays can still become distinct ones. The matcher is restored.
    pub(super) fn can_be_distinct(&self, matcher: &mut Matcher) -> bool {
        match &self.unique {
            Some(unique) if unique.is_inside() => {
                let goal = unique.completed() + 1;
                self.search(matcher, goal, &mut 1500)
            }
            _ => true,
        }
    }

    /// Searches for a text that completes the item, depth first, with at most `budget` tokens tried.
    fn search(&self, matcher: &mut Matcher, goal: usize, budget: &mut usize) -> bool {
        if matcher.is_stopped() {
            return true;
        }
        let Ok(mask) = matcher.compute_mask() else { return false };
        for id in self.candidates(&mask) {
            if *budget == 0 {
                return false;
            }
            *budget -= 1;
            let Some(next) = self.consume(matcher, id) else { continue };
            let found = next.unique.as_ref().is_none_or(|unique| unique.completed() >= goal)
                || next.search(matcher, goal, budget);
            if matcher.rollback(1).is_err() {
                return false;
            }
            if found {
                return true;
            }
        }
        false
    }

    /// Consumes a token; `None`, with the matcher restored, if it is refused or repeats an item.
    fn consume(&self, matcher: &mut Matcher, id: u32) -> Option<Self> {
        let environment = matcher.tok_env().ok()?;
        if matcher.try_consume_tokens(&[id]).ok()? != 1 {
            return None;
        }
        let mut next = self.clone();
        if next.follow(environment.tok_trie().token(id)) {
            return Some(next);
        }
        let _ = matcher.rollback(1);
        None
    }
}

/// Maximum length in bytes of the text with which an answer is closed.
const LONGEST: usize = 4096;

/// The tokens that complete the answer, at most `longest` of them; `None` if this greedy search finds none. The matcher
/// is restored.
pub(super) fn close(matcher: &mut Matcher, closers: &Closers, longest: usize) -> Option<Vec<u32>> {
    let (mut closers, environment) = (closers.clone(), matcher.tok_env().ok()?);
    let trie = environment.tok_trie();
    let (mut written, mut bytes, mut seen) = (0, Vec::new(), Vec::new());
    let complete = loop {
        if matcher.is_stopped() || matcher.is_accepting().unwrap_or(false) {
            break true;
        }
        // Each token has at least one byte, so a longer text may still be few tokens.
        if bytes.len() >= LONGEST.min(longest.saturating_mul(16)) {
            break false;
        }
        let Ok(mask) = matcher.compute_mask() else { break false };
        let current = closers.clone();
        let first = current.progress(matcher, &mask, &mut seen);
        let step = first.into_iter().chain(current.candidates(&mask)).find_map(|id| {
            let next = current.consume(matcher, id)?;
            if next.can_be_distinct(matcher) {
                return Some((id, next));
            }
            let _ = matcher.rollback(1);
            None
        });
        let Some((id, next)) = step else { break false };
        closers = next;
        bytes.extend_from_slice(trie.token(id));
        written += 1;
    };
    let restored = matcher.rollback(written).is_ok();
    if !complete || !restored {
        return None;
    }
    // The grammar accepts any division of the text into tokens; the longest tokens make the fewest.
    let tokens = trie.greedy_tokenize(&bytes);
    (tokens.len() <= longest).then_some(tokens)
}
