//! Running a sequence piece by piece and catching what it gives.

use std::collections::BTreeMap;
use std::ops::Range;

use q35_inference::{CancelToken, HiddenStateAt, LogitsFor, Model, Observer, RunError, Sequence};
use q35_metrics::{RowComparison, RowError, Top1, argmax, compare_rows};

use crate::{ParityError, Prompt};

/// Catches the logits of one piece, and hidden states if asked to.
pub(crate) struct Catch<'a> {
    cancel: &'a CancelToken,
    /// [rows, vocab] of the last piece.
    pub(crate) rows: Vec<f32>,
    /// Residual stream by place, for positions below the limit.
    pub(crate) hidden: Option<Hidden>,
}

/// The residual stream of the first positions of a prompt.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Hidden {
    /// Positions kept.
    pub(crate) positions: usize,
    /// Width of a row.
    pub(crate) width: usize,
    /// By place, in the order of computation: [positions, width].
    pub(crate) sites: BTreeMap<Place, Vec<f32>>,
}

/// A [`HiddenStateAt`] in the order of computation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    Embedding,
    /// Layer, and 0 for after the mixer, 1 for after the MLP.
    Within(usize, u8),
    FinalNorm,
}

impl From<HiddenStateAt> for Place {
    fn from(site: HiddenStateAt) -> Self {
        match site {
            HiddenStateAt::Embedding => Self::Embedding,
            HiddenStateAt::AfterAttention(layer) => Self::Within(layer, 0),
            HiddenStateAt::AfterMlp(layer) => Self::Within(layer, 1),
            HiddenStateAt::FinalNorm => Self::FinalNorm,
        }
    }
}

impl Hidden {
    pub(crate) fn new(positions: usize, width: usize) -> Self {
        Self { positions, width, sites: BTreeMap::new() }
    }

    pub(crate) fn put(&mut self, place: Place, position: usize, rows: &[f32]) {
        if position >= self.positions {
            return;
        }
        let all = self.sites.entry(place).or_insert_with(|| vec![0.0; self.positions * self.width]);
        let start = position * self.width;
        let count = rows.len().min(all.len() - start);
        all[start..start + count].copy_from_slice(&rows[..count]);
    }
}

impl<'a> Catch<'a> {
    pub(crate) fn new(cancel: &'a CancelToken) -> Self {
        Self { cancel, rows: Vec::new(), hidden: None }
    }

    pub(crate) fn with_hidden(cancel: &'a CancelToken, hidden: Option<Hidden>) -> Self {
        Self { cancel, rows: Vec::new(), hidden }
    }
}

impl Observer for Catch<'_> {
    fn logits(&mut self, _position: usize, row: &[f32]) {
        self.rows.extend_from_slice(row);
    }

    fn wants_hidden(&self) -> bool {
        self.hidden.is_some()
    }

    fn hidden(&mut self, site: HiddenStateAt, position: usize, rows: &[f32]) {
        if let Some(hidden) = &mut self.hidden {
            hidden.put(site.into(), position, rows);
        }
    }

    fn cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }
}

/// Who runs, for errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    Reference,
    OwnFloat,
    Candidate,
}

impl Who {
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Reference => "the float reference",
            Self::OwnFloat => "the float reference on the candidate's weights",
            Self::Candidate => "the candidate",
        }
    }

    pub(crate) fn run_error(self, prompt: &str, position: usize, source: RunError) -> ParityError {
        match source {
            RunError::Cancelled => ParityError::Cancelled,
            source => ParityError::Run { who: self.words(), prompt: prompt.to_owned(), position, source },
        }
    }
}

/// Compares two rows; logits with NaN or infinities (an overflow of f16, most often) are infinitely far from any
/// distribution, which is an answer and no error.
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

/// Wraps an error of a comparison.
pub(crate) fn row_error(who: Who, prompt: &Prompt, position: usize) -> impl FnOnce(RowError) -> ParityError {
    let prompt = prompt.name.clone();
    move |source| ParityError::Row { who: who.words(), prompt, position, source }
}

/// A sequence of one model over one prompt.
pub(crate) struct Running<'a> {
    who: Who,
    prompt: &'a str,
    sequence: Box<dyn Sequence + 'a>,
    pub(crate) catch: Catch<'a>,
}

impl<'a> Running<'a> {
    pub(crate) fn start(
        who: Who,
        model: &'a dyn Model,
        prompt: &'a str,
        room: usize,
        catch: Catch<'a>,
    ) -> Result<Self, ParityError> {
        let sequence = model.new_sequence(room).map_err(|error| who.run_error(prompt, 0, error))?;
        Ok(Self { who, prompt, sequence, catch })
    }

    /// Consumes `ids`; the logits asked for are in `self.catch.rows` afterwards, and only they.
    pub(crate) fn feed(&mut self, ids: &[u32], rows: LogitsFor) -> Result<(), ParityError> {
        self.catch.rows.clear();
        let position = self.sequence.position();
        self.sequence
            .extend(ids, rows, &mut self.catch)
            .map_err(|error| self.who.run_error(self.prompt, position, error))
    }

    pub(crate) fn sequence(&mut self) -> &mut dyn Sequence {
        &mut *self.sequence
    }

    /// Wraps an error of the sequence's other methods.
    pub(crate) fn fail(&self, error: RunError) -> ParityError {
        self.who.run_error(self.prompt, self.sequence.position(), error)
    }
}

/// The pieces of a prompt: at most `step` tokens, cut at multiples of it and where scoring begins.
pub(crate) fn pieces(prompt: &Prompt, step: usize) -> Vec<(Range<usize>, bool)> {
    let mut list = Vec::new();
    let mut start = 0;
    while start < prompt.ids.len() {
        let mut end = ((start / step + 1) * step).min(prompt.ids.len());
        if start < prompt.scored_from {
            end = end.min(prompt.scored_from);
        }
        list.push((start..end, start >= prompt.scored_from));
        start = end;
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_the_prompt_and_respect_the_border() {
        let mut prompt = Prompt::new("p", "k", vec![0; 70]);
        prompt.scored_from = 40;
        let found = pieces(&prompt, 32);
        assert_eq!(found, [(0..32, false), (32..40, false), (40..64, true), (64..70, true)]);
        let all = pieces(&Prompt::new("p", "k", vec![0; 33]), 32);
        assert_eq!(all, [(0..32, true), (32..33, true)]);
    }

    #[test]
    fn places_are_in_the_order_of_computation() {
        let sites = [
            HiddenStateAt::Embedding,
            HiddenStateAt::AfterAttention(0),
            HiddenStateAt::AfterMlp(0),
            HiddenStateAt::AfterAttention(1),
            HiddenStateAt::AfterMlp(1),
            HiddenStateAt::FinalNorm,
        ];
        let places = sites.map(Place::from);
        assert!(places.is_sorted());
    }
}
