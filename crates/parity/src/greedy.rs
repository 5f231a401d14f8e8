//! Greedy continuations of the candidate, and the choices of other models at the same positions.

use q35_inference::{CancelToken, LogitsFor, Model};
use q35_metrics::argmax;

use crate::runner::{LogitRecorder, Participant, RunningSequence};
use crate::{ParityError, Prompt};

/// Tokens of a prompt that are continued: enough context for a meaningful continuation, which two more models must
/// compute.
const CONTEXT: usize = 128;

/// The candidate's greedy continuation of a prompt.
///
/// The other models score it in one pass with teacher forcing: up to the first position at which a model would choose
/// another token, the continuation is also what that model would generate by itself, without decoding.
pub(crate) struct Continuation {
    /// Context and all generated tokens but the last; scored at the positions that a generated token follows.
    pub(crate) prompt: Prompt,
    /// The generated tokens.
    pub(crate) tokens: Vec<u32>,
}

impl Continuation {
    /// Generates `count` tokens after the first [`CONTEXT`] tokens of `prompt`. `advance` is called for each.
    pub(crate) fn generate(
        model: &dyn Model,
        prompt: &Prompt,
        count: usize,
        cancel: &CancelToken,
        advance: &mut dyn FnMut(),
    ) -> Result<Self, ParityError> {
        let context = &prompt.ids[..prompt.ids.len().min(CONTEXT)];
        let tokens = greedy_tokens(model, &prompt.name, context, count, &[], cancel, advance)?;
        let all_but_last = &tokens[..tokens.len().saturating_sub(1)];
        let continued = Prompt {
            ids: [context, all_but_last].concat(),
            scored_from: context.len().saturating_sub(1),
            ..prompt.clone()
        };
        Ok(Self { prompt: continued, tokens })
    }

    /// The tokens of the prompt that are continued.
    pub(crate) fn context(&self) -> &[u32] {
        &self.prompt.ids[..self.prompt.scored_from + 1]
    }

    /// Number of leading tokens that a model with these `logits` [tokens, vocab] would choose too. An exact tie counts
    /// as the same choice, and so does a token at most `undecided_margin` logits below the model's best.
    pub(crate) fn agreeing_tokens(&self, logits: &[f32], vocab: usize, undecided_margin: f64) -> usize {
        let agrees = |(row, token): &(&[f32], &u32)| {
            let Some(best) = argmax(row) else { return false };
            let chosen = row.get(**token as usize).copied().unwrap_or(f32::NEG_INFINITY);
            f64::from(row[best]) - f64::from(chosen) <= undecided_margin
        };
        logits.chunks_exact(vocab).zip(&self.tokens).take_while(agrees).count()
    }
}

/// Generates at most `count` greedy tokens after `context`, ending before any of `eos_ids`. `advance` is called for each.
pub(crate) fn greedy_tokens(
    model: &dyn Model,
    name: &str,
    context: &[u32],
    count: usize,
    eos_ids: &[u32],
    cancel: &CancelToken,
    advance: &mut dyn FnMut(),
) -> Result<Vec<u32>, ParityError> {
    let (capacity, recorder) = (context.len() + count, LogitRecorder::new(cancel));
    let mut running = RunningSequence::start(Participant::Candidate, model, name, capacity, recorder)?;
    running.feed(context, LogitsFor::LastToken)?;
    let mut tokens = Vec::with_capacity(count);
    while tokens.len() < count {
        let Some(token) = argmax(&running.recorder.logits).map(|token| token as u32) else { break };
        if eos_ids.contains(&token) {
            break;
        }
        tokens.push(token);
        advance();
        if tokens.len() < count {
            running.feed(&[token], LogitsFor::LastToken)?;
        }
    }
    Ok(tokens)
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
        for (logits, undecided_margin, same) in cases {
            assert_eq!(continuation.agreeing_tokens(logits, 2, undecided_margin), same, "{logits:?}");
        }
    }
}
