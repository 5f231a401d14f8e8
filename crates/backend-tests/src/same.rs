//! Comparison of replies.

use q35_runtime::{Reply, Sampling, TokenDetail};

use crate::{Backend, Reuse};

/// Greedy settings for short replies, with the log-probabilities that a comparison needs: the whole distribution of
/// each token if the backend need not agree bit for bit.
pub(crate) fn short(backend: &Backend) -> Sampling {
    let alternatives = match backend.reuse {
        Reuse::BitForBit => 2,
        Reuse::MeanKl(_) => 1 << 20,
    };
    Sampling::greedy().with_max_tokens(16).with_thinking(false).with_logprobs(alternatives)
}

/// Accumulated divergence of replies from the expected ones.
#[derive(Default)]
pub(crate) struct Divergence {
    total: f64,
    tokens: usize,
}

impl Divergence {
    /// Compares `reply` with `expected` up to the first different token, and bit for bit if the backend requires it.
    pub(crate) fn compare(&mut self, backend: &Backend, reply: &Reply, expected: &Reply, when: &str) {
        if backend.reuse == Reuse::BitForBit {
            assert_eq!(reply.tokens, expected.tokens, "{}, {when}: {:?}", backend.name, reply.text);
            assert_eq!((&reply.text, &reply.reasoning), (&expected.text, &expected.reasoning));
            return;
        }
        for (token, expected) in reply.tokens.iter().zip(&expected.tokens) {
            self.total += kl(expected, token);
            self.tokens += 1;
            // After a different token, which may have been equally probable, the histories differ.
            if token.id != expected.id {
                break;
            }
        }
    }

    /// Fails if the mean is above the backend's limit.
    pub(crate) fn check(&self, backend: &Backend) {
        if let Reuse::MeanKl(limit) = backend.reuse {
            let mean = self.total / self.tokens.max(1) as f64;
            assert!(
                self.tokens > 0 && mean <= limit,
                "{}: mean KL {mean:e} over {}",
                backend.name,
                self.tokens
            );
        }
    }
}

/// KL divergence of `found` from `expected` over the whole vocabulary, in nats.
fn kl(expected: &TokenDetail, found: &TokenDetail) -> f64 {
    let by_id = |detail: &TokenDetail| {
        let mut all = detail.alternatives.clone();
        all.sort_unstable_by_key(|(id, _)| *id);
        all
    };
    let term = |((id, p), (other, q)): ((u32, f32), (u32, f32))| {
        assert_eq!(id, other);
        f64::from(p).exp() * f64::from(p - q)
    };
    by_id(expected).into_iter().zip(by_id(found)).map(term).sum()
}
