//! The stage that locates and explains a failure.

use std::time::Instant;

use super::job::Job;
use crate::diagnosis::{explain_execution, explanation_finding, site_finding};
use crate::hidden::first_faulty_site;
use crate::{Finding, ParityError, ParityReport};

/// Tokens on which known faults are tried.
const EXPLAINED_TOKENS: usize = 24;

impl Job<'_> {
    /// Adds findings for a failing run: the first faulty site, and a known fault that explains it.
    pub(super) fn diagnose(&self, report: &mut ParityReport) -> Result<(), ParityError> {
        let failed =
            |scope: &str| report.checks.iter().any(|check| !check.passed && check.name.starts_with(scope));
        let (implementation, conversion) = (failed("implementation."), failed("conversion."));
        if implementation {
            let begin = Instant::now();
            self.diagnose_implementation(report)?;
            report.seconds.insert("diagnosis".into(), begin.elapsed().as_secs_f64());
        }
        if conversion {
            let limit =
                self.conversion_limits(report).hidden_relative.as_ref().map_or(0.5, |limit| limit.limit);
            let faulty = first_faulty_site(&report.conversion_sites, limit, 4.0);
            report.findings.extend(site_finding("conversion", faulty, false));
        }
        Ok(())
    }

    fn diagnose_implementation(&self, report: &mut ParityReport) -> Result<(), ParityError> {
        let limit = self.limits.hidden_relative.as_ref().map_or(1e-3, |limit| limit.limit);
        let faulty = first_faulty_site(&report.implementation_sites, limit, 50.0);
        let part = faulty.map(|site| site.part.clone());
        let sites_compared = !report.implementation_sites.is_empty();
        let logits_differ = logits_differ(report);
        let location = site_finding("implementation", faulty, sites_compared && logits_differ);
        if let (true, Some(model)) = (self.options.explain && logits_differ, self.candidate.model) {
            let prompt = self.probe_prompt(self.options.probe_tokens.min(EXPLAINED_TOKENS));
            let explanation = explain_execution(
                self.candidate.weights,
                model,
                &prompt,
                part.as_deref().or(sites_compared.then_some("head")),
                self.cancel,
                self.progress,
            )?;
            report.findings.extend(
                explanation.map(|explanation| explanation_finding(self.candidate.weights, &explanation)),
            );
        }
        report.findings.extend(location);
        self.consistency_findings(report);
        Ok(())
    }

    /// One finding for each way of computing the same tokens that exceeds its limit.
    fn consistency_findings(&self, report: &mut ParityReport) {
        let Some(limit) = &self.limits.consistency_kl else { return };
        // NaN exceeds any limit.
        let exceeds = |kl: f64| kl.is_nan() || kl > limit.limit;
        for way in report.consistency.iter().filter(|way| exceeds(way.mean_kl)) {
            report.findings.push(Finding {
                scope: "implementation".into(),
                layer: None,
                class: "cache".into(),
                tensor: None,
                message: format!(
                    "the same tokens by {} have other logits: mean KL {:.2e}, largest difference {:.2e}",
                    way.way, way.mean_kl, way.max_abs_difference
                ),
            });
        }
    }
}

fn logits_differ(report: &ParityReport) -> bool {
    let failed = |name: &str| report.checks.iter().any(|check| !check.passed && check.name == name);
    ["mean_kl", "p99_kl", "max_kl", "hidden_relative"]
        .into_iter()
        .any(|metric| failed(&format!("implementation.{metric}")))
}
