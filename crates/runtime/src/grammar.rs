//! Constrained decoding by llguidance: before each choice, the tokens that cannot lead to a valid answer are masked.
//!
//! A grammar alone does not make every reply valid, because a reply also ends at its token limit. Near the limit every
//! choice is therefore checked: the answer must be closable in the tokens that are left, and at the end the closing
//! tokens themselves are forced.

use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use q35_text::Tokenizer;
use serde_json::{Value, json};

use crate::{ChatError, Format};

/// Compiles grammars for one vocabulary.
pub(crate) struct GrammarFactory {
    parsers: ParserFactory,
    environment: TokEnv,
    closers: Closers,
}

impl GrammarFactory {
    /// A factory for the first `vocabulary` ids of `tokenizer`. `end_ids` end a reply; `tag_ids` are the thinking tags,
    /// which are no text of an answer.
    pub(crate) fn new(
        tokenizer: &Tokenizer,
        vocabulary: usize,
        end_ids: &[u32],
        tag_ids: &[u32],
    ) -> Result<Self, String> {
        let Some(end) = end_ids.first() else {
            return Err("the tokenizer has no token that ends a reply".into());
        };
        let word = |id: u32| {
            let bytes = tokenizer.bytes_of(id);
            // Control tokens and tags are no text; the marker distinguishes them from text with the same bytes.
            let control = tokenizer.is_special(id) || tag_ids.contains(&id);
            match control {
                true => [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat(),
                false => bytes.to_vec(),
            }
        };
        let words: Vec<Vec<u8>> = (0..vocabulary as u32).map(word).collect();
        let info = TokRxInfo::new(vocabulary as u32, *end);
        let trie = TokTrie::from(&info, &words).with_eos_tokens(end_ids);
        let closers = Closers::new(&words);
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut parsers = ParserFactory::new_simple(&environment).map_err(|error| error.to_string())?;
        parsers.quiet();
        Ok(Self { parsers, environment, closers })
    }

    /// Bytes of the token trie: the tokens' bytes, their offsets and order, and one node per prefix.
    pub(crate) fn size_bytes(&self) -> u64 {
        let trie = self.environment.tok_trie();
        let texts: usize = (0..trie.vocab_size() as u32).map(|id| trie.token(id).len()).sum();
        (texts + 12 * trie.vocab_size() + 8 * trie.root().subtree_size()) as u64
    }

    /// The grammar of a form; `None` for plain text.
    pub(crate) fn grammar(&self, format: &Format) -> Result<Option<Grammar>, ChatError> {
        let mut schema = match format {
            Format::Text => return Ok(None),
            Format::Json => json!({"type": "object"}),
            Format::Schema(schema) => schema.clone(),
        };
        if let Value::Object(fields) = &mut schema {
            // With flexible white space a weak model can write spaces up to its token limit.
            fields.entry("x-guidance").or_insert_with(
                || json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "}),
            );
        }
        let parser = self.parsers.create_parser(TopLevelGrammar::from_json_schema(schema));
        let mut matcher = Matcher::new(parser);
        if let Some(message) = matcher.get_error() {
            return Err(ChatError::Grammar { message });
        }
        let mut closers = self.closers.clone();
        let shortest = close(&mut matcher, &mut closers, LONGEST_CLOSE).map_or(0, |ids| ids.len());
        Ok(Some(Grammar {
            matcher,
            closers,
            check_below: shortest + 64,
            environment: self.environment.clone(),
        }))
    }
}

/// Maximum number of tokens in which a way to close the answer is searched.
const LONGEST_CLOSE: usize = 512;

/// The constraint on one answer, and its state.
pub(crate) struct Grammar {
    matcher: Matcher,
    closers: Closers,
    /// Number of tokens left below which every choice is checked for a way to close the answer in time.
    check_below: usize,
    environment: TokEnv,
}

impl Grammar {
    /// Masks the logits [vocab] of tokens that must not come next, with `left` tokens until the limit.
    pub(crate) fn mask(&mut self, logits: &mut [f32], left: usize) -> Result<(), ChatError> {
        let mask = self.matcher.compute_mask_or_eos().map_err(refused)?;
        apply_mask(&mask, logits);
        if left > self.check_below {
            return Ok(());
        }
        let Some(closing) = close(&mut self.matcher, &mut self.closers, LONGEST_CLOSE) else { return Ok(()) };
        match closing.first() {
            // Any other token would leave too few for closing.
            Some(first) if closing.len() >= left => force(*first, logits),
            Some(first) => self.keep_closable(logits, left, *first),
            None => {}
        }
        Ok(())
    }

    /// Masks the most probable tokens after which the answer could not be closed in time, until the most probable one
    /// allows it; forces that one.
    fn keep_closable(&mut self, logits: &mut [f32], left: usize, fallback: u32) {
        for _ in 0..8 {
            let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(id, _)| id as u32);
            let Some(best) = best else { return };
            let mut closers = self.closers.clone();
            let fits = self.environment.tok_trie().eos_tokens().contains(&best)
                || self.matcher.try_consume_tokens(&[best]).is_ok_and(|consumed| {
                    closers.follow(self.environment.tok_trie().token(best));
                    let fits = close(&mut self.matcher, &mut closers, left - 1).is_some();
                    consumed == 1 && self.matcher.rollback(1).is_ok() && fits
                });
            if fits {
                return force(best, logits);
            }
            logits[best as usize] = f32::NEG_INFINITY;
        }
        force(fallback, logits);
    }

    /// Advances by a chosen token.
    pub(crate) fn accept(&mut self, id: u32) -> Result<(), ChatError> {
        self.closers.follow(self.environment.tok_trie().token(id));
        self.matcher.consume_token(id).map_err(refused)
    }

    /// True if the answer is complete and nothing may follow it.
    pub(crate) fn is_complete(&self) -> bool {
        self.matcher.is_stopped()
    }
}

fn refused(error: impl std::fmt::Display) -> ChatError {
    ChatError::Grammar { message: error.to_string() }
}

fn apply_mask(mask: &SimpleVob, logits: &mut [f32]) {
    for (id, logit) in logits.iter_mut().enumerate() {
        if id >= mask.len() || !mask.is_allowed(id as u32) {
            *logit = f32::NEG_INFINITY;
        }
    }
}

fn force(id: u32, logits: &mut [f32]) {
    for (other, logit) in logits.iter_mut().enumerate() {
        if other != id as usize {
            *logit = f32::NEG_INFINITY;
        }
    }
    if let Some(logit) = logits.get_mut(id as usize) {
        *logit = logit.max(0.0);
    }
}

/// Chooses the tokens that close JSON soonest, and tracks if a string is open.
#[derive(Clone)]
struct Closers {
    /// Single-byte tokens by byte.
    by_byte: Arc<[Option<u32>; 256]>,
    in_string: bool,
    escaped: bool,
}

impl Closers {
    fn new(words: &[Vec<u8>]) -> Self {
        let mut by_byte = [None; 256];
        for (id, word) in words.iter().enumerate() {
            if let [byte] = word[..] {
                by_byte[usize::from(byte)].get_or_insert(id as u32);
            }
        }
        Self { by_byte: Arc::new(by_byte), in_string: false, escaped: false }
    }

    fn follow(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match (byte, self.in_string, self.escaped) {
                (_, true, true) => self.escaped = false,
                (b'\\', true, false) => self.escaped = true,
                (b'"', open, _) => self.in_string = !open,
                _ => {}
            }
        }
    }

    /// The allowed single-byte token that closes soonest: closing brackets first, then the shortest values, then any.
    fn choose(&self, mask: &SimpleVob) -> Option<u32> {
        let order: &[u8] = match (self.in_string, self.escaped) {
            (true, true) => b"n\"/\\bfrtu",
            (true, false) => b"\"0a",
            _ => b"}]\"01tfn[{:, ",
        };
        let wanted = order.iter().filter_map(|byte| self.by_byte[usize::from(*byte)]);
        let any = || self.by_byte.iter().flatten().copied().find(|id| mask.is_allowed(*id));
        wanted.into_iter().find(|id| mask.is_allowed(*id)).or_else(any)
    }
}

/// The tokens that complete the answer, at most `longest`; `None` if this greedy search finds none. The matcher is
/// restored.
fn close(matcher: &mut Matcher, closers: &mut Closers, longest: usize) -> Option<Vec<u32>> {
    let (before, environment) = (closers.clone(), matcher.tok_env().ok()?);
    let mut written = Vec::new();
    let done = loop {
        if matcher.is_stopped() || matcher.is_accepting().unwrap_or(false) {
            break true;
        }
        if written.len() == longest {
            break false;
        }
        let Some(id) = matcher.compute_mask().ok().and_then(|mask| closers.choose(&mask)) else {
            break false;
        };
        if matcher.consume_token(id).is_err() {
            break false;
        }
        closers.follow(environment.tok_trie().token(id));
        written.push(id);
    };
    let restored = matcher.rollback(written.len()).is_ok();
    *closers = before;
    (done && restored).then_some(written)
}
