//! A sequence of the reference.

use std::sync::Arc;

use candle_core::{DType, Result as CandleResult, Tensor};
use q35_inference::{
    HiddenStateAt, LogitsFor, Observer, RecurrentState, RunError, Sequence, Snapshot, SnapshotTensor,
    StateType,
};

use crate::delta_rule::CHUNK;
use crate::error::run_error;
use crate::loaded::Loaded;
use crate::ops::{project, rms_norm};
use crate::qwen3_5::{KeyValueCache, LayerState, LinearState, RotaryEmbedding};
use crate::tap::no_taps;

/// Tokens of a prefill chunk: enough for efficient matrix products, few enough to limit scratch memory.
pub(crate) const PREFILL_CHUNK: usize = 4 * CHUNK;

/// Limit of logits in memory.
const MAX_LOGITS: usize = 1 << 24;

/// Name of the snapshot layout.
const LAYOUT: &str = "reference-1";

pub(crate) struct ReferenceSequence {
    model: Arc<Loaded>,
    states: Vec<LayerState>,
    position: usize,
    max_context: usize,
}

impl ReferenceSequence {
    pub(crate) fn new(model: Arc<Loaded>, max_context: usize) -> Self {
        let states = model.empty_states.clone();
        Self { model, states, position: 0, max_context }
    }

    /// Processes one chunk of tokens; the sequence changes only on success.
    fn forward_chunk(
        &mut self,
        ids: &[u32],
        logits: LogitsFor,
        hidden: bool,
        observer: &mut dyn Observer,
    ) -> Result<(), RunError> {
        let model = self.model.clone();
        let config = &model.config;
        let (start, tokens) = (self.position, ids.len());
        let show = |site: HiddenStateAt, x: &Tensor, observer: &mut dyn Observer| -> Result<(), RunError> {
            if hidden {
                let rows = x.flatten_all().and_then(|x| x.to_vec1::<f32>()).map_err(run_error)?;
                observer.hidden(site, start, &rows);
            }
            Ok(())
        };
        // Clones share storage. Entries that a cancelled or failed chunk wrote into a cache lie behind the position.
        let mut states = self.states.clone();
        let rotation = RotaryEmbedding::new(config, start, tokens, &model.device).map_err(run_error)?;
        let mut x = embed(&model, ids).map_err(run_error)?;
        show(HiddenStateAt::Embedding, &x, observer)?;
        for (index, (layer, state)) in model.layers.iter().zip(&mut states).enumerate() {
            if observer.cancelled() {
                return Err(RunError::Cancelled);
            }
            if let LayerState::Full(cache) = state {
                cache.grow(config, start, start + tokens, self.max_context).map_err(run_error)?;
            }
            let mixed = layer.mix(&x, config, &rotation, start, state).map_err(run_error)?;
            show(HiddenStateAt::AfterAttention(index), &mixed, observer)?;
            x = layer.mlp(&mixed, config, &mut no_taps).map_err(run_error)?;
            show(HiddenStateAt::AfterMlp(index), &x, observer)?;
        }
        let wanted = match logits {
            LogitsFor::None => 0,
            LogitsFor::LastToken => 1,
            LogitsFor::AllTokens => tokens,
        };
        if hidden || wanted > 0 {
            let x = rms_norm(&x, &model.norm, config.rms_norm_eps).map_err(run_error)?;
            show(HiddenStateAt::FinalNorm, &x, observer)?;
            let x = x.squeeze(0).and_then(|x| x.narrow(0, tokens - wanted, wanted)).map_err(run_error)?;
            emit_logits(&model, &x, start + tokens - wanted, observer).map_err(run_error)?;
        }
        self.states = states;
        self.position += tokens;
        Ok(())
    }

    fn snapshot_error(&self, found: impl Into<String>) -> RunError {
        let expected =
            format!("layout {LAYOUT}, {} layers, at most {} tokens", self.states.len(), self.max_context);
        RunError::Snapshot { expected, found: found.into() }
    }
}

/// Splits a recurrent state into two f32 tensors, stacked as [2, ..]: the rounded values and the rounding errors.
fn split_f64(state: &Tensor) -> CandleResult<Tensor> {
    let rounded = state.to_dtype(DType::F32)?;
    let error = (state - rounded.to_dtype(state.dtype())?)?.to_dtype(DType::F32)?;
    Tensor::stack(&[rounded, error], 0)
}

/// Inverse of [`split_f64`].
fn join_f64(parts: &Tensor, dtype: DType) -> CandleResult<Tensor> {
    parts.get(0)?.to_dtype(dtype)? + parts.get(1)?.to_dtype(dtype)?
}

/// Looks up the embeddings [1, tokens, hidden].
fn embed(model: &Loaded, ids: &[u32]) -> CandleResult<Tensor> {
    model.embedding.index_select(&Tensor::new(ids, &model.device)?, 0)?.unsqueeze(0)
}

/// Passes the logits of normalised `x` [rows, hidden] to `observer`, computing a limited number of them at once.
fn emit_logits(model: &Loaded, x: &Tensor, position: usize, observer: &mut dyn Observer) -> CandleResult<()> {
    let vocab = model.config.vocab_size;
    let (chunk, rows) = ((MAX_LOGITS / vocab).max(1), x.dim(0)?);
    for start in (0..rows).step_by(chunk) {
        let logits = project(&x.narrow(0, start, chunk.min(rows - start))?.contiguous()?, &model.head)?;
        let logits = logits.flatten_all()?.to_vec1::<f32>()?;
        for (index, row) in logits.chunks_exact(vocab).enumerate() {
            observer.logits(position + start + index, row);
        }
    }
    Ok(())
}

impl Sequence for ReferenceSequence {
    fn position(&self) -> usize {
        self.position
    }

    fn max_context(&self) -> usize {
        self.max_context
    }

    fn extend(
        &mut self,
        ids: &[u32],
        logits: LogitsFor,
        observer: &mut dyn Observer,
    ) -> Result<(), RunError> {
        let vocab_size = self.model.config.vocab_size;
        if let Some(at) = ids.iter().position(|id| *id as usize >= vocab_size) {
            return Err(RunError::Token { id: ids[at], position: self.position + at, vocab_size });
        }
        let needed = self.position + ids.len();
        if needed > self.max_context {
            return Err(RunError::ContextFull { needed, max_context: self.max_context });
        }
        let hidden = observer.wants_hidden();
        let before = (self.states.clone(), self.position);
        let mut rest = ids;
        while !rest.is_empty() {
            if observer.cancelled() {
                return Err(RunError::Cancelled);
            }
            // Chunks end at multiples of the delta rule's chunk, so that a prompt is split alike wherever earlier calls
            // ended.
            let to_boundary = PREFILL_CHUNK - self.position % CHUNK;
            let (chunk, after) = rest.split_at(rest.len().min(to_boundary));
            let chunk_logits =
                if logits == LogitsFor::LastToken && !after.is_empty() { LogitsFor::None } else { logits };
            if let Err(error) = self.forward_chunk(chunk, chunk_logits, hidden, observer) {
                if !matches!(error, RunError::Cancelled) {
                    (self.states, self.position) = before;
                }
                return Err(error);
            }
            rest = after;
        }
        Ok(())
    }

    fn snapshot(&self) -> Result<Snapshot, RunError> {
        let mut tensors = Vec::with_capacity(2 * self.states.len());
        let mut push = |index: usize, part: &str, tensor: &Tensor| -> Result<(), RunError> {
            let values = tensor.flatten_all().and_then(|t| t.to_vec1::<f32>()).map_err(run_error)?;
            tensors.push(SnapshotTensor {
                name: format!("layers.{index}.{part}"),
                dtype: StateType::F32,
                shape: tensor.dims().to_vec(),
                data: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            });
            Ok(())
        };
        for (index, state) in self.states.iter().enumerate() {
            match state {
                LayerState::Linear(state) => {
                    push(index, "conv", &state.conv)?;
                    push(index, "recurrent", &split_f64(&state.recurrent).map_err(run_error)?)?;
                }
                LayerState::Full(cache) => {
                    push(index, "keys", &cache.keys.narrow(1, 0, self.position).map_err(run_error)?)?;
                    push(index, "values", &cache.values.narrow(1, 0, self.position).map_err(run_error)?)?;
                }
            }
        }
        Ok(Snapshot { position: self.position, layout: LAYOUT.into(), tensors })
    }

    fn restore(&mut self, snapshot: &Snapshot) -> Result<(), RunError> {
        if snapshot.layout != LAYOUT {
            return Err(self.snapshot_error(format!("layout {}", snapshot.layout)));
        }
        if snapshot.position > self.max_context {
            return Err(self.snapshot_error(format!("{} tokens", snapshot.position)));
        }
        let device = &self.model.device;
        let read = |index: usize, part: &str, shape: &[usize]| -> Result<Tensor, RunError> {
            let name = format!("layers.{index}.{part}");
            let tensor =
                snapshot.tensor(&name).ok_or_else(|| self.snapshot_error(format!("no tensor `{name}`")))?;
            let bytes = 4 * shape.iter().product::<usize>();
            if tensor.dtype != StateType::F32 || tensor.shape != shape || tensor.data.len() != bytes {
                return Err(self.snapshot_error(format!("`{name}` {:?} {:?}", tensor.dtype, tensor.shape)));
            }
            let (words, _) = tensor.data.as_chunks::<4>();
            let values: Vec<f32> = words.iter().map(|word| f32::from_le_bytes(*word)).collect();
            Tensor::from_vec(values, shape, device).map_err(run_error)
        };
        let mut states = self.model.empty_states.clone();
        for (index, state) in states.iter_mut().enumerate() {
            match state {
                LayerState::Linear(state) => {
                    let parts = [&[2], state.recurrent.dims()].concat();
                    let recurrent = read(index, "recurrent", &parts)?;
                    let recurrent = join_f64(&recurrent, state.recurrent.dtype()).map_err(run_error)?;
                    *state = LinearState { conv: read(index, "conv", state.conv.dims())?, recurrent };
                }
                LayerState::Full(cache) => {
                    let config = &self.model.config;
                    let shape = [config.num_key_value_heads, snapshot.position, config.head_dim];
                    *cache = KeyValueCache {
                        keys: read(index, "keys", &shape)?,
                        values: read(index, "values", &shape)?,
                    };
                }
            }
        }
        self.states = states;
        self.position = snapshot.position;
        Ok(())
    }

    fn reset(&mut self) {
        for (state, empty) in self.states.iter_mut().zip(&self.model.empty_states) {
            if let LayerState::Linear(_) = state {
                *state = empty.clone();
            }
        }
        self.position = 0;
    }

    fn cache_bytes(&self) -> u64 {
        self.states.iter().map(LayerState::bytes).sum()
    }

    /// candle frees its scratch memory after every operation.
    fn scratch_bytes(&self) -> u64 {
        0
    }

    fn recurrent_states(&self) -> Result<Vec<RecurrentState>, RunError> {
        let states = self.states.iter().enumerate().filter_map(|(layer, state)| match state {
            LayerState::Linear(state) => Some((layer, &state.recurrent)),
            LayerState::Full(_) => None,
        });
        states
            .map(|(layer, state)| {
                let values = state
                    .flatten_all()
                    .and_then(|s| s.to_dtype(DType::F32)?.to_vec1::<f32>())
                    .map_err(run_error)?;
                Ok(RecurrentState { layer, values })
            })
            .collect()
    }
}
