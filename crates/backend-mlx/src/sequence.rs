//! [`Sequence`]: a handle to a state on the worker thread.

use std::sync::Arc;

use q35_inference::{LogitsFor, Observer, RecurrentState, RunError, Sequence, Snapshot};

use crate::error::MlxBackendError;
use crate::host::to_host;
use crate::shared::Shared;
use crate::snapshot::{restore, save};
use crate::state::{LayerState, State};

pub(crate) struct MlxSequence {
    shared: Arc<Shared>,
    id: u64,
    position: usize,
    max_context: usize,
}

impl MlxSequence {
    pub fn start(shared: Arc<Shared>, max_context: usize) -> Result<Self, RunError> {
        let sequence = Self { id: shared.new_sequence_id(), shared, position: 0, max_context };
        sequence.set_empty()?;
        Ok(sequence)
    }

    fn set_empty(&self) -> Result<(), MlxBackendError> {
        let id = self.id;
        self.shared.worker.run(move |engine| {
            engine.set_state(id, engine.network.empty_state()?);
            Ok(())
        })
    }

    /// Runs `job` on this sequence's state.
    fn with_state<T: Send + 'static>(
        &self,
        job: impl FnOnce(&State) -> mlx_rs::error::Result<T> + Send + 'static,
    ) -> Result<T, MlxBackendError> {
        let id = self.id;
        self.shared.worker.run(move |engine| Ok(job(engine.state(id)?)?))
    }

    fn check_tokens(&self, ids: &[u32]) -> Result<(), RunError> {
        let vocab_size = self.shared.config.vocab_size;
        if let Some(at) = ids.iter().position(|id| *id as usize >= vocab_size) {
            return Err(RunError::Token { id: ids[at], position: self.position + at, vocab_size });
        }
        let needed = self.position + ids.len();
        if needed > self.max_context {
            return Err(RunError::ContextFull { needed, max_context: self.max_context });
        }
        Ok(())
    }
}

impl Sequence for MlxSequence {
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
        self.check_tokens(ids)?;
        let (observe_hidden, id, vocab) = (observer.wants_hidden(), self.id, self.shared.config.vocab_size);
        let (before, chunk_length) = (self.position, self.shared.chunk);
        let mut rest = ids;
        while !rest.is_empty() {
            if observer.cancelled() {
                return Err(RunError::Cancelled);
            }
            // Chunks end at absolute multiples of the chunk length, so that results do not depend on aligned cuts of a prompt.
            let (chunk, tail) = rest.split_at(rest.len().min(chunk_length - self.position % chunk_length));
            let chunk_logits = match logits_for {
                LogitsFor::LastToken if !tail.is_empty() => LogitsFor::None,
                other => other,
            };
            let tokens = chunk.to_vec();
            let output = self
                .shared
                .worker
                .run(move |engine| engine.advance(id, &tokens, chunk_logits, observe_hidden))
                .inspect_err(|_| self.position = before)?;
            for (location, values) in &output.hidden {
                observer.hidden(*location, self.position, values);
            }
            let first = match chunk_logits {
                LogitsFor::AllTokens => self.position,
                _ => self.position + chunk.len() - 1,
            };
            for (row, values) in output.logits.chunks_exact(vocab).enumerate() {
                observer.logits(first + row, values);
            }
            self.position += chunk.len();
            rest = tail;
        }
        Ok(())
    }

    fn snapshot(&self) -> Result<Snapshot, RunError> {
        let tensors = self.with_state(save)?;
        Ok(Snapshot { position: self.position, layout: self.shared.layout.clone(), tensors })
    }

    fn restore(&mut self, snapshot: &Snapshot) -> Result<(), RunError> {
        if snapshot.position > self.max_context {
            return Err(RunError::ContextFull { needed: snapshot.position, max_context: self.max_context });
        }
        let misfit = |expected: String, found: String| RunError::Snapshot { expected, found };
        let layout = &self.shared.layout;
        if snapshot.layout != *layout {
            return Err(misfit(format!("layout {layout}"), format!("layout {}", snapshot.layout)));
        }
        let (copy, id) = (snapshot.clone(), self.id);
        let outcome = self.shared.worker.run(move |engine| {
            let mut state = engine.network.empty_state()?;
            let outcome = restore(&mut state, &copy, engine.network.dtype)?;
            if outcome.is_ok() {
                engine.set_state(id, state);
            }
            Ok(outcome)
        })?;
        outcome.map_err(|missing| misfit(missing, "none such".to_owned()))?;
        self.position = snapshot.position;
        Ok(())
    }

    fn reset(&mut self) {
        // If the allocation of zeros fails, the next call reports it.
        drop(self.set_empty());
        self.position = 0;
    }

    fn cache_bytes(&self) -> u64 {
        self.with_state(|state| Ok(state.size_bytes() as u64)).unwrap_or(0)
    }

    fn scratch_bytes(&self) -> u64 {
        self.shared.worker.run(|_| Ok(mlx_rs::memory::cache_memory()? as u64)).unwrap_or(0)
    }

    fn recurrent_states(&self) -> Result<Vec<RecurrentState>, RunError> {
        let states = self.with_state(|state| {
            let linear = state.layers.iter().enumerate().filter_map(|(layer, state)| match state {
                LayerState::Linear { recurrent, .. } => Some((layer, recurrent)),
                LayerState::Full(_) => None,
            });
            let read = |(layer, values): (usize, &mlx_rs::Array)| {
                Ok(RecurrentState { layer, values: to_host(&values.swap_axes(1, 2)?)? })
            };
            linear.map(read).collect()
        });
        Ok(states?)
    }
}

impl Drop for MlxSequence {
    fn drop(&mut self) {
        let id = self.id;
        self.shared.worker.send(move |engine| engine.remove(id));
    }
}
