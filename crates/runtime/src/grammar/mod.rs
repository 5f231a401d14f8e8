//! Constrained decoding by llguidance: before each choice, the tokens that cannot lead to a valid answer are masked.
//!
//! A grammar alone does not make every reply valid, because a reply also ends at its token limit. Near the limit every
//! choice is therefore checked: the answer must be closable in the tokens that are left, and at the end the closing
//! tokens themselves are forced. [`Grammar::cut_at`] tells the two kinds of text apart.

mod closed_fields;
mod closing;
mod constraint;
mod unique_items;

use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use q35_text::Tokenizer;
use serde_json::{Value, json};

use crate::json_schema::{Refusal, children, has_unique_items, lower};
use crate::tool_call_grammar::tool_call_grammar;
use crate::tools::Tool;
use crate::{ChatError, Format};
pub(crate) use closed_fields::closed_fields;
use closing::Closers;
pub(crate) use constraint::Grammar;
use unique_items::UniqueItems;

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
    pub(crate) fn grammar(&self, format: &Format, tools: &[Tool]) -> Result<Option<Grammar>, ChatError> {
        let schema = match format {
            Format::Text => return Ok(None),
            Format::ToolCalls { parallel } => {
                let grammar = TopLevelGrammar::from_lark(tool_call_grammar(tools, *parallel));
                let matcher = self.matcher(grammar).map_err(|message| ChatError::Grammar { message })?;
                return Ok(Some(Grammar::new(matcher, self.closers.clone(), self.environment.clone())));
            }
            Format::Json => json!({"type": "object"}),
            Format::Schema(schema) => lower(schema).map_err(refused)?,
        };
        let matcher = self.compile(&schema).map_err(|message| match format {
            Format::Schema(_) => refused(self.locate(&schema, message)),
            _ => ChatError::Grammar { message },
        })?;
        let mut closers = self.closers.clone();
        if let Format::Schema(schema) = format {
            closers.unique = has_unique_items(schema).then(|| UniqueItems::new(schema));
        }
        Ok(Some(Grammar::new(matcher, closers, self.environment.clone())))
    }

    fn compile(&self, schema: &Value) -> Result<Matcher, String> {
        let mut schema = schema.clone();
        if let Value::Object(fields) = &mut schema {
            // With flexible white space a weak model can write spaces up to its token limit.
            let options =
                json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "});
            fields.insert("x-guidance".into(), options);
        }
        self.matcher(TopLevelGrammar::from_json_schema(schema))
    }

    fn matcher(&self, grammar: TopLevelGrammar) -> Result<Matcher, String> {
        let matcher = Matcher::new(self.parsers.create_parser(grammar));
        match matcher.get_error() {
            Some(message) => Err(message),
            None => Ok(matcher),
        }
    }

    /// Finds the keyword that makes `schema` fail with `message`: the deepest subschema that fails on its own, and in it
    /// the keyword without which it compiles.
    fn locate(&self, schema: &Value, message: String) -> Refusal {
        let mut refusal = Refusal { keyword: None, at: String::new(), reason: message };
        let mut subschema = schema.clone();
        loop {
            let failing = children(&subschema).into_iter().find_map(|(pointer, child)| {
                let child = with_definitions(schema, child);
                self.compile(&child).err().map(|reason| (pointer, child, reason))
            });
            let Some((pointer, child, reason)) = failing else { break };
            refusal.at += &pointer;
            refusal.reason = reason;
            subschema = child;
        }
        let keywords = subschema.as_object().into_iter().flatten().map(|(keyword, _)| keyword.clone());
        for keyword in keywords.collect::<Vec<_>>() {
            let mut without = subschema.clone();
            if let Some(fields) = without.as_object_mut() {
                fields.shift_remove(&keyword);
            }
            if !["$defs", "definitions"].contains(&keyword.as_str()) && self.compile(&without).is_ok() {
                refusal.keyword = Some(keyword);
                break;
            }
        }
        refusal
    }
}

/// A subschema as a document, with the definitions of `root`.
fn with_definitions(root: &Value, subschema: &Value) -> Value {
    let mut document = subschema.clone();
    if let Value::Object(fields) = &mut document {
        for keyword in ["$defs", "definitions"] {
            if let Some(definitions) = root.get(keyword) {
                fields.insert(keyword.into(), definitions.clone());
            }
        }
    }
    document
}

fn refused(refusal: Refusal) -> ChatError {
    ChatError::Grammar { message: refusal.to_string() }
}
