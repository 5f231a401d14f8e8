//! Greedy continuation, and whether another model would have said the same.

use q35_inference::{CancelToken, LogitsFor, Model};
use q35_metrics::argmax;

use crate::rows::{Catch, Running, Who};
use crate::{ParityError, Prompt};

/// Tokens of a prompt that are continued: enough to say something after, and others must compute them too.
const CONTEXT: usize = 128;

/// What the candidate says after the beginning of a prompt, as a prompt: others are asked at every position of it what they would say
/// there. As long as all agree with it, that is what they say by themselves, and it costs them one pass and no decoding.
pub(crate) struct Continuation {
    /// The prompt and all tokens but the last; scored where one of them follows.
    pub(crate) prompt: Prompt,
    /// The tokens.
    pub(crate) tokens: Vec<u32>,
}

impl Continuation {
    /// The likeliest `count` tokens after the prompt's beginning, each given all before it; `advance` is called for each.
    pub(crate) fn of(
        model: &dyn Model,
        prompt: &Prompt,
        count: usize,
        cancel: &CancelToken,
        advance: &mut dyn FnMut(),
    ) -> Result<Self, ParityError> {
        let context = &prompt.ids[..prompt.ids.len().min(CONTEXT)];
        let room = context.len() + count;
        let mut running = Running::start(Who::Candidate, model, &prompt.name, room, Catch::new(cancel))?;
        running.feed(context, LogitsFor::LastToken)?;
        let mut tokens = Vec::with_capacity(count);
        while tokens.len() < count {
            let Some(token) = argmax(&running.catch.rows) else { break };
            tokens.push(token as u32);
            advance();
            if tokens.len() < count {
                running.feed(&[token as u32], LogitsFor::LastToken)?;
            }
        }
        let before = &tokens[..tokens.len().saturating_sub(1)];
        let continued = Prompt {
            ids: [context, before].concat(),
            scored_from: context.len().saturating_sub(1),
            ..prompt.clone()
        };
        Ok(Self { prompt: continued, tokens })
    }

    /// How many of the tokens, from the first on, a model would have chosen too that gives `rows` [tokens, vocab]. An
    /// exact tie counts as the same choice, and so does a token that it finds at most `undecided` logits less likely.
    pub(crate) fn same_choices(&self, rows: &[f32], vocab: usize, undecided: f64) -> usize {
        let chosen = |(row, token): &(&[f32], &u32)| {
            let Some(best) = argmax(row) else { return false };
            let chosen = row.get(**token as usize).copied().unwrap_or(f32::NEG_INFINITY);
            f64::from(row[best]) - f64::from(chosen) <= undecided
        };
        rows.chunks_exact(vocab).zip(&self.tokens).take_while(chosen).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_the_same_up_to_the_first_that_differs() {
        let prompt = Prompt::new("p", "k", vec![0, 1, 0, 1]);
        let continuation = Continuation { prompt, tokens: vec![1, 0, 1] };
        let cases: [(&[f32], f64, usize); 5] = [
            (&[0.0, 1.0, 1.0, 0.0, 0.0, 1.0], 0.0, 3),
            (&[0.0, 1.0, 0.0, 1.0, 0.0, 1.0], 0.0, 1),
            (&[0.0, 1.0, 0.9, 1.0, 0.0, 1.0], 0.2, 3),
            (&[0.5, 0.5, 1.0, 0.0, 0.0, 1.0], 0.0, 3),
            (&[f32::NAN, f32::NAN, 1.0, 0.0, 0.0, 1.0], 0.0, 0),
        ];
        for (rows, undecided, same) in cases {
            assert_eq!(continuation.same_choices(rows, 2, undecided), same, "{rows:?}");
        }
    }
}
