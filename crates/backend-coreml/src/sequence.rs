//! [`Sequence`] over the packages of a [`CoreMlModel`](crate::CoreMlModel).

use std::collections::BTreeMap;
use std::sync::Arc;

use q35_architecture::LayerKind;
use q35_inference::{HiddenStateAt, LogitsFor, Observer, RecurrentState, RunError, Sequence, Snapshot};

use crate::predictor::{Call, Session};
use crate::shared::Shared;
use crate::snapshots::{load_cache, save_cache};
use crate::stage::{Mask, Stage, TokenInput};
use crate::{PredictError, Tensor};

/// Additive mask value of positions that must not be attended to; finite in fp16.
const MASKED: f32 = -1e4;

pub(crate) struct CoreMlSequence {
    shared: Arc<Shared>,
    max_context: usize,
    position: usize,
    /// One session per predictor.
    sessions: Vec<Box<dyn Session>>,
    /// Index of the session that holds the latest caches.
    current: usize,
    /// True after a failed prediction: the states are undefined.
    broken: bool,
}

fn backend_error(error: PredictError) -> RunError {
    RunError::Backend { backend: "Core ML package", message: error.to_string() }
}

impl CoreMlSequence {
    pub(crate) fn new(shared: Arc<Shared>, max_context: usize) -> Result<Self, RunError> {
        let cache_inputs: Vec<_> = shared.decode.caches.iter().map(|cache| cache.input.clone()).collect();
        let sessions = shared.predictors.iter().map(|predictor| predictor.session(&cache_inputs));
        let sessions = sessions.collect::<Result<_, _>>().map_err(backend_error)?;
        let current = shared.decode.predictor;
        Ok(Self { shared, max_context, position: 0, sessions, current, broken: false })
    }

    /// Current value of a cache or state.
    pub(crate) fn cache(&self, name: &str) -> Result<Tensor, PredictError> {
        self.sessions[self.current].state(name)
    }

    /// Processes `ids` (at most the stage's number of tokens) and returns the logits [vocab] of the last.
    fn predict(
        &mut self,
        stage: &Stage,
        ids: &[u32],
        observer: &mut dyn Observer,
    ) -> Result<Vec<f32>, PredictError> {
        let shared = Arc::clone(&self.shared);
        if self.current != stage.predictor {
            // Split packages: the caches are copied to the other package's session.
            for port in stage.persistent() {
                let value = self.sessions[self.current].state(&port.name)?;
                self.sessions[stage.predictor].set_state(&port.name, value)?;
            }
            self.current = stage.predictor;
        }
        let mut inputs = BTreeMap::new();
        match &stage.token_input {
            TokenInput::Ids(name) => {
                let mut padded: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
                padded.resize(stage.tokens, 0);
                inputs.insert(name.clone(), Tensor::int(&[1, stage.tokens], padded));
            }
            TokenInput::Embeddings(name) => {
                let rows = shared.embedding.rows(ids, stage.tokens, shared.config.hidden_size)?;
                inputs.insert(name.clone(), rows);
            }
        }
        match &stage.mask {
            Mask::Tokens(port) => {
                let real = (0..stage.tokens).map(|i| i32::from(i < ids.len())).collect();
                inputs.insert(port.name.clone(), Tensor::int(&port.ty.shape, real));
            }
            Mask::Context(port) => {
                let mask_value = |i: usize| if i <= self.position { 0.0 } else { MASKED };
                let mask = (0..port.ty.count()).map(mask_value).collect();
                inputs.insert(port.name.clone(), Tensor::float(&port.ty.shape, mask));
            }
            Mask::None => {}
        }
        if let Some(port) = &stage.position {
            inputs.insert(
                port.name.clone(),
                Tensor::int(&port.ty.shape, vec![self.position as i32; port.ty.count()]),
            );
        }
        let call = Call { function: &stage.function, inputs, caches: &stage.caches };
        let (position, hidden_size) = (self.position, shared.config.hidden_size);
        let session = &mut self.sessions[stage.predictor];
        let outputs = if observer.wants_hidden() && shared.predictors[stage.predictor].can_watch() {
            let mut watch = |name: &str, tensor: &Tensor| {
                if let (Some(location), Some(rows)) = (hidden_state_at(name), tensor.floats()) {
                    // A value of one row belongs to the last token.
                    let last_only = rows.len() == hidden_size;
                    let real = if last_only { hidden_size } else { ids.len() * hidden_size };
                    let from = if last_only { position + ids.len() - 1 } else { position };
                    if let Some(real) = rows.get(..real) {
                        observer.hidden(location, from, real);
                    }
                }
            };
            session.predict(call, Some(&mut watch))?
        } else {
            session.predict(call, None)?
        };
        let logits = outputs.get("logits").and_then(Tensor::floats).map(<[f32]>::to_vec);
        logits.ok_or_else(|| PredictError::Framework("no output `logits`".to_owned()))
    }

    /// The function for the next chunk, and the number of the `remaining` tokens that it processes.
    fn next_stage(&self, remaining: usize, logits_for: LogitsFor) -> (Stage, usize) {
        let Shared { prefill, decode, context, .. } = &*self.shared;
        match prefill {
            // A chunk must fit the caches with its padding, and returns the logits of its last token only.
            Some(prefill)
                if logits_for != LogitsFor::AllTokens
                    && remaining > 1
                    && self.position + prefill.tokens <= *context =>
            {
                (prefill.clone(), remaining.min(prefill.tokens))
            }
            _ => (decode.clone(), remaining.min(decode.tokens)),
        }
    }
}

/// The hidden state that a value of the program holds, by the names that `q35-format-coreml` writes.
fn hidden_state_at(name: &str) -> Option<HiddenStateAt> {
    match name {
        "embedded" => return Some(HiddenStateAt::Embedding),
        "final_norm" => return Some(HiddenStateAt::FinalNorm),
        _ => {}
    }
    let (index, kind) = name.strip_prefix("layers_")?.split_once('_')?;
    let index = index.parse().ok()?;
    match kind {
        "mixed" => Some(HiddenStateAt::AfterAttention(index)),
        "output" => Some(HiddenStateAt::AfterMlp(index)),
        _ => None,
    }
}

impl Sequence for CoreMlSequence {
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
        let vocab_size = self.shared.config.vocab_size;
        if let Some(at) = ids.iter().position(|&id| id as usize >= vocab_size) {
            return Err(RunError::Token { id: ids[at], position: self.position + at, vocab_size });
        }
        let needed = self.position + ids.len();
        if needed > self.max_context {
            return Err(RunError::ContextFull { needed, max_context: self.max_context });
        }
        if self.broken {
            let message =
                "an earlier call failed half-way; reset the sequence or restore a snapshot".to_owned();
            return Err(RunError::Backend { backend: "Core ML package", message });
        }
        let (start, mut rest) = (self.position, ids);
        while !rest.is_empty() {
            if observer.cancelled() {
                return Err(RunError::Cancelled);
            }
            let (stage, count) = self.next_stage(rest.len(), logits_for);
            let (chunk, tail) = rest.split_at(count);
            let logits = match self.predict(&stage, chunk, observer) {
                Ok(logits) => logits,
                Err(error) => {
                    (self.broken, self.position) = (true, start);
                    return Err(backend_error(error));
                }
            };
            self.position += count;
            rest = tail;
            if logits_for == LogitsFor::AllTokens || (logits_for == LogitsFor::LastToken && rest.is_empty()) {
                observer.logits(self.position - 1, &logits);
            }
        }
        Ok(())
    }

    fn snapshot(&self) -> Result<Snapshot, RunError> {
        let mut tensors = Vec::new();
        for port in self.shared.decode.persistent() {
            let value = self.cache(&port.name).map_err(backend_error)?;
            tensors.push(save_cache(port, &value, self.position));
        }
        Ok(Snapshot { position: self.position, layout: self.shared.layout(), tensors })
    }

    fn restore(&mut self, snapshot: &Snapshot) -> Result<(), RunError> {
        let misfit = |expected: String, found: String| RunError::Snapshot { expected, found };
        let layout = self.shared.layout();
        if snapshot.layout != layout {
            return Err(misfit(layout, snapshot.layout.clone()));
        }
        if snapshot.position > self.max_context {
            return Err(misfit(
                format!("at most {} tokens", self.max_context),
                format!("{}", snapshot.position),
            ));
        }
        // All tensors are read before the first state is replaced, so that a bad snapshot changes nothing.
        let shared = Arc::clone(&self.shared);
        let mut values = Vec::new();
        for port in shared.decode.persistent() {
            let found = snapshot.tensor(&port.name);
            let value = found.and_then(|tensor| load_cache(port, tensor, snapshot.position));
            values.push(value.ok_or_else(|| {
                let found = found.map_or("nothing".to_owned(), |t| format!("{:?} {:?}", t.dtype, t.shape));
                misfit(format!("`{}` as {}", port.name, port.ty), found)
            })?);
        }
        self.broken = false;
        for (port, value) in shared.decode.persistent().zip(values) {
            if let Err(error) = self.sessions[self.current].set_state(&port.name, value) {
                self.broken = true;
                return Err(backend_error(error));
            }
        }
        self.position = snapshot.position;
        Ok(())
    }

    fn reset(&mut self) {
        self.position = 0;
        self.broken = self.sessions.iter_mut().any(|session| session.reset().is_err());
    }

    fn cache_bytes(&self) -> u64 {
        self.sessions.iter().map(|session| session.state_bytes()).sum()
    }

    fn scratch_bytes(&self) -> u64 {
        // Intermediate values exist only during a call.
        0
    }

    fn recurrent_states(&self) -> Result<Vec<RecurrentState>, RunError> {
        let config = &self.shared.config;
        let size = config.linear_num_value_heads * config.linear_key_head_dim * config.linear_value_head_dim;
        let mut values = Vec::new();
        let is_state = |name: &str| name.starts_with("recurrent_state");
        let mut ports: Vec<_> = self.shared.decode.persistent().filter(|port| is_state(&port.name)).collect();
        // Numeric order: `recurrent_state_10` follows `recurrent_state_9`.
        ports.sort_by_key(|port| (port.name.len(), port.name.clone()));
        for port in ports {
            let tensor = self.cache(&port.name).map_err(backend_error)?;
            values.extend_from_slice(tensor.floats().unwrap_or_default());
        }
        let layers: Vec<usize> = config.layers_of(LayerKind::LinearAttention).collect();
        if values.len() != layers.len() * size {
            let message = format!("{} elements of recurrent state for {} layers", values.len(), layers.len());
            return Err(RunError::Backend { backend: "Core ML package", message });
        }
        let states = layers.into_iter().zip(values.chunks_exact(size.max(1)));
        Ok(states.map(|(layer, values)| RecurrentState { layer, values: values.to_vec() }).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_states_are_found_by_name() {
        assert_eq!(hidden_state_at("embedded"), Some(HiddenStateAt::Embedding));
        assert_eq!(hidden_state_at("layers_12_mixed"), Some(HiddenStateAt::AfterAttention(12)));
        assert_eq!(hidden_state_at("layers_0_output"), Some(HiddenStateAt::AfterMlp(0)));
        assert_eq!(hidden_state_at("final_norm"), Some(HiddenStateAt::FinalNorm));
        assert_eq!(hidden_state_at("layers_x_output"), None);
        assert_eq!(hidden_state_at("layers_1_mlp_gate"), None);
    }
}
