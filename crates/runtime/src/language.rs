//! The text processing of a model: tokenizer, chat template, and the special ids of a chat.

use std::path::Path;
use std::sync::OnceLock;

use q35_text::{ChatTemplate, RenderInput, Tokenizer};

use crate::ChatError;
use crate::generate::{CLOSE, OPEN};
use crate::generation_config::GenerationConfig;
use crate::grammar::GrammarFactory;

/// The text processing that all sessions of a model share.
pub(crate) struct Language {
    pub(crate) tokenizer: Tokenizer,
    pub(crate) template: ChatTemplate,
    pub(crate) generation_config: GenerationConfig,
    end_ids: Vec<u32>,
    /// Number of ids that both the tokenizer and the model's logits have.
    vocabulary: usize,
    grammars: OnceLock<Result<GrammarFactory, String>>,
}

/// Tokens that end a turn even if the configuration files do not name them.
const TURN_ENDS: [&str; 2] = ["<|im_end|>", "<|endoftext|>"];

impl Language {
    /// Reads a model's directory.
    pub(crate) fn open(dir: &Path, template: Option<&str>) -> Result<Self, ChatError> {
        let tokenizer = Tokenizer::from_dir(dir)?;
        let template = match template {
            Some(source) => ChatTemplate::new(source)?.with_special_tokens(tokenizer.special_tokens()),
            None => ChatTemplate::from_dir(dir, tokenizer.special_tokens())?,
        };
        let vocabulary = tokenizer.vocab_size();
        let generation_config = GenerationConfig::from_dir(dir, vocabulary)?;
        let named = TURN_ENDS.iter().filter_map(|name| tokenizer.id_of(name));
        let eos = tokenizer.special_tokens().get("eos_token").and_then(|token| tokenizer.id_of(token));
        let configured = generation_config.end_ids.iter().copied();
        let mut end_ids: Vec<u32> = named.chain(eos).chain(configured).collect();
        end_ids.retain(|id| (*id as usize) < vocabulary);
        end_ids.sort_unstable();
        end_ids.dedup();
        let grammars = OnceLock::new();
        Ok(Self { tokenizer, template, generation_config, end_ids, vocabulary, grammars })
    }

    /// Restricts the vocabulary to a model with `vocab_size` logits.
    pub(crate) fn with_vocab_size(mut self, vocab_size: usize) -> Self {
        self.vocabulary = self.vocabulary.min(vocab_size);
        self.end_ids.retain(|id| (*id as usize) < self.vocabulary);
        self
    }

    /// Ids that end a reply.
    pub(crate) fn end_ids(&self) -> &[u32] {
        &self.end_ids
    }

    pub(crate) fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// Ids within the vocabulary without a token.
    pub(crate) fn unused_ids(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.vocabulary as u32).filter(|id| self.tokenizer.bytes_of(*id).is_empty())
    }

    /// The ids of the thinking tags that are single tokens.
    pub(crate) fn thinking_ids(&self) -> impl Iterator<Item = u32> + '_ {
        [OPEN, CLOSE].into_iter().filter_map(|tag| self.tokenizer.id_of(tag))
    }

    /// Renders and encodes a conversation: its text and ids.
    pub(crate) fn encode(&self, input: &RenderInput<'_>) -> Result<(String, Vec<u32>), ChatError> {
        let text = self.template.render(input)?;
        let ids = self.tokenizer.encode(&text)?;
        Ok((text, ids))
    }

    /// Bytes of the tokenizer, and of the grammar factory's tables once they exist.
    pub(crate) fn size_bytes(&self) -> u64 {
        let grammars = self.grammars.get().and_then(|factory| factory.as_ref().ok());
        self.tokenizer.size_bytes() + grammars.map_or(0, GrammarFactory::size_bytes)
    }

    /// The grammar factory of this vocabulary, created at the first call.
    pub(crate) fn grammars(&self) -> Result<&GrammarFactory, ChatError> {
        let tags: Vec<u32> = self.thinking_ids().collect();
        let new = || GrammarFactory::new(&self.tokenizer, self.vocabulary, &self.end_ids, &tags);
        let factory = self.grammars.get_or_init(new);
        factory.as_ref().map_err(|message| ChatError::Grammar { message: message.clone() })
    }
}
