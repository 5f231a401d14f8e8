//! Answers of a given form, by llguidance: before each choice, the tokens that cannot lead to a valid answer are taken
//! away.
//!
//! A grammar alone does not make every reply valid, since a reply also ends at its token limit. So near the limit
//! every choice is tried for whether the answer can still be closed in what is left, and the closing itself is taken
//! when it must.

use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

use crate::language::Language;
use crate::{ChatError, Format};

/// Compiles grammars for one vocabulary.
pub(crate) struct GrammarFactory {
    parsers: ParserFactory,
    environment: TokEnv,
    closers: Closers,
}

impl GrammarFactory {
    pub(crate) fn new(language: &Language) -> Result<Self, String> {
        let size = language.vocabulary();
        let Some(end) = language.end_ids().first() else {
            return Err("the tokenizer names no token that ends a reply".into());
        };
        let word = |id: u32| {
            let bytes = language.tokenizer.bytes_of(id);
            // Control tokens and tags are no text; the mark keeps them apart from text that looks the same.
            let control = language.tokenizer.is_special(id) || language.thinking_ids().any(|tag| tag == id);
            match control {
                true => [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat(),
                false => bytes.to_vec(),
            }
        };
        let words: Vec<Vec<u8>> = (0..size as u32).map(word).collect();
        let info = TokRxInfo::new(size as u32, *end);
        let trie = TokTrie::from(&info, &words).with_eos_tokens(language.end_ids());
        let closers = Closers::new(&words);
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut parsers = ParserFactory::new_simple(&environment).map_err(|error| error.to_string())?;
        parsers.quiet();
        Ok(Self { parsers, environment, closers })
    }

    /// Bytes of the vocabulary's tree: the tokens' bytes, their places and order, and a node for every beginning.
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
            // Free white space would let a weak model write spaces to the end of its budget.
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
        Ok(Some(Grammar { matcher, closers, watch: shortest + 64, environment: self.environment.clone() }))
    }
}

/// No closing is looked for beyond so many tokens.
const LONGEST_CLOSE: usize = 512;

/// The state of one answer.
pub(crate) struct Grammar {
    matcher: Matcher,
    closers: Closers,
    /// With fewer tokens than this left, every choice is checked for a way to close in time.
    watch: usize,
    environment: TokEnv,
}

impl Grammar {
    /// Takes away what may not come next, with `left` tokens to go.
    pub(crate) fn mask(&mut self, logits: &mut [f32], left: usize) -> Result<(), ChatError> {
        let mask = self.matcher.compute_mask_or_eos().map_err(refused)?;
        keep(&mask, logits);
        if left > self.watch {
            return Ok(());
        }
        let Some(closing) = close(&mut self.matcher, &mut self.closers, LONGEST_CLOSE) else { return Ok(()) };
        match closing.first() {
            // Nothing would be left after a detour of one token.
            Some(first) if closing.len() >= left => only(*first, logits),
            Some(first) => self.keep_closable(logits, left, *first),
            None => {}
        }
        Ok(())
    }

    /// Takes away likely tokens after which the answer could not be closed in time, until the most likely one is fine.
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
                return only(best, logits);
            }
            logits[best as usize] = f32::NEG_INFINITY;
        }
        only(fallback, logits);
    }

    /// Counts the token as written.
    pub(crate) fn accept(&mut self, id: u32) -> Result<(), ChatError> {
        self.closers.follow(self.environment.tok_trie().token(id));
        self.matcher.consume_token(id).map_err(refused)
    }

    /// Whether nothing more may come.
    pub(crate) fn is_complete(&self) -> bool {
        self.matcher.is_stopped()
    }
}

fn refused(error: impl std::fmt::Display) -> ChatError {
    ChatError::Grammar { message: error.to_string() }
}

fn keep(mask: &SimpleVob, logits: &mut [f32]) {
    for (id, logit) in logits.iter_mut().enumerate() {
        if id >= mask.len() || !mask.is_allowed(id as u32) {
            *logit = f32::NEG_INFINITY;
        }
    }
}

fn only(id: u32, logits: &mut [f32]) {
    for (other, logit) in logits.iter_mut().enumerate() {
        if other != id as usize {
            *logit = f32::NEG_INFINITY;
        }
    }
    if let Some(logit) = logits.get_mut(id as usize) {
        *logit = logit.max(0.0);
    }
}

/// Tokens with which JSON is closed quickest, and whether a string is open now.
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

    /// The allowed token that brings the end nearest: closing marks first, then the shortest values, then anything.
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

/// Tokens that complete the answer from here, at most `longest`; `None` if there is no such way by these means. The
/// matcher is left as it was.
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
