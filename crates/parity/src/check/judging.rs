//! The stage that checks all metrics against their limits.

use q35_architecture::tensor_table;

use super::job::Job;
use crate::limit_checks::{check_execution, check_logits, check_sites};
use crate::{Fidelity, Limits, ParityReport, ReferenceTraits};

impl Job<'_> {
    /// Conversion limits of the candidate's encoding for this reference.
    pub(super) fn conversion_limits(&self, report: &ParityReport) -> Limits {
        let config = self.source.weights.config();
        let table = tensor_table(config);
        let weights = table.iter().map(|spec| spec.shape.iter().product::<usize>() as u64);
        let reference = ReferenceTraits {
            weights: weights.sum(),
            vocab_size: config.vocab_size,
            perplexity: report.perplexity.map(|perplexity| perplexity.reference),
        };
        self.thresholds.conversion_limits(&self.candidate.kind, reference).cloned().unwrap_or_default()
    }

    /// Grades the fidelity of the candidate: as executed or, if it is not, of its weights.
    pub(super) fn grade(&self, report: &mut ParityReport) {
        let Some(comparison) = report.total.as_ref().or(report.conversion.as_ref()) else { return };
        let limits = self.thresholds.fidelity();
        report.fidelity = Fidelity::new(comparison, report.perplexity.as_ref(), &report.greedy, limits);
    }

    /// Adds a check for every metric that has a limit.
    pub(super) fn judge(&self, report: &mut ParityReport) {
        let mut checks = Vec::new();
        let conversion_limits = self.conversion_limits(report);
        if let Some(comparison) = &report.implementation {
            check_logits("implementation", comparison, self.limits, &mut checks);
            check_sites("implementation", &report.implementation_sites, self.limits, &mut checks);
            // The limit is capped at the number of generated tokens, which the caller chose.
            let greedy = report.greedy.iter().map(|greedy| (greedy.same_as_own_float, greedy.tokens));
            let worst = greedy.min_by_key(|(same, tokens)| (*same as isize) - (*tokens as isize));
            check_execution(&report.states, &report.consistency, worst, self.limits, &mut checks);
        }
        if let Some(comparison) = &report.conversion {
            check_logits("conversion", comparison, &conversion_limits, &mut checks);
            check_sites("conversion", &report.conversion_sites, &conversion_limits, &mut checks);
        }
        if let Some(comparison) = &report.total {
            check_logits("total", comparison, &conversion_limits, &mut checks);
        }
        report.checks.extend(checks);
    }
}
