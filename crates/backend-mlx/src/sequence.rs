//! One sequence: a handle whose state lives on MLX's thread.

use std::sync::Arc;

use q35_inference::{LogitsFor, Observer, RecurrentState, RunError, Sequence, Snapshot};

use crate::engine::to_host;
use crate::forward::{LayerState, State};
use crate::model::{MlxBackendError, Shared};
use crate::snapshot::{restore, saved};

/// Tokens computed between two looks at the observer's wish to stop, and the grid of prefill.
pub(crate) const PIECE: usize = 64;

pub(crate) struct MlxSequence {
    shared: Arc<Shared>,
    id: u64,
    position: usize,
    max_context: usize,
}

impl MlxSequence {
    pub fn start(shared: Arc<Shared>, id: u64, max_context: usize) -> Result<Self, RunError> {
        let sequence = Self { shared, id, position: 0, max_context };
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

    fn checked(&self, ids: &[u32]) -> Result<(), RunError> {
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

    fn extend(&mut self, ids: &[u32], rows: LogitsFor, observer: &mut dyn Observer) -> Result<(), RunError> {
        self.checked(ids)?;
        let (watch, id, vocab) = (observer.wants_hidden(), self.id, self.shared.config.vocab_size);
        let before = self.position;
        let mut rest = ids;
        while !rest.is_empty() {
            if observer.cancelled() {
                return Err(RunError::Cancelled);
            }
            // Pieces end on the grid of absolute positions, so that a prompt may be cut anywhere on it.
            let (piece, later) = rest.split_at(rest.len().min(PIECE - self.position % PIECE));
            let wanted =
                if rows == LogitsFor::LastToken && !later.is_empty() { LogitsFor::None } else { rows };
            let tokens = piece.to_vec();
            let produced = self.shared.worker.run(move |engine| engine.advance(id, &tokens, wanted, watch));
            let produced = produced.inspect_err(|_| self.position = before)?;
            for (site, values) in &produced.hidden {
                observer.hidden(*site, self.position, values);
            }
            let first =
                if wanted == LogitsFor::AllTokens { self.position } else { self.position + piece.len() - 1 };
            for (row, values) in produced.logits.chunks_exact(vocab).enumerate() {
                observer.logits(first + row, values);
            }
            self.position += piece.len();
            rest = later;
        }
        Ok(())
    }

    fn snapshot(&self) -> Result<Snapshot, RunError> {
        let tensors = self.with_state(saved)?;
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
        // An empty state is made of zeros alone; if even that fails, the next call reports it.
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
