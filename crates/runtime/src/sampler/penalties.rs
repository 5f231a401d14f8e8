//! Penalties on tokens that the reply already has.

use std::collections::HashMap;

use crate::Sampling;

/// Counts of the latest tokens of a reply.
#[derive(Clone, Debug, Default)]
pub(crate) struct Occurrences {
    tokens: Vec<u32>,
    counts: HashMap<u32, u32>,
    window: Option<usize>,
}

impl Occurrences {
    pub(crate) fn new(window: Option<usize>) -> Self {
        Self { window, ..Self::default() }
    }

    pub(crate) fn push(&mut self, id: u32) {
        self.tokens.push(id);
        *self.counts.entry(id).or_default() += 1;
        let Some(window) = self.window else { return };
        if self.tokens.len() > window {
            let oldest = self.tokens.remove(0);
            if let Some(count) = self.counts.get_mut(&oldest) {
                *count -= 1;
                if *count == 0 {
                    self.counts.remove(&oldest);
                }
            }
        }
    }

    /// Applies the repetition, presence and frequency penalties to `logits` [vocab].
    pub(crate) fn penalise(&self, logits: &mut [f32], sampling: &Sampling) {
        for (id, count) in &self.counts {
            let Some(logit) = logits.get_mut(*id as usize) else { continue };
            *logit = match *logit > 0.0 {
                true => *logit / sampling.repetition_penalty,
                false => *logit * sampling.repetition_penalty,
            };
            *logit -= sampling.presence_penalty + sampling.frequency_penalty * *count as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition, token by token over the window.
    fn slow(logits: &[f32], tokens: &[u32], s: &Sampling) -> Vec<f32> {
        let window = s.penalty_window.unwrap_or(tokens.len()).min(tokens.len());
        let recent = &tokens[tokens.len() - window..];
        let penalised = |(id, logit): (usize, &f32)| {
            let count = recent.iter().filter(|t| **t as usize == id).count();
            if count == 0 {
                return *logit;
            }
            let scaled =
                if *logit > 0.0 { logit / s.repetition_penalty } else { logit * s.repetition_penalty };
            scaled - (s.presence_penalty + s.frequency_penalty * count as f32)
        };
        logits.iter().enumerate().map(penalised).collect()
    }

    proptest! {
        #[test]
        fn counts_equal_recounting(
            logits in prop::collection::vec(-5.0f32..5.0, 12),
            tokens in prop::collection::vec(0u32..14, 0..40),
            window in prop::option::of(0usize..20),
            r in 0.5f32..2.0, p in -1.0f32..1.0, f in -1.0f32..1.0,
        ) {
            let sampling = Sampling {
                repetition_penalty: r, presence_penalty: p, frequency_penalty: f, penalty_window: window,
                ..Sampling::default()
            };
            let mut occurrences = Occurrences::new(window);
            tokens.iter().for_each(|id| occurrences.push(*id));
            let mut fast = logits.clone();
            occurrences.penalise(&mut fast, &sampling);
            prop_assert_eq!(fast, slow(&logits, &tokens, &sampling));
        }
    }
}
