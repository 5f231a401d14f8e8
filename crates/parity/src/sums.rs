//! The running sums of a comparison of three: original, own weights in float, executed.

use std::collections::BTreeMap;
use std::ops::Range;

use q35_inference::RecurrentState;
use q35_metrics::{Perplexity, RowComparison, VectorError};
use rayon::prelude::*;

use crate::report::Collector;
use crate::rows::{Who, compare_or_infinite, row_error};
use crate::{
    Finding, Limits, ParityError, PerplexityReport, Position, Prompt, PromptReport, Report, StateReport,
};

/// All running sums of the comparison.
pub(crate) struct Sums {
    implementation: Collector,
    conversion: Collector,
    total: Collector,
    places: Vec<Position>,
    perplexity: [Perplexity; 3],
    states: BTreeMap<usize, StateReport>,
    /// The first row of the candidate that is no distribution, counted as `places`.
    broken: Option<usize>,
}

/// Logits [positions, vocab] of the same positions.
pub(crate) struct Rows<'a> {
    /// The float reference on the original weights.
    pub(crate) original: &'a [f32],
    /// The float reference on the candidate's weights.
    pub(crate) own: &'a [f32],
    /// The candidate, if it is executed.
    pub(crate) executed: Option<&'a [f32]>,
}

/// One position's comparisons.
struct Compared {
    conversion: RowComparison,
    /// Implementation and total.
    executed: Option<[RowComparison; 2]>,
}

impl Sums {
    pub(crate) fn new() -> Self {
        Self {
            implementation: Collector::new(),
            conversion: Collector::new(),
            total: Collector::new(),
            places: Vec::new(),
            perplexity: [Perplexity::default(); 3],
            states: BTreeMap::new(),
            broken: None,
        }
    }

    /// Compares the rows of `positions` of a prompt.
    pub(crate) fn add(
        &mut self,
        prompt: &Prompt,
        positions: Range<usize>,
        vocab: usize,
        rows: &Rows<'_>,
        report: &mut PromptReport,
    ) -> Result<(), ParityError> {
        let compare = |(offset, position): (usize, usize)| -> Result<Compared, ParityError> {
            let (original, own) = (row(rows.original, offset, vocab), row(rows.own, offset, vocab));
            let conversion =
                compare_or_infinite(original, own).map_err(row_error(Who::OwnFloat, prompt, position))?;
            let Some(executed) = rows.executed else { return Ok(Compared { conversion, executed: None }) };
            let executed = row(executed, offset, vocab);
            let judge = |expected: &[f32]| {
                compare_or_infinite(expected, executed).map_err(row_error(Who::Candidate, prompt, position))
            };
            Ok(Compared { conversion, executed: Some([judge(own)?, judge(original)?]) })
        };
        // At a quarter of a million logits a row, comparing costs as much as a layer.
        let places: Vec<(usize, usize)> = positions.enumerate().collect();
        let compared: Vec<_> = places.par_iter().map(|place| compare(*place)).collect();
        for ((offset, position), compared) in places.into_iter().zip(compared) {
            let Compared { conversion, executed } = compared?;
            let next = prompt.ids.get(position + 1).map(|id| *id as usize);
            let logit = |rows: &[f32]| next.map(|target| f64::from(rows[offset * vocab + target]));
            report.conversion_kl.push(conversion.kl);
            self.conversion.push(&conversion);
            if let (Some(original), Some(own)) = (logit(rows.original), logit(rows.own)) {
                self.perplexity[0].push(conversion.reference_log_sum_exp - original);
                self.perplexity[1].push(conversion.candidate_log_sum_exp - own);
            }
            if let Some([implementation, total]) = executed {
                if !implementation.kl.is_finite() {
                    self.broken.get_or_insert(self.places.len());
                }
                report.implementation_kl.push(implementation.kl);
                report.total_kl.push(total.kl);
                self.implementation.push(&implementation);
                self.total.push(&total);
                if let Some(logit) = rows.executed.and_then(logit) {
                    self.perplexity[2].push(total.candidate_log_sum_exp - logit);
                }
            }
            self.places.push(Position { prompt: prompt.name.clone(), position });
        }
        Ok(())
    }

    /// Compares the recurrent states after a prompt.
    pub(crate) fn states(&mut self, expected: &[RecurrentState], found: &[RecurrentState]) {
        for state in expected {
            let other = found.iter().find(|other| other.layer == state.layer);
            let error = match other {
                Some(other) if other.values.len() == state.values.len() => {
                    VectorError::of(&state.values, &other.values)
                }
                _ => VectorError::of(&[1.0], &[0.0]),
            };
            let [cosine, relative] = match error.not_finite() {
                0 => [error.cosine(), error.relative()],
                _ => [-1.0, f64::INFINITY],
            };
            let worst = self.states.entry(state.layer).or_insert(StateReport {
                layer: state.layer,
                cosine: 1.0,
                relative: 0.0,
            });
            worst.cosine = worst.cosine.min(cosine);
            worst.relative = worst.relative.max(relative);
        }
    }

    /// Writes what came together into the report.
    pub(crate) fn fill(self, report: &mut Report, executed: bool, limits: &Limits) {
        let margin = limits.undecided_margin.as_ref().map_or(0.0, |limit| limit.limit);
        report.conversion = Some(self.conversion.finish(&self.places, 0.0));
        if executed {
            report.implementation = Some(self.implementation.finish(&self.places, margin));
            report.total = Some(self.total.finish(&self.places, 0.0));
        }
        if let [Some(reference), Some(own_float)] = [self.perplexity[0].value(), self.perplexity[1].value()] {
            let (tokens, candidate) = (self.perplexity[0].tokens(), self.perplexity[2].value());
            report.perplexity = Some(PerplexityReport { tokens, reference, own_float, candidate });
        }
        if let Some(place) = self.broken.and_then(|index| self.places.get(index)) {
            report.findings.push(Finding {
                scope: "implementation".into(),
                layer: None,
                class: "logits".into(),
                tensor: None,
                message: format!(
                    "the candidate's logits hold NaN or infinities from position {} of prompt `{}` on",
                    place.position, place.prompt
                ),
            });
        }
        report.states = self.states.into_values().collect();
    }
}

/// Row `index`, or nothing where there are fewer: a model that gives too few rows is found out by the comparison.
fn row(rows: &[f32], index: usize, vocab: usize) -> &[f32] {
    rows.get(index * vocab..(index + 1) * vocab).unwrap_or(&[])
}
