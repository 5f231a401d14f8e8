//! A growing sequence over the packages.

use std::collections::BTreeMap;
use std::sync::Arc;

use q35_architecture::LayerKind;
use q35_inference::{HiddenStateAt, LogitsFor, Observer, RecurrentState, RunError, Sequence, Snapshot};

use crate::forms::{Mask, Stage, TokenInput};
use crate::model::Parts;
use crate::predictor::{Call, Session};
use crate::snapshots::{restored, saved};
use crate::{PredictError, Tensor};

/// What a mask of the context holds for positions that must not be seen.
const FORBIDDEN: f32 = -1e4;

pub(crate) struct CoreMlSequence {
    parts: Arc<Parts>,
    max_context: usize,
    position: usize,
    /// One per predictor.
    sessions: Vec<Box<dyn Session>>,
    /// Whose session holds the caches as they are now.
    current: usize,
    /// A prediction failed half way, so the states are undefined.
    broken: bool,
}

/// A failure as the trait reports it.
fn backend(error: PredictError) -> RunError {
    RunError::Backend { backend: "Core ML package", message: error.to_string() }
}

impl CoreMlSequence {
    pub(crate) fn new(parts: Arc<Parts>, max_context: usize) -> Result<Self, RunError> {
        let kept: Vec<_> = parts.decode.carried.iter().map(|carried| carried.input.clone()).collect();
        let sessions =
            parts.predictors.iter().map(|p| p.session(&kept)).collect::<Result<_, _>>().map_err(backend)?;
        let current = parts.decode.predictor;
        Ok(Self { parts, max_context, position: 0, sessions, current, broken: false })
    }

    /// The value of a cache.
    pub(crate) fn cache(&self, name: &str) -> Result<Tensor, PredictError> {
        self.sessions[self.current].state(name)
    }

    /// Feeds `ids` (at most the stage's tokens) and gives the logits of the last.
    fn predict(
        &mut self,
        stage: &Stage,
        ids: &[u32],
        observer: &mut dyn Observer,
    ) -> Result<Vec<f32>, PredictError> {
        let parts = Arc::clone(&self.parts);
        if self.current != stage.predictor {
            // Split packages: the caches move to the session that needs them.
            for port in stage.memory() {
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
                let rows = parts.embedding.rows(ids, stage.tokens, parts.config.hidden_size)?;
                inputs.insert(name.clone(), rows);
            }
        }
        match &stage.mask {
            Mask::Tokens(port) => {
                let real = (0..stage.tokens).map(|i| i32::from(i < ids.len())).collect();
                inputs.insert(port.name.clone(), Tensor::int(&port.ty.shape, real));
            }
            Mask::Context(port) => {
                let seen = |i: usize| if i <= self.position { 0.0 } else { FORBIDDEN };
                let mask = (0..port.ty.count()).map(seen).collect();
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
        let call = Call { function: &stage.function, inputs, kept: &stage.carried };
        let (position, hidden_size) = (self.position, parts.config.hidden_size);
        let session = &mut self.sessions[stage.predictor];
        let outputs = if observer.wants_hidden() && parts.predictors[stage.predictor].can_watch() {
            let mut watch = |name: &str, tensor: &Tensor| {
                if let (Some(site), Some(rows)) = (site(name), tensor.floats()) {
                    // A value of one row belongs to the last token.
                    let last_only = rows.len() == hidden_size;
                    let real = if last_only { hidden_size } else { ids.len() * hidden_size };
                    let from = if last_only { position + ids.len() - 1 } else { position };
                    if let Some(real) = rows.get(..real) {
                        observer.hidden(site, from, real);
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

    /// The function for the next piece, and how many of `left` tokens it takes.
    fn next_stage(&self, left: usize, rows: LogitsFor) -> (Stage, usize) {
        match &self.parts.prefill {
            // A chunk must fit the caches whole, padding included, and gives the logits of its last token only.
            Some(prefill)
                if rows != LogitsFor::AllTokens
                    && left > 1
                    && self.position + prefill.tokens <= self.parts.context =>
            {
                (prefill.clone(), left.min(prefill.tokens))
            }
            _ => (self.parts.decode.clone(), left.min(self.parts.decode.tokens)),
        }
    }
}

/// The place in the model that a value's name stands for.
fn site(name: &str) -> Option<HiddenStateAt> {
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

    fn extend(&mut self, ids: &[u32], rows: LogitsFor, observer: &mut dyn Observer) -> Result<(), RunError> {
        let vocab_size = self.parts.config.vocab_size;
        if let Some(at) = ids.iter().position(|&id| id as usize >= vocab_size) {
            return Err(RunError::Token { id: ids[at], position: self.position + at, vocab_size });
        }
        let needed = self.position + ids.len();
        if needed > self.max_context {
            return Err(RunError::ContextFull { needed, max_context: self.max_context });
        }
        if self.broken {
            let message =
                "an earlier call failed half way; reset the sequence or restore a snapshot".to_owned();
            return Err(RunError::Backend { backend: "Core ML package", message });
        }
        let (start, mut rest) = (self.position, ids);
        while !rest.is_empty() {
            if observer.cancelled() {
                return Err(RunError::Cancelled);
            }
            let (stage, count) = self.next_stage(rest.len(), rows);
            let (piece, tail) = rest.split_at(count);
            let logits = match self.predict(&stage, piece, observer) {
                Ok(logits) => logits,
                Err(error) => {
                    (self.broken, self.position) = (true, start);
                    return Err(backend(error));
                }
            };
            self.position += count;
            rest = tail;
            if rows == LogitsFor::AllTokens || (rows == LogitsFor::LastToken && rest.is_empty()) {
                observer.logits(self.position - 1, &logits);
            }
        }
        Ok(())
    }

    fn snapshot(&self) -> Result<Snapshot, RunError> {
        let mut tensors = Vec::new();
        for port in self.parts.decode.memory() {
            let value = self.cache(&port.name).map_err(backend)?;
            tensors.push(saved(port, &value, self.position));
        }
        Ok(Snapshot { position: self.position, layout: self.parts.layout(), tensors })
    }

    fn restore(&mut self, snapshot: &Snapshot) -> Result<(), RunError> {
        let misfit = |expected: String, found: String| RunError::Snapshot { expected, found };
        let layout = self.parts.layout();
        if snapshot.layout != layout {
            return Err(misfit(layout, snapshot.layout.clone()));
        }
        if snapshot.position > self.max_context {
            return Err(misfit(
                format!("at most {} tokens", self.max_context),
                format!("{}", snapshot.position),
            ));
        }
        // All are read before the first is put in place, so that a bad snapshot changes nothing.
        let parts = Arc::clone(&self.parts);
        let mut values = Vec::new();
        for port in parts.decode.memory() {
            let found = snapshot.tensor(&port.name);
            let value = found.and_then(|tensor| restored(port, tensor, snapshot.position));
            values.push(value.ok_or_else(|| {
                let found = found.map_or("nothing".to_owned(), |t| format!("{:?} {:?}", t.dtype, t.shape));
                misfit(format!("`{}` as {}", port.name, port.ty), found)
            })?);
        }
        self.broken = false;
        for (port, value) in parts.decode.memory().zip(values) {
            if let Err(error) = self.sessions[self.current].set_state(&port.name, value) {
                self.broken = true;
                return Err(backend(error));
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
        // Intermediate values live only inside of a call.
        0
    }

    fn recurrent_states(&self) -> Result<Vec<RecurrentState>, RunError> {
        let config = &self.parts.config;
        let size = config.linear_num_value_heads * config.linear_key_head_dim * config.linear_value_head_dim;
        let mut values = Vec::new();
        let is_state = |name: &str| name.starts_with("recurrent_state");
        let mut ports: Vec<_> = self.parts.decode.memory().filter(|port| is_state(&port.name)).collect();
        // `recurrent_state_10` comes after `recurrent_state_9`.
        ports.sort_by_key(|port| (port.name.len(), port.name.clone()));
        for port in ports {
            let tensor = self.cache(&port.name).map_err(backend)?;
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
    fn sites_are_named_values() {
        assert_eq!(site("embedded"), Some(HiddenStateAt::Embedding));
        assert_eq!(site("layers_12_mixed"), Some(HiddenStateAt::AfterAttention(12)));
        assert_eq!(site("layers_0_output"), Some(HiddenStateAt::AfterMlp(0)));
        assert_eq!(site("final_norm"), Some(HiddenStateAt::FinalNorm));
        assert_eq!(site("layers_x_output"), None);
        assert_eq!(site("layers_1_mlp_gate"), None);
    }
}
