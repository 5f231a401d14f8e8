//! The position at which the candidate is furthest from the original, with its tokens.

use q35_metrics::{RowError, log_sum_exp, top_indices};
use serde::{Deserialize, Serialize};

use crate::Prompt;

/// Tokens of context that are reported before the position.
const CONTEXT: usize = 32;
/// Number of the most likely tokens that are reported of each model.
const TOP: usize = 4;

/// The position with the largest KL and the predictions of both models there.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct WorstPosition {
    /// The prompt.
    pub prompt: String,
    /// Index of the token after which both models predict.
    pub position: usize,
    /// KL(original || candidate) in nats.
    pub kl: f64,
    /// The last tokens up to and including `position`.
    pub context: Vec<u32>,
    /// `context` as text.
    pub context_text: Option<String>,
    /// The token that follows in the prompt.
    pub next: Option<u32>,
    /// `next` as text.
    pub next_text: Option<String>,
    /// The float model's most likely next tokens.
    pub reference: Vec<TokenProbability>,
    /// The candidate's most likely next tokens.
    pub candidate: Vec<TokenProbability>,
}

/// A predicted token.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct TokenProbability {
    /// The token.
    pub token: u32,
    /// The token as text.
    pub text: Option<String>,
    /// Its probability.
    pub probability: f64,
}

impl WorstPosition {
    /// Describes one position by the logits [vocab] of both models.
    pub(crate) fn new(
        prompt: &Prompt,
        position: usize,
        kl: f64,
        reference: &[f32],
        candidate: &[f32],
    ) -> Self {
        let end = (position + 1).min(prompt.ids.len());
        Self {
            prompt: prompt.name.clone(),
            position,
            kl,
            context: prompt.ids[end.saturating_sub(CONTEXT)..end].to_vec(),
            context_text: None,
            next: prompt.ids.get(position + 1).copied(),
            next_text: None,
            reference: most_likely(reference).unwrap_or_default(),
            candidate: most_likely(candidate).unwrap_or_default(),
        }
    }

    /// Adds the texts of all tokens.
    pub(crate) fn decode(&mut self, decode: &dyn Fn(&[u32]) -> String) {
        self.context_text = Some(decode(&self.context));
        self.next_text = self.next.map(|token| decode(&[token]));
        for predicted in self.reference.iter_mut().chain(&mut self.candidate) {
            predicted.text = Some(decode(&[predicted.token]));
        }
    }
}

/// The most likely tokens of a row of logits.
fn most_likely(logits: &[f32]) -> Result<Vec<TokenProbability>, RowError> {
    let log_sum = log_sum_exp(logits)?;
    let predicted = |index: usize| TokenProbability {
        token: index as u32,
        text: None,
        probability: (f64::from(logits[index]) - log_sum).exp(),
    };
    Ok(top_indices(logits, TOP).into_iter().map(predicted).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_likely_tokens_have_their_probabilities() {
        let prompt = Prompt::new("p", "k", vec![5, 6, 7]);
        let mut worst =
            WorstPosition::new(&prompt, 1, 2.0, &[0.0, 0.0, 2f32.ln(), 0.0], &[f32::NAN, 0.0, 0.0, 0.0]);
        assert_eq!((worst.context.as_slice(), worst.next), (&[5, 6][..], Some(7)));
        assert_eq!(worst.reference[0].token, 2);
        assert!((worst.reference[0].probability - 0.4).abs() < 1e-6);
        assert!(worst.candidate.is_empty(), "NaN is no distribution");
        worst.decode(&|ids| format!("{ids:?}"));
        assert_eq!(worst.context_text.as_deref(), Some("[5, 6]"));
    }
}
