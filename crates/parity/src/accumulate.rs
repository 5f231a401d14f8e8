//! Accumulates the three-way comparison of logits: reference, dequantized candidate, executed candidate.

use std::collections::BTreeMap;
use std::ops::Range;

use q35_inference::RecurrentState;
use q35_metrics::{Perplexity, RowComparison, VectorError};
use rayon::prelude::*;

use crate::report::ComparisonBuilder;
use crate::runner::{Participant, compare_or_infinite};
use crate::{
    Finding, Limits, ParityError, ParityReport, PerplexityReport, Position, Prompt, PromptReport,
    StateReport, WorstPosition,
};

/// Running sums of a whole check.
pub(crate) struct ComparisonAccumulator {
    implementation: ComparisonBuilder,
    conversion: ComparisonBuilder,
    total: ComparisonBuilder,
    positions: Vec<Position>,
    reference_perplexity: Perplexity,
    dequantized_perplexity: Perplexity,
    executed_perplexity: Perplexity,
    states: BTreeMap<usize, StateReport>,
    /// The position with the largest KL from the reference.
    worst: Option<WorstPosition>,
    /// Index in `positions` of the first candidate logits that hold NaN or infinities.
    first_non_finite: Option<usize>,
}

/// Logits [positions, vocab] of the same positions.
pub(crate) struct ThreeWayLogits<'a> {
    /// The float reference on the original weights.
    pub(crate) reference: &'a [f32],
    /// The float reference on the candidate's weights.
    pub(crate) dequantized: &'a [f32],
    /// The candidate, if it is executed.
    pub(crate) executed: Option<&'a [f32]>,
}

/// The comparisons of one position.
struct PositionComparison {
    conversion: RowComparison,
    executed: Option<ExecutedComparison>,
}

/// The comparisons that need an executed candidate.
struct ExecutedComparison {
    implementation: RowComparison,
    total: RowComparison,
}

impl ComparisonAccumulator {
    pub(crate) fn new() -> Self {
        Self {
            implementation: ComparisonBuilder::new(),
            conversion: ComparisonBuilder::new(),
            total: ComparisonBuilder::new(),
            positions: Vec::new(),
            reference_perplexity: Perplexity::default(),
            dequantized_perplexity: Perplexity::default(),
            executed_perplexity: Perplexity::default(),
            states: BTreeMap::new(),
            worst: None,
            first_non_finite: None,
        }
    }

    /// Compares the logits of `positions` of a prompt, over a vocabulary of `vocab` tokens.
    pub(crate) fn add(
        &mut self,
        prompt: &Prompt,
        positions: Range<usize>,
        vocab: usize,
        logits: &ThreeWayLogits<'_>,
        report: &mut PromptReport,
    ) -> Result<(), ParityError> {
        let compare = |(offset, position): (usize, usize)| -> Result<PositionComparison, ParityError> {
            let reference = row(logits.reference, offset, vocab);
            let dequantized = row(logits.dequantized, offset, vocab);
            let conversion = compare_or_infinite(reference, dequantized)
                .map_err(Participant::Dequantized.row_error(prompt, position))?;
            let Some(executed) = logits.executed else {
                return Ok(PositionComparison { conversion, executed: None });
            };
            let executed = row(executed, offset, vocab);
            let against = |expected: &[f32]| {
                compare_or_infinite(expected, executed)
                    .map_err(Participant::Candidate.row_error(prompt, position))
            };
            let executed =
                ExecutedComparison { implementation: against(dequantized)?, total: against(reference)? };
            Ok(PositionComparison { conversion, executed: Some(executed) })
        };
        // At a quarter of a million logits a position, the comparison costs as much as a layer.
        let indexed: Vec<(usize, usize)> = positions.enumerate().collect();
        let comparisons: Vec<_> = indexed.par_iter().map(|index| compare(*index)).collect();
        for ((offset, position), comparison) in indexed.into_iter().zip(comparisons) {
            let PositionComparison { conversion, executed } = comparison?;
            let next = prompt.ids.get(position + 1).map(|id| *id as usize);
            let next_logit = |logits: &[f32]| next.map(|token| f64::from(logits[offset * vocab + token]));
            let kl = executed.as_ref().map_or(conversion.kl, |executed| executed.total.kl);
            if self.worst.as_ref().is_none_or(|worst| kl > worst.kl) {
                let reference = row(logits.reference, offset, vocab);
                let candidate = row(logits.executed.unwrap_or(logits.dequantized), offset, vocab);
                self.worst = Some(WorstPosition::new(prompt, position, kl, reference, candidate));
            }
            report.conversion_kl.push(conversion.kl);
            self.conversion.push(&conversion);
            if let Some(logit) = next_logit(logits.reference) {
                self.reference_perplexity.push(conversion.reference_log_sum_exp - logit);
            }
            if let Some(logit) = next_logit(logits.dequantized) {
                self.dequantized_perplexity.push(conversion.candidate_log_sum_exp - logit);
            }
            if let Some(ExecutedComparison { implementation, total }) = executed {
                if !implementation.kl.is_finite() {
                    self.first_non_finite.get_or_insert(self.positions.len());
                }
                report.implementation_kl.push(implementation.kl);
                report.total_kl.push(total.kl);
                self.implementation.push(&implementation);
                self.total.push(&total);
                if let Some(logit) = logits.executed.and_then(next_logit) {
                    self.executed_perplexity.push(total.candidate_log_sum_exp - logit);
                }
            }
            self.positions.push(Position { prompt: prompt.name.clone(), position });
        }
        Ok(())
    }

    /// Compares the recurrent states after a prompt; the worst over all prompts is reported for each layer.
    pub(crate) fn add_states(&mut self, expected: &[RecurrentState], found: &[RecurrentState]) {
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

    /// Writes the comparisons, perplexities and states into the report.
    pub(crate) fn finish(self, report: &mut ParityReport, executed: bool, limits: &Limits) {
        let undecided_margin = limits.undecided_margin.as_ref().map_or(0.0, |limit| limit.limit);
        report.conversion = Some(self.conversion.finish(&self.positions, 0.0));
        if executed {
            report.implementation = Some(self.implementation.finish(&self.positions, undecided_margin));
            report.total = Some(self.total.finish(&self.positions, 0.0));
        }
        if let (Some(reference), Some(own_float)) =
            (self.reference_perplexity.value(), self.dequantized_perplexity.value())
        {
            let tokens = self.reference_perplexity.tokens();
            let candidate = self.executed_perplexity.value();
            report.perplexity = Some(PerplexityReport { tokens, reference, own_float, candidate });
        }
        if let Some(at) = self.first_non_finite.and_then(|index| self.positions.get(index)) {
            report.findings.push(Finding {
                scope: "implementation".into(),
                layer: None,
                class: "logits".into(),
                tensor: None,
                message: format!(
                    "the candidate's logits hold NaN or infinities from position {} of prompt `{}` on",
                    at.position, at.prompt
                ),
            });
        }
        report.worst_position = self.worst;
        report.states = self.states.into_values().collect();
    }
}

/// Logits of position `index`; empty where the model returned too few, which the comparison then reports.
fn row(logits: &[f32], index: usize, vocab: usize) -> &[f32] {
    logits.get(index * vocab..(index + 1) * vocab).unwrap_or(&[])
}
