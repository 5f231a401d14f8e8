//! The candidate against itself: the same tokens, computed in other ways.

use q35_inference::{CancelToken, LogitsFor, Model};
use q35_metrics::Summarizer;
use serde::{Deserialize, Serialize};

use crate::rows::{Catch, Running, Who, compare_or_infinite, row_error};
use crate::{ParityError, Progress, Prompt, Stage};

/// The same tokens computed in another way: than in one prefill that gives all logits, or, by a model whose prefill gives
/// the last ones only, than token by token.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct ConsistencyReport {
    /// "decode" or "one prefill", "cut at 7", "snapshot at 20".
    pub way: String,
    /// Positions compared.
    pub positions: usize,
    /// Mean KL(the first way || this way).
    pub mean_kl: f64,
    /// Largest absolute difference of two logits.
    pub max_abs_difference: f64,
    /// Whether every logit is the same number.
    pub bit_equal: bool,
    /// The first position whose likeliest token differs.
    pub first_different: Option<usize>,
}

/// Runs `prompt` token by token and in one prefill; if `thorough`, also cut at several places and through a snapshot.
pub(crate) fn examine(
    model: &dyn Model,
    prompt: &Prompt,
    thorough: bool,
    cancel: &CancelToken,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Vec<ConsistencyReport>, ParityError> {
    let ids = &prompt.ids;
    let vocab = model.config().vocab_size;
    let start = || Running::start(Who::Candidate, model, &prompt.name, ids.len(), Catch::new(cancel));
    let cuts = if thorough { cuts(ids.len()) } else { Vec::new() };
    let total = (ids.len() * (2 + cuts.len() + usize::from(thorough))) as u64;
    let mut done = 0;
    let mut advance = |tokens: usize| {
        done += tokens as u64;
        progress(Progress { stage: Stage::Consistency, done, total });
    };
    advance(0);
    let row_error = |position: usize| row_error(Who::Candidate, prompt, position);

    let by_prefill = model.prefill_returns_all_logits();
    let last = ids.len() - 1;
    let mut whole = start()?;
    whole.feed(ids, if by_prefill { LogitsFor::AllTokens } else { LogitsFor::LastToken })?;
    let prefilled = std::mem::take(&mut whole.catch.rows);
    drop(whole);
    advance(ids.len());

    let mut reports = Vec::new();
    let mut comparison = Comparison::default();
    let mut one_by_one = start()?;
    for (position, id) in ids.iter().enumerate() {
        one_by_one.feed(std::slice::from_ref(id), LogitsFor::LastToken)?;
        let decoded = &one_by_one.catch.rows;
        if by_prefill {
            let row = &prefilled[position * vocab..(position + 1) * vocab];
            comparison.push(position, row, decoded).map_err(row_error(position))?;
        } else if position == last {
            comparison.push(position, decoded, &prefilled).map_err(row_error(position))?;
        }
        advance(1);
    }
    reports.push(comparison.report(if by_prefill { "decode" } else { "one prefill" }.into()));
    if !thorough {
        return Ok(reports);
    }
    let decoded = std::mem::take(&mut one_by_one.catch.rows);
    drop(one_by_one);
    let expected = if by_prefill { &prefilled[last * vocab..] } else { &decoded[..] };
    for cut in cuts {
        let mut running = start()?;
        running.feed(&ids[..cut], LogitsFor::None)?;
        running.feed(&ids[cut..], LogitsFor::LastToken)?;
        let mut comparison = Comparison::default();
        comparison.push(last, expected, &running.catch.rows).map_err(row_error(last))?;
        reports.push(comparison.report(format!("cut at {cut}")));
        advance(ids.len());
    }

    let half = ids.len() / 2;
    if half > 0 {
        let mut first = start()?;
        first.feed(&ids[..half], LogitsFor::None)?;
        let snapshot = first.sequence().snapshot().map_err(|error| first.fail(error))?;
        // What comes after must not leak into the copy.
        first.feed(&ids[half..], LogitsFor::None)?;
        drop(first);
        let mut second = start()?;
        second.sequence().restore(&snapshot).map_err(|error| second.fail(error))?;
        second.feed(&ids[half..], LogitsFor::LastToken)?;
        let mut comparison = Comparison::default();
        comparison.push(last, expected, &second.catch.rows).map_err(row_error(last))?;
        reports.push(comparison.report(format!("snapshot at {half}")));
    }
    advance(ids.len());
    Ok(reports)
}

/// Where a prompt is cut: near its beginning, where the convolution's window is not full yet, around chunk borders,
/// and before the last token. Not only on the backend's grid: off it bits may differ, the distribution must not.
fn cuts(length: usize) -> Vec<usize> {
    let mut list: Vec<usize> = [1, 3, 4, 31, 32, 33, length / 2, length.saturating_sub(1)]
        .into_iter()
        .filter(|cut| (1..length).contains(cut))
        .collect();
    list.sort_unstable();
    list.dedup();
    list
}

#[derive(Default)]
struct Comparison {
    summary: Summarizer,
    different_bits: bool,
    first: Option<usize>,
}

impl Comparison {
    fn push(
        &mut self,
        position: usize,
        expected: &[f32],
        found: &[f32],
    ) -> Result<(), q35_metrics::RowError> {
        let row = compare_or_infinite(expected, found)?;
        self.different_bits |= expected.iter().zip(found).any(|(a, b)| a.to_bits() != b.to_bits());
        if row.top1 == q35_metrics::Top1::Different {
            self.first.get_or_insert(position);
        }
        self.summary.push(&row);
        Ok(())
    }

    fn report(self, way: String) -> ConsistencyReport {
        let summary = self.summary.finish();
        ConsistencyReport {
            way,
            positions: summary.positions,
            mean_kl: summary.kl.mean,
            max_abs_difference: summary.max_abs_difference,
            bit_equal: !self.different_bits,
            first_different: self.first,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_lie_inside_the_prompt() {
        assert_eq!(cuts(40), [1, 3, 4, 20, 31, 32, 33, 39]);
        assert_eq!(cuts(2), [1]);
    }
}
