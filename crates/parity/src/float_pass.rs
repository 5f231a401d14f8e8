//! What the float reference makes of prompts.
//!
//! Kept are the rows that enter the head, four kilobytes a position at 0.8 billion weights, and not the logits, which
//! are a megabyte a position: those are made of the rows when they are compared, a block at a time.

use std::ops::Range;

use q35_inference::{CancelToken, HiddenStateAt, RecurrentState, RunError, Weights};
use q35_reference::Device;
use q35_reference::layerwise::{self, Head, Watch};

use crate::rows::{Hidden, Who};
use crate::{ParityError, Prompt};

/// One prompt's part of a pass.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Passed {
    /// [scored positions, hidden]: what enters the head.
    pub(crate) rows: Vec<f32>,
    /// Recurrent states after the whole prompt; none in a pass that was saved.
    pub(crate) states: Vec<RecurrentState>,
}

/// The float reference's run over prompts.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct FloatPass {
    /// By prompt, in their order.
    pub(crate) prompts: Vec<Passed>,
    /// The residual stream over the beginning of the first prompt, if it was wanted.
    pub(crate) hidden: Hidden,
}

impl FloatPass {
    /// Runs `prompts` on `weights`; the residual stream of the first is watched over as many positions as `hidden`
    /// has. `advance` is told how many tokens of all are done.
    pub(crate) fn run(
        who: Who,
        weights: &dyn Weights,
        prompts: &[Prompt],
        hidden: Hidden,
        cancel: &CancelToken,
        advance: &dyn Fn(u64, u64),
    ) -> Result<Self, ParityError> {
        let tokens = prompts.iter().map(|prompt| prompt.ids.len() as u64).sum();
        let ids: Vec<&[u32]> = prompts.iter().map(|prompt| prompt.ids.as_slice()).collect();
        let mut watch = Watcher { hidden, cancel, tokens, advance };
        advance(0, tokens);
        let finished = layerwise::run(weights, Device::Cpu, &ids, &mut watch).map_err(failed(who))?;
        let width = weights.config().hidden_size;
        let passed = |(mut finished, prompt): (layerwise::Finished, &Prompt)| {
            finished.rows.drain(..prompt.scored_from * width);
            Passed { rows: finished.rows, states: finished.states }
        };
        let prompts = finished.into_iter().zip(prompts).map(passed).collect();
        Ok(Self { prompts, hidden: watch.hidden })
    }
}

/// Makes logits of a pass.
pub(crate) struct Logits<'a> {
    who: Who,
    pass: &'a FloatPass,
    head: Head<'a>,
    width: usize,
}

impl<'a> Logits<'a> {
    pub(crate) fn new(who: Who, pass: &'a FloatPass, weights: &'a dyn Weights) -> Result<Self, ParityError> {
        let head = Head::new(weights, Device::Cpu).map_err(failed(who))?;
        Ok(Self { who, pass, head, width: weights.config().hidden_size })
    }

    /// Of the prompt with that index at `scored` of its scored positions: [n, vocab].
    pub(crate) fn of(&self, prompt: usize, scored: Range<usize>) -> Result<Vec<f32>, ParityError> {
        let rows = &self.pass.prompts[prompt].rows[scored.start * self.width..scored.end * self.width];
        self.head.logits(rows).map_err(failed(self.who))
    }
}

fn failed(who: Who) -> impl Fn(RunError) -> ParityError {
    move |source| match source {
        RunError::Cancelled => ParityError::Cancelled,
        source => ParityError::Float { who: who.words(), source },
    }
}

struct Watcher<'a> {
    hidden: Hidden,
    cancel: &'a CancelToken,
    tokens: u64,
    advance: &'a dyn Fn(u64, u64),
}

impl Watch for Watcher<'_> {
    fn wants_hidden(&self, sequence: usize) -> bool {
        sequence == 0 && self.hidden.positions > 0
    }

    fn hidden(&mut self, _sequence: usize, site: HiddenStateAt, rows: &[f32]) {
        self.hidden.put(site.into(), 0, rows);
    }

    fn layers_done(&mut self, done: usize, of: usize) {
        (self.advance)(self.tokens * done as u64 / of as u64, self.tokens);
    }

    fn cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }
}
