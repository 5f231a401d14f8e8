//! Whether two replies are the same reply.

use q35_runtime::{Reply, Sampling, TokenDetail};

use crate::{Backend, Reuse};

/// Greedy and short, with what is needed to compare replies: every token's whole distribution if `backend` need not
/// reuse bit for bit.
pub(crate) fn short(backend: &Backend) -> Sampling {
    let alternatives = match backend.reuse {
        Reuse::BitForBit => 2,
        Reuse::MeanKl(_) => 1 << 20,
    };
    Sampling::greedy().with_max_tokens(16).with_thinking(false).with_logprobs(alternatives)
}

/// Divergences of the distributions of replies from those that they should be.
#[derive(Default)]
pub(crate) struct Divergence {
    total: f64,
    rows: usize,
}

impl Divergence {
    /// Holds `reply` against `expected` as far as both are the same text, and bit for bit if that is asked for.
    pub(crate) fn compare(&mut self, backend: &Backend, reply: &Reply, expected: &Reply, when: &str) {
        if backend.reuse == Reuse::BitForBit {
            assert_eq!(reply.tokens, expected.tokens, "{}, {when}: {:?}", backend.name, reply.text);
            assert_eq!((&reply.text, &reply.reasoning), (&expected.text, &expected.reasoning));
            return;
        }
        for (token, expected) in reply.tokens.iter().zip(&expected.tokens) {
            self.total += kl(expected, token);
            self.rows += 1;
            // From here on they answer to different histories. Two tokens may be equally probable.
            if token.id != expected.id {
                break;
            }
        }
    }

    /// Fails if the mean is above what the backend allows.
    pub(crate) fn check(&self, backend: &Backend) {
        if let Reuse::MeanKl(limit) = backend.reuse {
            let mean = self.total / self.rows.max(1) as f64;
            assert!(self.rows > 0 && mean <= limit, "{}: mean KL {mean:e} over {}", backend.name, self.rows);
        }
    }
}

/// Kullback-Leibler divergence of `found` from `expected`, over the whole vocabulary.
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
