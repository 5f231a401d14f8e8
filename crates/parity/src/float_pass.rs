//! The float reference over a list of prompts.
//!
//! A pass stores the vectors that enter the head, 4 kB a position at 0.8 billion weights. Logits, a megabyte a
//! position, are computed from them a block at a time when they are compared.

use std::ops::Range;

use q35_inference::{CancelToken, HiddenStateAt, RecurrentState, RunError, Weights};
use q35_reference::Device;
use q35_reference::layerwise::{self, Head, LayerwiseObserver};

use crate::runner::{HiddenStates, Participant};
use crate::{ParityError, Prompt};

/// The result of one prompt.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct PromptPass {
    /// Input of the head at the scored positions: [scored positions, hidden].
    pub(crate) head_inputs: Vec<f32>,
    /// Recurrent states after the whole prompt; empty in a pass read from a file.
    pub(crate) states: Vec<RecurrentState>,
}

/// The results of all prompts.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct FloatPass {
    /// In the order of the prompts.
    pub(crate) prompts: Vec<PromptPass>,
    /// Residual stream over the first positions of the first prompt; empty if it was not recorded.
    pub(crate) hidden: HiddenStates,
}

impl FloatPass {
    /// Runs `prompts` on `weights`. The residual stream of the first prompt is recorded over `hidden.positions`
    /// positions. `advance` receives the tokens computed so far and in all.
    pub(crate) fn run(
        participant: Participant,
        weights: &dyn Weights,
        prompts: &[Prompt],
        hidden: HiddenStates,
        cancel: &CancelToken,
        advance: &dyn Fn(u64, u64),
    ) -> Result<Self, ParityError> {
        let tokens = prompts.iter().map(|prompt| prompt.ids.len() as u64).sum();
        let ids: Vec<&[u32]> = prompts.iter().map(|prompt| prompt.ids.as_slice()).collect();
        let mut watch = PassObserver { hidden, cancel, tokens, advance };
        advance(0, tokens);
        let finished =
            layerwise::run(weights, Device::Cpu, &ids, &mut watch).map_err(float_error(participant))?;
        let width = weights.config().hidden_size;
        let prompt_pass = |(mut finished, prompt): (layerwise::SequenceOutput, &Prompt)| {
            finished.rows.drain(..prompt.scored_from * width);
            PromptPass { head_inputs: finished.rows, states: finished.states }
        };
        let prompts = finished.into_iter().zip(prompts).map(prompt_pass).collect();
        Ok(Self { prompts, hidden: watch.hidden })
    }
}

/// Computes the logits of a pass.
pub(crate) struct PassLogits<'a> {
    participant: Participant,
    pass: &'a FloatPass,
    head: Head<'a>,
    width: usize,
}

impl<'a> PassLogits<'a> {
    pub(crate) fn new(
        participant: Participant,
        pass: &'a FloatPass,
        weights: &'a dyn Weights,
    ) -> Result<Self, ParityError> {
        let head = Head::new(weights, Device::Cpu).map_err(float_error(participant))?;
        Ok(Self { participant, pass, head, width: weights.config().hidden_size })
    }

    /// Logits [scored.len(), vocab] of the prompt at index `prompt`; `scored` counts from its first scored position.
    pub(crate) fn compute(&self, prompt: usize, scored: Range<usize>) -> Result<Vec<f32>, ParityError> {
        let inputs =
            &self.pass.prompts[prompt].head_inputs[scored.start * self.width..scored.end * self.width];
        self.head.logits(inputs).map_err(float_error(self.participant))
    }
}

fn float_error(participant: Participant) -> impl Fn(RunError) -> ParityError {
    move |source| match source {
        RunError::Cancelled => ParityError::Cancelled,
        source => ParityError::Float { participant: participant.name(), source },
    }
}

/// Records hidden states of the first prompt and forwards progress.
struct PassObserver<'a> {
    hidden: HiddenStates,
    cancel: &'a CancelToken,
    tokens: u64,
    advance: &'a dyn Fn(u64, u64),
}

impl LayerwiseObserver for PassObserver<'_> {
    fn wants_hidden(&self, sequence: usize) -> bool {
        sequence == 0 && self.hidden.positions > 0
    }

    fn hidden(&mut self, _sequence: usize, site: HiddenStateAt, rows: &[f32]) {
        self.hidden.record(site, 0, rows);
    }

    fn layers_done(&mut self, done: usize, of: usize) {
        (self.advance)(self.tokens * done as u64 / of as u64, self.tokens);
    }

    fn cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }
}
