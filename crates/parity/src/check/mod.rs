//! The check of a candidate, stage by stage.

mod diagnosing;
mod job;
mod judging;
mod options;
mod reference_greedy;
mod running;

use q35_inference::CancelToken;

pub use options::{Candidate, CheckOptions, Source};

use crate::diagnosis::config_findings;
use crate::{Check, Limit, Limits, ParityError, ParityReport, Progress, Prompt, Thresholds, compare_configs};
use job::Job;

/// Compares `candidate` with `source` over `prompts`.
///
/// # Errors
/// Something could not be read, built or run; the two are different models; a saved reference pass is stale; `cancel`
/// was used. A candidate outside its limits is a [`ParityReport`] that has not passed.
#[allow(clippy::too_many_arguments)]
pub fn check(
    source: &Source<'_>,
    candidate: &Candidate<'_>,
    prompts: &[Prompt],
    thresholds: &Thresholds,
    mut options: CheckOptions,
    cancel: &CancelToken,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<ParityReport, ParityError> {
    let saved = options.use_reference.take();
    let no_limits = Limits::default();
    let limits = thresholds.implementation_limits(candidate.activations.key()).unwrap_or(&no_limits);
    let job = Job { source, candidate, prompts, options: &options, limits, thresholds, cancel, progress };
    let mut report = job.empty_report();
    report.config = compare_configs(source.weights.config(), candidate.weights.config())?;
    report.findings.extend(config_findings(&report.config));
    let same_config = Limit { limit: 0.0, because: "a conversion changes no setting of the model".into() };
    report.checks.push(Check::at_most("config.differences", report.config.len() as f64, &same_config));
    if options.weights {
        job.compare_weights(&mut report)?;
    }
    let readable = report.weights.as_ref().is_none_or(|check| !check.tensors.iter().any(|t| t.unreadable));
    if options.run && readable {
        if prompts.is_empty() {
            return Err(ParityError::EmptySuite);
        }
        let continuations = job.generate_continuations(&mut report)?;
        let reference = job.reference_pass(saved, &continuations, &mut report)?;
        let dequantized = job.dequantized_pass(&continuations, &mut report)?;
        job.compare_logits(&reference, &dequantized, &mut report)?;
        job.compare_greedy(&reference, &dequantized, &continuations, &mut report)?;
        job.check_consistency(&mut report)?;
        job.judge(&mut report);
        job.grade(&mut report);
        job.diagnose(&mut report)?;
    }
    report.passed = report.checks.iter().all(|check| check.passed);
    Ok(report)
}
