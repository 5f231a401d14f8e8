//! Metrics checked against their limits.

use serde::{Deserialize, Serialize};

use crate::report::{Comparison, StateReport};
use crate::{ConsistencyReport, Limit, Limits, SiteReport};

/// One metric and its limit.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Check {
    /// "implementation.mean_kl", "weights.tensors_outside".
    pub name: String,
    /// The measured value.
    pub value: f64,
    /// The limit.
    pub limit: f64,
    /// True if the value must not be below the limit, false if not above.
    pub at_least: bool,
    /// True if the value is within the limit.
    pub passed: bool,
    /// Reason for the limit.
    pub because: String,
}

impl Check {
    pub(crate) fn at_most(name: impl Into<String>, value: f64, limit: &Limit) -> Self {
        // NaN is never within a limit.
        let passed = value <= limit.limit;
        Self::new(name, value, limit, false, passed)
    }

    pub(crate) fn at_least(name: impl Into<String>, value: f64, limit: &Limit) -> Self {
        let passed = value >= limit.limit;
        Self::new(name, value, limit, true, passed)
    }

    fn new(name: impl Into<String>, value: f64, limit: &Limit, at_least: bool, passed: bool) -> Self {
        let because = limit.because.clone();
        Self { name: name.into(), value, limit: limit.limit, at_least, passed, because }
    }
}

/// Checks a comparison of logits.
pub(crate) fn check_logits(scope: &str, found: &Comparison, limits: &Limits, checks: &mut Vec<Check>) {
    let name = |what: &str| format!("{scope}.{what}");
    let largest = [
        ("mean_kl", found.kl.mean, &limits.mean_kl),
        ("p99_kl", found.kl.p99, &limits.p99_kl),
        ("max_kl", found.kl.max, &limits.max_kl),
    ];
    for (what, value, limit) in largest {
        checks.extend(limit.as_ref().map(|limit| Check::at_most(name(what), value, limit)));
    }
    let smallest = [
        ("top1_agreement", found.decided_agreement, &limits.top1_agreement),
        ("cosine_mean", found.cosine_mean, &limits.cosine_mean),
    ];
    for (what, value, limit) in smallest {
        checks.extend(limit.as_ref().map(|limit| Check::at_least(name(what), value, limit)));
    }
}

/// Checks the worst hidden state.
pub(crate) fn check_sites(scope: &str, sites: &[SiteReport], limits: &Limits, checks: &mut Vec<Check>) {
    if let (Some(limit), false) = (&limits.hidden_relative, sites.is_empty()) {
        let worst = sites.iter().map(|site| site.relative).fold(0.0, f64::max);
        checks.push(Check::at_most(format!("{scope}.hidden_relative"), worst, limit));
    }
}

/// Checks recurrent states, consistency and greedy tokens, which need an executed candidate. `greedy` is the number of
/// equal tokens and of all tokens.
pub(crate) fn check_execution(
    states: &[StateReport],
    consistency: &[ConsistencyReport],
    greedy: Option<(usize, usize)>,
    limits: &Limits,
    checks: &mut Vec<Check>,
) {
    if let (Some(limit), false) = (&limits.state_cosine, states.is_empty()) {
        let worst = states.iter().map(|state| state.cosine).fold(1.0, f64::min);
        checks.push(Check::at_least("implementation.state_cosine", worst, limit));
    }
    if let (Some(limit), false) = (&limits.consistency_kl, consistency.is_empty()) {
        let worst = consistency.iter().map(|way| way.mean_kl).fold(0.0, f64::max);
        checks.push(Check::at_most("implementation.consistency_kl", worst, limit));
    }
    if let (Some(limit), Some((same, tokens))) = (&limits.greedy_tokens, greedy) {
        let limit = Limit { limit: limit.limit.min(tokens as f64), because: limit.because.clone() };
        checks.push(Check::at_least("implementation.greedy_tokens", same as f64, &limit));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn not_a_number_is_outside_either_way() {
        let limit = Limit { limit: 1.0, because: String::new() };
        assert!(!Check::at_most("x", f64::NAN, &limit).passed);
        assert!(!Check::at_least("x", f64::NAN, &limit).passed);
        assert!(Check::at_most("x", 1.0, &limit).passed);
        assert!(Check::at_least("x", 1.0, &limit).passed);
    }
}
