//! Self-consistency of the candidate: the same tokens by prefill, by decode, with the prompt split at several positions,
//! and through a snapshot.

use q35_inference::{CancelToken, LogitsFor, Model};
use q35_metrics::{RowError, Summarizer, Top1};
use serde::{Deserialize, Serialize};

use crate::runner::{LogitRecorder, Participant, RunningSequence, compare_or_infinite};
use crate::{ParityError, Progress, Prompt, Stage};

/// The same tokens computed another way. The baseline is one prefill that returns all logits or, for a model whose
/// prefill returns the last token's logits only, decoding token by token.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct ConsistencyReport {
    /// "decode" or "one prefill", "cut at 7", "snapshot at 20".
    pub way: String,
    /// Positions compared.
    pub positions: usize,
    /// Mean KL(baseline || this way), in nats.
    pub mean_kl: f64,
    /// Largest absolute difference of two logits.
    pub max_abs_difference: f64,
    /// True if all logits are equal bit for bit.
    pub bit_equal: bool,
    /// The first position with another top-1 token.
    pub first_different: Option<usize>,
}

/// Runs `prompt` by prefill and by decode; if `thorough`, also split at several positions and through a snapshot.
pub(crate) fn check_consistency(
    model: &dyn Model,
    prompt: &Prompt,
    thorough: bool,
    cancel: &CancelToken,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Vec<ConsistencyReport>, ParityError> {
    let ids = &prompt.ids;
    let vocab = model.config().vocab_size;
    let start = || {
        let recorder = LogitRecorder::new(cancel);
        RunningSequence::start(Participant::Candidate, model, &prompt.name, ids.len(), recorder)
    };
    let splits = if thorough { split_positions(ids.len()) } else { Vec::new() };
    let total = (ids.len() * (2 + splits.len() + usize::from(thorough))) as u64;
    let mut done = 0;
    let mut advance = |tokens: usize| {
        done += tokens as u64;
        progress(Progress { stage: Stage::Consistency, done, total });
    };
    advance(0);
    let row_error = |position: usize| Participant::Candidate.row_error(prompt, position);

    let prefill_is_baseline = model.prefill_returns_all_logits();
    let last = ids.len() - 1;
    let mut prefill = start()?;
    prefill.feed(ids, if prefill_is_baseline { LogitsFor::AllTokens } else { LogitsFor::LastToken })?;
    let prefilled = std::mem::take(&mut prefill.recorder.logits);
    drop(prefill);
    advance(ids.len());

    let mut reports = Vec::new();
    let mut comparison = WayComparison::default();
    let mut decode = start()?;
    for (position, id) in ids.iter().enumerate() {
        decode.feed(std::slice::from_ref(id), LogitsFor::LastToken)?;
        let decoded = &decode.recorder.logits;
        if prefill_is_baseline {
            let baseline = &prefilled[position * vocab..(position + 1) * vocab];
            comparison.push(position, baseline, decoded).map_err(row_error(position))?;
        } else if position == last {
            comparison.push(position, decoded, &prefilled).map_err(row_error(position))?;
        }
        advance(1);
    }
    reports.push(comparison.report(if prefill_is_baseline { "decode" } else { "one prefill" }.into()));
    if !thorough {
        return Ok(reports);
    }
    let decoded = std::mem::take(&mut decode.recorder.logits);
    drop(decode);
    let baseline = if prefill_is_baseline { &prefilled[last * vocab..] } else { &decoded[..] };
    for split in splits {
        let mut running = start()?;
        running.feed(&ids[..split], LogitsFor::None)?;
        running.feed(&ids[split..], LogitsFor::LastToken)?;
        let mut comparison = WayComparison::default();
        comparison.push(last, baseline, &running.recorder.logits).map_err(row_error(last))?;
        reports.push(comparison.report(format!("cut at {split}")));
        advance(ids.len());
    }

    let half = ids.len() / 2;
    if half > 0 {
        let mut first = start()?;
        first.feed(&ids[..half], LogitsFor::None)?;
        let snapshot = first.sequence().snapshot().map_err(|error| first.error(error))?;
        // Tokens consumed after the snapshot must not change it.
        first.feed(&ids[half..], LogitsFor::None)?;
        drop(first);
        let mut second = start()?;
        second.sequence().restore(&snapshot).map_err(|error| second.error(error))?;
        second.feed(&ids[half..], LogitsFor::LastToken)?;
        let mut comparison = WayComparison::default();
        comparison.push(last, baseline, &second.recorder.logits).map_err(row_error(last))?;
        reports.push(comparison.report(format!("snapshot at {half}")));
    }
    advance(ids.len());
    Ok(reports)
}

/// Positions at which a prompt is split: near its beginning, where the convolution window is not full yet, around chunk
/// boundaries, in the middle and before the last token. Off the backend's prefill alignment bits may differ; the
/// distribution must not.
fn split_positions(length: usize) -> Vec<usize> {
    let mut positions: Vec<usize> = [1, 3, 4, 31, 32, 33, length / 2, length.saturating_sub(1)]
        .into_iter()
        .filter(|position| (1..length).contains(position))
        .collect();
    positions.sort_unstable();
    positions.dedup();
    positions
}

/// Comparison of one way with the baseline.
#[derive(Default)]
struct WayComparison {
    summary: Summarizer,
    bits_differ: bool,
    first_different: Option<usize>,
}

impl WayComparison {
    fn push(&mut self, position: usize, expected: &[f32], found: &[f32]) -> Result<(), RowError> {
        let row = compare_or_infinite(expected, found)?;
        self.bits_differ |= expected.iter().zip(found).any(|(a, b)| a.to_bits() != b.to_bits());
        if row.top1 == Top1::Different {
            self.first_different.get_or_insert(position);
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
            bit_equal: !self.bits_differ,
            first_different: self.first_different,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_lie_inside_the_prompt() {
        assert_eq!(split_positions(40), [1, 3, 4, 20, 31, 32, 33, 39]);
        assert_eq!(split_positions(2), [1]);
    }
}
