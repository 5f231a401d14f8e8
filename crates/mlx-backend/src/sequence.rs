//! One sequence: a handle whose state lives on MLX's thread.

use std::sync::Arc;

use mlx_rs::{Array, Dtype};
use q35_model::{Observer, RecurrentState, Rows, RunError, Sequence, Snapshot, SnapshotTensor, StateType};

use crate::attention::KeyValueCache;
use crate::engine::{Engine, LayerState, State, to_host};
use crate::model::{MlxBackendError, Shared};

/// Tokens computed between two looks at the observer's wish to stop, and the grid of prefill.
pub(crate) const PIECE: usize = 64;

/// The layout of this backend's snapshots: everything f32, whatever the device computes in.
const LAYOUT: &str = "mlx-f32-1";

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
            let state = engine.empty_state()?;
            engine.sequences.insert(id, state);
            Ok(())
        })
    }

    /// Runs `job` on this sequence's state.
    fn with_state<T: Send + 'static>(
        &self,
        job: impl FnOnce(&State) -> mlx_rs::error::Result<T> + Send + 'static,
    ) -> Result<T, MlxBackendError> {
        let id = self.id;
        self.shared.worker.run(move |engine: &mut Engine| {
            let state = engine.sequences.get(&id).ok_or(MlxBackendError::Stopped)?;
            Ok(job(state)?)
        })
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

    fn extend(&mut self, ids: &[u32], rows: Rows, observer: &mut dyn Observer) -> Result<(), RunError> {
        self.checked(ids)?;
        let (watch, id, vocab) = (observer.wants_hidden(), self.id, self.shared.config.vocab_size);
        let before = (self.position, self.with_state(|state| Ok(state.clone()))?);
        let mut rest = ids;
        while !rest.is_empty() {
            if observer.cancelled() {
                return Err(RunError::Cancelled);
            }
            // Pieces end on the grid of absolute positions, so that a prompt may be cut anywhere on it.
            let (piece, later) = rest.split_at(rest.len().min(PIECE - self.position % PIECE));
            let wanted = if rows == Rows::Last && !later.is_empty() { Rows::None } else { rows };
            let tokens = piece.to_vec();
            let outcome = self.shared.worker.run(move |engine| {
                let state = engine.sequences.get(&id).ok_or(MlxBackendError::Stopped)?;
                let (next, produced) = engine.piece(state, &tokens, wanted, watch)?;
                engine.sequences.insert(id, next);
                Ok(produced)
            });
            let produced = match outcome {
                Ok(produced) => produced,
                Err(error) => {
                    let (position, state) = before;
                    self.position = position;
                    self.shared.worker.send(move |engine| drop(engine.sequences.insert(id, state)));
                    return Err(error.into());
                }
            };
            for (site, values) in &produced.hidden {
                observer.hidden(*site, self.position, values);
            }
            let first = if wanted == Rows::All { self.position } else { self.position + piece.len() - 1 };
            for (row, values) in produced.logits.chunks_exact(vocab).enumerate() {
                observer.logits(first + row, values);
            }
            self.position += piece.len();
            rest = later;
        }
        Ok(())
    }

    fn snapshot(&self) -> Result<Snapshot, RunError> {
        let tensors = self.with_state(|state| {
            let mut tensors = Vec::new();
            for (index, layer) in state.layers.iter().enumerate() {
                let named = match layer {
                    LayerState::Linear { conv, recurrent } => {
                        [("conv", conv.clone()), ("recurrent", recurrent.clone())]
                    }
                    LayerState::Full(cache) => {
                        let (keys, values) = cache.used()?;
                        [("keys", keys), ("values", values)]
                    }
                };
                for (name, array) in named {
                    tensors.push(SnapshotTensor {
                        name: format!("{name}.{index}"),
                        dtype: StateType::F32,
                        shape: array.shape().iter().map(|size| *size as usize).collect(),
                        data: to_host(&array)?.iter().flat_map(|value| value.to_le_bytes()).collect(),
                    });
                }
            }
            Ok(tensors)
        })?;
        Ok(Snapshot { position: self.position, layout: LAYOUT.to_owned(), tensors })
    }

    fn restore(&mut self, snapshot: &Snapshot) -> Result<(), RunError> {
        if snapshot.position > self.max_context {
            return Err(RunError::ContextFull { needed: snapshot.position, max_context: self.max_context });
        }
        let misfit = |expected: String, found: String| RunError::Snapshot { expected, found };
        if snapshot.layout != LAYOUT {
            return Err(misfit(format!("layout {LAYOUT}"), format!("layout {}", snapshot.layout)));
        }
        let (copy, id, position) = (snapshot.clone(), self.id, snapshot.position);
        let restored = self.shared.worker.run(move |engine| {
            let mut state = engine.empty_state()?;
            state.position = copy.position;
            for (index, layer) in state.layers.iter_mut().enumerate() {
                if let Err(missing) = fill(layer, index, &copy, engine.dtype)? {
                    return Ok(Err(missing));
                }
            }
            engine.sequences.insert(id, state);
            Ok(Ok(()))
        })?;
        restored.map_err(|missing| misfit(missing, "no such tensor".to_owned()))?;
        self.position = position;
        Ok(())
    }

    fn reset(&mut self) {
        // An empty state is made of zeros alone; if even that fails, the next call reports it.
        drop(self.set_empty());
        self.position = 0;
    }

    fn cache_bytes(&self) -> u64 {
        self.with_state(|state| Ok(state.layers.iter().map(LayerState::size_bytes).sum::<usize>() as u64))
            .unwrap_or(0)
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
            linear.map(|(layer, values)| Ok(RecurrentState { layer, values: to_host(values)? })).collect()
        });
        Ok(states?)
    }
}

impl Drop for MlxSequence {
    fn drop(&mut self) {
        let id = self.id;
        self.shared.worker.send(move |engine| drop(engine.sequences.remove(&id)));
    }
}

/// Puts a snapshot's tensors into a layer's empty state, or names what is missing.
fn fill(
    layer: &mut LayerState,
    index: usize,
    snapshot: &Snapshot,
    dtype: Dtype,
) -> Result<Result<(), String>, MlxBackendError> {
    let find = |name: &str, like: &[i32], free: Option<usize>| {
        let name = format!("{name}.{index}");
        let fits = |tensor: &&SnapshotTensor| {
            let same =
                |(axis, (have, want)): (usize, (&usize, &i32))| Some(axis) == free || *have == *want as usize;
            tensor.shape.len() == like.len() && tensor.shape.iter().zip(like).enumerate().all(same)
        };
        let tensor =
            snapshot.tensor(&name).filter(fits).ok_or(format!("tensor `{name}` of shape {like:?}"))?;
        let values: Vec<f32> =
            tensor.data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let shape: Vec<i32> = tensor.shape.iter().map(|size| *size as i32).collect();
        if values.len() != tensor.shape.iter().product::<usize>() {
            return Err(format!("tensor `{name}` with {} numbers", tensor.shape.iter().product::<usize>()));
        }
        Ok(Array::from_slice(&values, &shape))
    };
    let found = match layer {
        LayerState::Linear { conv, recurrent } => find("conv", conv.shape(), None)
            .and_then(|c| Ok((c, find("recurrent", recurrent.shape(), None)?))),
        LayerState::Full(cache) => find("keys", cache.keys.shape(), Some(2))
            .and_then(|k| Ok((k, find("values", cache.values.shape(), Some(2))?))),
    };
    let (first, second) = match found {
        Ok(pair) => pair,
        Err(missing) => return Ok(Err(missing)),
    };
    *layer = match layer {
        LayerState::Linear { .. } => LayerState::Linear { conv: first.as_dtype(dtype)?, recurrent: second },
        LayerState::Full(_) => {
            let length = first.dim(2);
            LayerState::Full(KeyValueCache {
                keys: first.as_dtype(dtype)?,
                values: second.as_dtype(dtype)?,
                length,
            })
        }
    };
    Ok(Ok(()))
}
