//! Detection of text that repeats itself.

use crate::LoopGuard;

/// Detects that the latest tokens are repetitions of one passage.
#[derive(Clone, Debug)]
pub(crate) struct LoopDetector {
    guard: LoopGuard,
    tokens: Vec<u32>,
    /// At `p - 1`: number of latest consecutive tokens that equal the token `p` positions earlier.
    runs: Vec<usize>,
}

impl LoopDetector {
    pub(crate) fn new(guard: LoopGuard) -> Self {
        Self { runs: vec![0; guard.longest_passage], tokens: Vec::new(), guard }
    }

    /// Adds a token; returns true if the text now repeats itself.
    pub(crate) fn push(&mut self, id: u32) -> bool {
        let position = self.tokens.len();
        self.tokens.push(id);
        let LoopGuard { repeats, span, .. } = self.guard;
        let mut found = false;
        for (index, run) in self.runs.iter_mut().enumerate() {
            let passage = index + 1;
            let again = position >= passage && self.tokens[position - passage] == id;
            *run = if again { *run + 1 } else { 0 };
            found |= *run + passage >= (passage * repeats).max(span);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GUARD: LoopGuard = LoopGuard { longest_passage: 4, repeats: 3, span: 9 };

    fn noticed_at(tokens: impl IntoIterator<Item = u32>) -> Option<usize> {
        let mut detector = LoopDetector::new(GUARD);
        tokens.into_iter().position(|id| detector.push(id)).map(|index| index + 1)
    }

    #[test]
    fn passages_in_a_row() {
        assert_eq!(noticed_at([7; 20]), Some(9), "one token must fill the span");
        assert_eq!(noticed_at([1, 2].repeat(9)), Some(9));
        assert_eq!(noticed_at([9, 8, 1, 2, 3, 4].into_iter().chain([1, 2, 3, 4].repeat(4))), Some(14));
        assert_eq!(noticed_at([1, 2, 3, 4, 5].repeat(9)), None, "too long a passage");
        assert_eq!(noticed_at((0..50).map(|i| i / 2)), None);
    }

    proptest! {
        #[test]
        fn equals_the_definition(tokens in prop::collection::vec(0u32..3, 0..60)) {
            let circles = |n: usize| (1..=GUARD.longest_passage).any(|p| {
                let span = (p * GUARD.repeats).max(GUARD.span);
                n >= span && (n - span + p..n).all(|i| tokens[i] == tokens[i - p])
            });
            prop_assert_eq!(noticed_at(tokens.iter().copied()), (1..=tokens.len()).find(|n| circles(*n)));
        }
    }
}
