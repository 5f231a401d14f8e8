//! A sequence of tokens and its state.

use std::sync::Arc;

use q35_inference::{LogitsFor, Observer, RecurrentState, RunError, Sequence, Snapshot};

use crate::qwen3_5::Forward;
use crate::shared::Shared;
use crate::state::State;

/// Tokens per prefill chunk: enough to amortise unpacking the weights, few enough that scratch buffers stay at a few megabytes
/// and cancellation is prompt.
const CHUNK: usize = 64;

#[derive(Debug)]
pub(crate) struct CpuSequence {
    shared: Arc<Shared>,
    state: State,
    forward: Forward,
    position: usize,
    max_context: usize,
}

impl CpuSequence {
    pub(crate) fn new(shared: Arc<Shared>, max_context: usize) -> Self {
        let state = State::new(shared.config(), shared.mode);
        Self { shared, state, forward: Forward::default(), position: 0, max_context }
    }

    fn check(&self, ids: &[u32]) -> Result<(), RunError> {
        let vocab_size = self.shared.config().vocab_size;
        if let Some(at) = ids.iter().position(|&id| id as usize >= vocab_size) {
            return Err(RunError::Token { id: ids[at], position: self.position + at, vocab_size });
        }
        let needed = self.position + ids.len();
        if needed > self.max_context {
            return Err(RunError::ContextFull { needed, max_context: self.max_context });
        }
        Ok(())
    }
}

impl Sequence for CpuSequence {
    fn position(&self) -> usize {
        self.position
    }

    fn max_context(&self) -> usize {
        self.max_context
    }

    fn extend(
        &mut self,
        ids: &[u32],
        logits_for: LogitsFor,
        observer: &mut dyn Observer,
    ) -> Result<(), RunError> {
        self.check(ids)?;
        let wants_hidden = observer.wants_hidden();
        let chunks = ids.len().div_ceil(CHUNK);
        for (index, chunk) in ids.chunks(CHUNK).enumerate() {
            if observer.cancelled() {
                return Err(RunError::Cancelled);
            }
            let logits_for = match logits_for {
                LogitsFor::LastToken if index + 1 < chunks => LogitsFor::None,
                logits_for => logits_for,
            };
            let Self { shared, state, forward, position, .. } = self;
            forward.run_chunk(shared, state, *position, chunk, logits_for, wants_hidden, observer);
            self.position += chunk.len();
        }
        Ok(())
    }

    fn snapshot(&self) -> Result<Snapshot, RunError> {
        Ok(self.state.snapshot(self.position))
    }

    fn restore(&mut self, snapshot: &Snapshot) -> Result<(), RunError> {
        self.state.restore(snapshot, self.max_context)?;
        self.position = snapshot.position;
        Ok(())
    }

    fn reset(&mut self) {
        self.state.reset();
        self.position = 0;
    }

    fn cache_bytes(&self) -> u64 {
        self.state.size_bytes() as u64
    }

    fn scratch_bytes(&self) -> u64 {
        self.forward.size_bytes() as u64
    }

    fn recurrent_states(&self) -> Result<Vec<RecurrentState>, RunError> {
        Ok(self.state.recurrent_states())
    }
}
