//! Receiving logits and hidden states of a running sequence.

use std::cmp::Ordering;

/// A tensor of the residual stream, ordered as the model computes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HiddenStateAt {
    /// Output of the embedding.
    Embedding,
    /// Residual stream of a layer after its attention (linear or full) was added.
    AfterAttention(usize),
    /// Residual stream of a layer after its MLP was added: the layer's output.
    AfterMlp(usize),
    /// Output of the final norm.
    FinalNorm,
}

impl HiddenStateAt {
    /// Rank in the order of computation: stage of the model, layer, part of the layer.
    fn rank(self) -> (u8, usize, u8) {
        match self {
            Self::Embedding => (0, 0, 0),
            Self::AfterAttention(layer) => (1, layer, 0),
            Self::AfterMlp(layer) => (1, layer, 1),
            Self::FinalNorm => (2, 0, 0),
        }
    }
}

impl Ord for HiddenStateAt {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank().cmp(&other.rank())
    }
}

impl PartialOrd for HiddenStateAt {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Receives the results of a running sequence.
pub trait Observer {
    /// Logits of the token at `position` (0 is the sequence's first): `[vocab]` f32, predicting `position + 1`.
    fn logits(&mut self, position: usize, logits: &[f32]);

    /// True if [`Observer::hidden`] is to be called. Read once per call of [`crate::Sequence::extend`].
    fn wants_hidden(&self) -> bool {
        false
    }

    /// The residual stream at `site` for consecutive tokens from `position` on: [tokens, hidden] f32.
    fn hidden(&mut self, site: HiddenStateAt, position: usize, rows: &[f32]) {
        let _ = (site, position, rows);
    }

    /// True if the call is to stop at the next chunk boundary.
    fn cancelled(&self) -> bool {
        false
    }
}

/// An observer that ignores everything.
#[derive(Clone, Copy, Debug, Default)]
pub struct Discard;

impl Observer for Discard {
    fn logits(&mut self, _position: usize, _logits: &[f32]) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_states_are_in_the_order_of_computation() {
        let sites = [
            HiddenStateAt::Embedding,
            HiddenStateAt::AfterAttention(0),
            HiddenStateAt::AfterMlp(0),
            HiddenStateAt::AfterAttention(1),
            HiddenStateAt::AfterMlp(1),
            HiddenStateAt::FinalNorm,
        ];
        assert!(sites.is_sorted());
    }
}
