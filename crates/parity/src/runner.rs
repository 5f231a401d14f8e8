//! Runs a model over a prompt in chunks and records its logits and hidden states.

use std::collections::BTreeMap;
use std::ops::Range;

use q35_inference::{CancelToken, HiddenStateAt, LogitsFor, Model, Observer, RunError, Sequence};
use q35_metrics::{RowComparison, RowError, Top1, argmax, compare_rows};

use crate::{ParityError, Prompt};

/// Records the logits of the latest chunk, and hidden states where they are wanted.
pub(crate) struct LogitRecorder<'a> {
    cancel: &'a CancelToken,
    /// Logits of the latest chunk: [tokens, vocab].
    pub(crate) logits: Vec<f32>,
    /// Residual stream of the first positions.
    pub(crate) hidden: Option<HiddenStates>,
}

impl<'a> LogitRecorder<'a> {
    pub(crate) fn new(cancel: &'a CancelToken) -> Self {
        Self::with_hidden(cancel, None)
    }

    pub(crate) fn with_hidden(cancel: &'a CancelToken, hidden: Option<HiddenStates>) -> Self {
        Self { cancel, logits: Vec::new(), hidden }
    }
}

impl Observer for LogitRecorder<'_> {
    fn logits(&mut self, _position: usize, logits: &[f32]) {
        self.logits.extend_from_slice(logits);
    }

    fn wants_hidden(&self) -> bool {
        self.hidden.is_some()
    }

    fn hidden(&mut self, site: HiddenStateAt, position: usize, rows: &[f32]) {
        if let Some(hidden) = &mut self.hidden {
            hidden.record(site, position, rows);
        }
    }

    fn cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }
}

/// The residual stream of the first positions of a prompt.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct HiddenStates {
    /// Positions recorded.
    pub(crate) positions: usize,
    /// Width of the residual stream.
    pub(crate) width: usize,
    /// [positions, width] at each site, in the order of computation.
    pub(crate) sites: BTreeMap<HiddenStateAt, Vec<f32>>,
}

impl HiddenStates {
    pub(crate) fn new(positions: usize, width: usize) -> Self {
        Self { positions, width, sites: BTreeMap::new() }
    }

    /// Copies `rows` [tokens, width] from `position` on; rows beyond `positions` are ignored.
    pub(crate) fn record(&mut self, site: HiddenStateAt, position: usize, rows: &[f32]) {
        if position >= self.positions {
            return;
        }
        let recorded = self.sites.entry(site).or_insert_with(|| vec![0.0; self.positions * self.width]);
        let start = position * self.width;
        let count = rows.len().min(recorded.len() - start);
        recorded[start..start + count].copy_from_slice(&rows[..count]);
    }
}

/// One of the three models that a check runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Participant {
    /// The float reference on the original weights.
    Reference,
    /// The float reference on the candidate's dequantized weights.
    Dequantized,
    /// The candidate, executed by its backend.
    Candidate,
}

impl Participant {
    /// Name in error messages.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Reference => "the float reference",
            Self::Dequantized => "the float reference on the candidate's weights",
            Self::Candidate => "the candidate",
        }
    }

    pub(crate) fn run_error(self, prompt: &str, position: usize, source: RunError) -> ParityError {
        match source {
            RunError::Cancelled => ParityError::Cancelled,
            source => {
                ParityError::Run { participant: self.name(), prompt: prompt.to_owned(), position, source }
            }
        }
    }

    /// Error of a comparison at one position of a prompt.
    pub(crate) fn row_error(
        self,
        prompt: &Prompt,
        position: usize,
    ) -> impl FnOnce(RowError) -> ParityError + use<> {
        let prompt = prompt.name.clone();
        move |source| ParityError::Row { participant: self.name(), prompt, position, source }
    }
}

/// Compares the logits of one position. Logits with NaN or infinities (usually an overflow of f16) are at infinite
/// divergence from any distribution, which is a result and not an error.
pub(crate) fn compare_or_infinite(expected: &[f32], found: &[f32]) -> Result<RowComparison, RowError> {
    match compare_rows(expected, found) {
        Err(RowError::NotFinite { .. }) => {
            let top = argmax(expected).unwrap_or(0);
            Ok(RowComparison {
                kl: f64::INFINITY,
                top1: Top1::Different,
                reference_top: top,
                candidate_top: top,
                margin: f64::INFINITY,
                top5_overlap: 0.0,
                cosine: 0.0,
                max_abs_difference: f64::INFINITY,
                reference_confidence: 0.0,
                candidate_confidence: 0.0,
                reference_log_sum_exp: f64::INFINITY,
                candidate_log_sum_exp: f64::INFINITY,
            })
        }
        other => other,
    }
}

/// A sequence of one model over one prompt.
pub(crate) struct RunningSequence<'a> {
    participant: Participant,
    prompt: &'a str,
    sequence: Box<dyn Sequence + 'a>,
    pub(crate) recorder: LogitRecorder<'a>,
}

impl<'a> RunningSequence<'a> {
    /// An empty sequence with a capacity of `capacity` tokens.
    pub(crate) fn start(
        participant: Participant,
        model: &'a dyn Model,
        prompt: &'a str,
        capacity: usize,
        recorder: LogitRecorder<'a>,
    ) -> Result<Self, ParityError> {
        let sequence =
            model.new_sequence(capacity).map_err(|error| participant.run_error(prompt, 0, error))?;
        Ok(Self { participant, prompt, sequence, recorder })
    }

    /// Consumes `ids`; afterwards `self.recorder.logits` holds the requested logits and no earlier ones.
    pub(crate) fn feed(&mut self, ids: &[u32], logits: LogitsFor) -> Result<(), ParityError> {
        self.recorder.logits.clear();
        let position = self.sequence.position();
        self.sequence
            .extend(ids, logits, &mut self.recorder)
            .map_err(|error| self.participant.run_error(self.prompt, position, error))
    }

    pub(crate) fn sequence(&mut self) -> &mut dyn Sequence {
        &mut *self.sequence
    }

    /// Error of another method of the sequence.
    pub(crate) fn error(&self, error: RunError) -> ParityError {
        self.participant.run_error(self.prompt, self.sequence.position(), error)
    }
}

/// Splits a prompt into chunks of at most `step` tokens, at multiples of `step` and at the first scored position. The
/// flag is true for chunks whose logits are scored.
pub(crate) fn chunks(prompt: &Prompt, step: usize) -> Vec<(Range<usize>, bool)> {
    let mut chunks = Vec::new();
    let mut start = 0;
    while start < prompt.ids.len() {
        let mut end = ((start / step + 1) * step).min(prompt.ids.len());
        if start < prompt.scored_from {
            end = end.min(prompt.scored_from);
        }
        chunks.push((start..end, start >= prompt.scored_from));
        start = end;
    }
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_the_prompt_and_split_at_the_first_scored_position() {
        let mut prompt = Prompt::new("p", "k", vec![0; 70]);
        prompt.scored_from = 40;
        assert_eq!(chunks(&prompt, 32), [(0..32, false), (32..40, false), (40..64, true), (64..70, true)]);
        assert_eq!(chunks(&Prompt::new("p", "k", vec![0; 33]), 32), [(0..32, true), (32..33, true)]);
    }
}
