//! The filters between logits and a draw. Each is a function on candidates, tested against a slow reference.

use std::cmp::Ordering;

/// A token that can be drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Candidate {
    pub(crate) id: u32,
    pub(crate) logit: f32,
    /// Probability, set by [`softmax`]; later filters do not normalise it again.
    pub(crate) probability: f64,
}

/// The ranking: most probable first, ties by id, so that the order is independent of the sorting algorithm.
fn by_rank(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
}

/// The tokens with a logit above minus infinity.
pub(crate) fn candidates(logits: &[f32]) -> Vec<Candidate> {
    let possible = logits.iter().enumerate().filter(|(_, logit)| **logit > f32::NEG_INFINITY);
    possible.map(|(id, logit)| Candidate { id: id as u32, logit: *logit, probability: 0.0 }).collect()
}

/// The most probable token, the lowest id among ties; `None` if no token is possible.
pub(crate) fn most_probable(logits: &[f32]) -> Option<u32> {
    let mut best: Option<(u32, f32)> = None;
    for (id, logit) in logits.iter().enumerate() {
        if *logit > best.map_or(f32::NEG_INFINITY, |(_, logit)| logit) {
            best = Some((id as u32, *logit));
        }
    }
    best.map(|(id, _)| id)
}

/// Keeps the first `k` of the ranking, in order; if `k` is 0 all, in their present order.
pub(crate) fn top_k(candidates: &mut Vec<Candidate>, k: usize) {
    if k == 0 {
        return;
    }
    if k < candidates.len() {
        candidates.select_nth_unstable_by(k - 1, by_rank);
        candidates.truncate(k);
    }
    candidates.sort_unstable_by(by_rank);
}

/// Sets each candidate's probability at `temperature`, normalised over the candidates.
pub(crate) fn softmax(candidates: &mut [Candidate], temperature: f32) {
    let largest = candidates.iter().map(|c| c.logit).fold(f32::NEG_INFINITY, f32::max);
    let mut total = 0.0;
    for candidate in candidates.iter_mut() {
        candidate.probability = (f64::from(candidate.logit - largest) / f64::from(temperature)).exp();
        total += candidate.probability;
    }
    candidates.iter_mut().for_each(|c| c.probability /= total);
}

/// Keeps the shortest head of the ranking whose probabilities reach `p`, in order; if `p` is 1 all, in their present
/// order.
///
/// Sorts only as many candidates as needed, seldom the whole vocabulary.
pub(crate) fn top_p(candidates: &mut Vec<Candidate>, p: f32) {
    if p >= 1.0 {
        return;
    }
    let mut head = 128.min(candidates.len());
    loop {
        if head < candidates.len() {
            candidates.select_nth_unstable_by(head, by_rank);
        }
        candidates[..head].sort_unstable_by(by_rank);
        let mut reached = 0.0;
        let enough = candidates[..head].iter().position(|c| {
            reached += c.probability;
            reached >= f64::from(p)
        });
        if let Some(last) = enough {
            return candidates.truncate(last + 1);
        }
        if head == candidates.len() {
            return;
        }
        head = (head * 8).min(candidates.len());
    }
}

/// Keeps candidates at least `fraction` times as probable as the most probable one.
pub(crate) fn min_p(candidates: &mut Vec<Candidate>, fraction: f32) {
    let largest = candidates.iter().map(|c| c.probability).fold(0.0, f64::max);
    candidates.retain(|c| c.probability >= largest * f64::from(fraction));
}

/// Draws a candidate by inverse transform sampling; `uniform` is in [0, 1).
pub(crate) fn draw(candidates: &[Candidate], uniform: f64) -> Option<u32> {
    let total: f64 = candidates.iter().map(|c| c.probability).sum();
    let mut left = uniform * total;
    for candidate in candidates {
        left -= candidate.probability;
        if left < 0.0 {
            return Some(candidate.id);
        }
    }
    candidates.last().map(|c| c.id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn some_logits() -> impl Strategy<Value = Vec<f32>> {
        // Few distinct values, so that ties are common; some impossible tokens.
        let one = prop_oneof![
            4 => (-8i32..8).prop_map(|x| x as f32 * 0.5),
            1 => -10.0f32..10.0,
            1 => Just(f32::NEG_INFINITY)
        ];
        prop::collection::vec(one, 1..400)
    }

    /// Everything ranked by the plainest of sorts, with probabilities.
    fn ranked(logits: &[f32], temperature: f32) -> Vec<Candidate> {
        let mut all = candidates(logits);
        softmax(&mut all, temperature);
        for i in 0..all.len() {
            for j in i + 1..all.len() {
                let (a, b) = (all[i], all[j]);
                if b.logit > a.logit || (b.logit == a.logit && b.id < a.id) {
                    all.swap(i, j);
                }
            }
        }
        all
    }

    fn ids(candidates: &[Candidate]) -> Vec<u32> {
        candidates.iter().map(|c| c.id).collect()
    }

    proptest! {
        #[test]
        fn top_k_is_the_head_of_the_ranking(logits in some_logits(), k in 1usize..50) {
            let mut fast = candidates(&logits);
            top_k(&mut fast, k);
            let slow: Vec<u32> = ids(&ranked(&logits, 1.0)).into_iter().take(k).collect();
            prop_assert_eq!(ids(&fast), slow);
        }

        #[test]
        fn top_p_is_the_shortest_sufficient_head(logits in some_logits(), p in 0.01f32..1.0, t in 0.1f32..3.0) {
            let slow_all = ranked(&logits, t);
            let mut slow = Vec::new();
            let mut reached = 0.0;
            for candidate in &slow_all {
                slow.push(candidate.id);
                reached += candidate.probability;
                if reached >= f64::from(p) {
                    break;
                }
            }
            let mut fast = candidates(&logits);
            softmax(&mut fast, t);
            top_p(&mut fast, p);
            prop_assert_eq!(ids(&fast), slow);
        }

        #[test]
        fn min_p_is_a_threshold(logits in some_logits(), fraction in 0.0f32..1.0) {
            let slow: Vec<u32> = match ranked(&logits, 1.0).first().copied() {
                None => Vec::new(),
                Some(first) => candidates(&logits).into_iter()
                    .filter(|c| f64::from(c.logit - first.logit).exp() >= f64::from(fraction) * (1.0 - 1e-12))
                    .map(|c| c.id).collect(),
            };
            let mut fast = candidates(&logits);
            softmax(&mut fast, 1.0);
            min_p(&mut fast, fraction);
            // At the very threshold rounding may decide either way.
            let difference = slow.len().abs_diff(fast.len());
            prop_assert!(ids(&fast) == slow || difference <= 1);
        }

        #[test]
        fn the_most_probable_is_first_in_rank(logits in some_logits()) {
            prop_assert_eq!(most_probable(&logits), ranked(&logits, 1.0).first().map(|c| c.id));
        }

        #[test]
        fn draw_inverts_the_cumulative_distribution(logits in some_logits(), u in 0.0f64..1.0) {
            let mut all = candidates(&logits);
            softmax(&mut all, 1.0);
            let mut cumulative = 0.0;
            let slow = all.iter().find(|c| { cumulative += c.probability; u < cumulative - 1e-12 }).map(|c| c.id);
            if let (Some(slow), Some(fast)) = (slow, draw(&all, u)) {
                prop_assert!(fast <= slow, "{fast} {slow}");
            }
        }
    }
}
