//! The arguments of a check, shared by its stages.

use std::collections::BTreeMap;

use q35_inference::CancelToken;

use super::{Candidate, CheckOptions, Source};
use crate::runner::HiddenStates;
use crate::{Limits, ModelInfo, ParityReport, Progress, Prompt, SCHEMA_VERSION, Thresholds};

pub(super) struct Job<'a> {
    pub(super) source: &'a Source<'a>,
    pub(super) candidate: &'a Candidate<'a>,
    pub(super) prompts: &'a [Prompt],
    pub(super) options: &'a CheckOptions,
    /// Implementation limits of the candidate's arithmetic.
    pub(super) limits: &'a Limits,
    pub(super) thresholds: &'a Thresholds,
    pub(super) cancel: &'a CancelToken,
    pub(super) progress: &'a (dyn Fn(Progress) + Sync),
}

impl Job<'_> {
    /// A report with the identities of both models and no results.
    pub(super) fn empty_report(&self) -> ParityReport {
        let candidate = self.candidate;
        ParityReport {
            schema_version: SCHEMA_VERSION,
            tool: self.options.tool.clone(),
            date: self.options.date.clone(),
            passed: false,
            fidelity: None,
            required: self.options.require,
            reference: ModelInfo {
                name: self.source.name.clone(),
                description: "float reference, f32".into(),
                kind: "float".into(),
                execution: "f32".into(),
                recipe: None,
                hash: self.source.hash.clone(),
                size_bytes: None,
            },
            candidate: ModelInfo {
                name: candidate.name.clone(),
                description: candidate.model.map_or("not executed".into(), |model| model.describe()),
                kind: candidate.kind.clone(),
                execution: candidate.activations.key().into(),
                recipe: candidate.recipe.clone(),
                hash: None,
                size_bytes: candidate.size_bytes,
            },
            checks: Vec::new(),
            findings: Vec::new(),
            config: Vec::new(),
            weights: None,
            implementation: None,
            conversion: None,
            total: None,
            perplexity: None,
            prompts: Vec::new(),
            implementation_sites: Vec::new(),
            conversion_sites: Vec::new(),
            states: Vec::new(),
            consistency: Vec::new(),
            worst_position: None,
            greedy: Vec::new(),
            seconds: BTreeMap::new(),
        }
    }

    /// The first tokens of the first prompt: at most `tokens`, at least two.
    pub(super) fn probe_prompt(&self, tokens: usize) -> Prompt {
        let first = &self.prompts[0];
        let length = first.ids.len().min(tokens.max(2));
        Prompt::new(first.name.clone(), first.kind.clone(), first.ids[..length].to_vec())
    }

    /// An empty recording of hidden states, sized for the probe prompt.
    pub(super) fn probe_hidden_states(&self) -> HiddenStates {
        let positions = self.probe_prompt(self.options.probe_tokens).ids.len();
        HiddenStates::new(positions, self.source.weights.config().hidden_size)
    }
}
