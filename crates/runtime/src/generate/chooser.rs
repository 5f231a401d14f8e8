//! The choice of the next token: sampler, grammar and seed of one reply.

use std::cell::RefCell;

use q35_inference::RunError;

use crate::grammar::Grammar;
use crate::language::Language;
use crate::sampler::{Choice, Sampler};
use crate::{ChatError, Sampling};

/// Chooses the tokens of one reply.
pub(super) struct TokenChooser {
    sampler: Sampler,
    grammar: Option<Grammar>,
    seed: u64,
}

impl TokenChooser {
    pub(super) fn new(sampling: &Sampling, grammar: Option<Grammar>, language: &Language) -> Self {
        let seed = sampling.seed.unwrap_or_else(random_seed);
        let mut sampler = Sampler::new(sampling, seed, language.vocabulary());
        language.unused_ids().for_each(|id| sampler.forbid(id));
        Self { sampler, grammar, seed }
    }

    /// The seed that repeats the reply.
    pub(super) fn seed(&self) -> u64 {
        self.seed
    }

    /// Excludes `id` from all later choices.
    pub(super) fn forbid(&mut self, id: u32) {
        self.sampler.forbid(id);
    }

    /// The grammar that constrains the answer.
    pub(super) fn grammar(&self) -> Option<&Grammar> {
        self.grammar.as_ref()
    }

    /// Closes a constrained answer with the next tokens. Returns false if there is no grammar or no way to close it.
    pub(super) fn begin_closing(&mut self) -> bool {
        self.grammar.as_mut().is_some_and(Grammar::begin_closing)
    }

    /// True if the grammar allows nothing more.
    pub(super) fn is_complete(&self) -> bool {
        self.grammar.as_ref().is_some_and(Grammar::is_complete)
    }

    /// Chooses from `logits` [vocab]. `excluded` are tokens that must not come now. The grammar applies if `answering`,
    /// and must be able to close the answer in `tokens_left` tokens.
    pub(super) fn choose(
        &mut self,
        logits: &[f32],
        excluded: &[u32],
        answering: bool,
        tokens_left: usize,
    ) -> Result<Choice, ChatError> {
        let mut failure = None;
        let grammar = self.grammar.as_mut().filter(|_| answering).map(RefCell::new);
        let mask = |logits: &mut [f32]| {
            if let Some(grammar) = &grammar {
                failure = grammar.borrow_mut().mask(logits, tokens_left).err();
            }
        };
        let permits = |id| grammar.as_ref().is_none_or(|grammar| grammar.borrow_mut().permits(id));
        let choice = self.sampler.choose_permitted(logits, excluded, mask, permits);
        match (failure, choice) {
            (Some(error), _) => Err(error),
            (None, Some(choice)) => Ok(choice),
            (None, None) => {
                let message = "no token is possible: every logit is minus infinity or NaN".to_owned();
                Err(RunError::Backend { backend: "the model", message }.into())
            }
        }
    }

    /// Advances the grammar by a chosen token of the answer.
    pub(super) fn accept(&mut self, id: u32) -> Result<(), ChatError> {
        self.grammar.as_mut().map_or(Ok(()), |grammar| grammar.accept(id))
    }
}

/// A seed that differs from call to call, of 53 bits: as a JSON number it survives languages whose numbers are `f64`.
fn random_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish() >> 11
}
