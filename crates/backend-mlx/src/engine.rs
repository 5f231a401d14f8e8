//! Executes a network's graphs for the sequences of a model. Lives on the worker thread.
//!
//! After a call that returned the logits of its last token, one more token is the likely next call. So the graph of that
//! token is built ahead, with a placeholder for its id, while the device still works on the current one. Once the id is
//! known, the graph only has to be evaluated.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use mlx_rs::Array;
use mlx_rs::transforms::async_eval;
use q35_inference::{HiddenStateAt, LogitsFor};

use crate::error::MlxBackendError;
use crate::host::to_host;
use crate::qwen3_5::{Graph, Network};
use crate::state::State;
use crate::token_slot::TokenSlot;

/// Results of one chunk in host memory.
#[derive(Default)]
pub(crate) struct ChunkOutput {
    /// Logits, [rows, vocab].
    pub logits: Vec<f32>,
    /// The residual stream at each observed location, [T, D] each.
    pub hidden: Vec<(HiddenStateAt, Vec<f32>)>,
}

/// Time that the worker thread has spent on passes, since the model was loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostTimes {
    /// Number of passes: one per decoded token or prefill chunk.
    pub passes: u64,
    /// Time for building graphs.
    pub build: Duration,
    /// Time for handing graphs to the device.
    pub submit: Duration,
    /// Time for waiting for the device and copying results.
    pub wait: Duration,
}

/// A sequence's state, and the graph of its next token if that has been built ahead.
struct SequenceEntry {
    state: State,
    next: Option<(TokenSlot, Graph)>,
}

pub(crate) struct Engine {
    pub network: Network,
    sequences: HashMap<u64, SequenceEntry>,
    times: HostTimes,
}

impl Engine {
    pub fn new(network: Network) -> Self {
        Self { network, sequences: HashMap::new(), times: HostTimes::default() }
    }

    /// Time spent so far.
    pub fn times(&self) -> HostTimes {
        self.times
    }

    /// A sequence's state.
    pub fn state(&self, sequence: u64) -> Result<&State, MlxBackendError> {
        self.sequences.get(&sequence).map(|entry| &entry.state).ok_or(MlxBackendError::Lost)
    }

    /// Sets the state of a new or existing sequence.
    pub fn set_state(&mut self, sequence: u64, state: State) {
        self.sequences.insert(sequence, SequenceEntry { state, next: None });
    }

    pub fn remove(&mut self, sequence: u64) {
        self.sequences.remove(&sequence);
    }

    /// Processes a chunk of tokens. On failure the sequence is lost until [`Self::set_state`]: a second reference to its
    /// state would prevent MLX from updating keys and values in place.
    pub fn advance(
        &mut self,
        sequence: u64,
        ids: &[u32],
        logits_for: LogitsFor,
        observe_hidden: bool,
    ) -> Result<ChunkOutput, MlxBackendError> {
        let start = Instant::now();
        let SequenceEntry { state, next } = self.sequences.remove(&sequence).ok_or(MlxBackendError::Lost)?;
        let graph = match (next, ids) {
            (Some((slot, graph)), [id]) if logits_for == LogitsFor::LastToken && !observe_hidden => {
                slot.fill(*id);
                graph
            }
            (next, _) => {
                drop(next);
                let ids = Array::from_slice(ids, &[ids.len() as i32]);
                self.network.graph(&state, &ids, logits_for, observe_hidden)?
            }
        };
        drop(state);
        let Graph { after, logits, hidden } = graph;
        let built = Instant::now();
        async_eval(after.arrays().chain(&logits).chain(hidden.iter().map(|(_, x)| x)))?;
        let submitted = Instant::now();
        let mut next = None;
        if logits_for == LogitsFor::LastToken && !observe_hidden {
            let slot = TokenSlot::new();
            let graph = self.network.graph(&after, slot.ids(), LogitsFor::LastToken, false)?;
            next = Some((slot, graph));
        }
        let next_built = Instant::now();
        let mut output = ChunkOutput::default();
        if let Some(logits) = &logits {
            output.logits = to_host(logits)?;
        }
        for (location, x) in hidden {
            output.hidden.push((location, to_host(&x)?));
        }
        self.sequences.insert(sequence, SequenceEntry { state: after, next });
        self.times.passes += 1;
        self.times.build += (built - start) + (next_built - submitted);
        self.times.submit += submitted - built;
        self.times.wait += next_built.elapsed();
        Ok(output)
    }
}
