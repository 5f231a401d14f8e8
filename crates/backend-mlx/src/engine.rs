//! The sequences that run over a network. Lives on the worker's thread.
//!
//! After a call that gave the logits of its last token, most likely one more token follows. So the graph of that token
//! is built at once, with a slot for its id, while the device still works on the last one: when the id is known, the
//! graph only has to be evaluated.

use std::collections::HashMap;

use mlx_rs::transforms::async_eval;
use mlx_rs::{Array, Dtype};
use q35_inference::{HiddenStateAt, LogitsFor};

use crate::ffi::TokenSlot;
use crate::forward::{Graph, Network, State};
use crate::model::MlxBackendError;

/// What a piece gave, as numbers on the host.
#[derive(Default)]
pub(crate) struct Produced {
    /// Rows of logits, [rows, vocab].
    pub logits: Vec<f32>,
    /// The residual stream, each [T, D].
    pub hidden: Vec<(HiddenStateAt, Vec<f32>)>,
}

/// A sequence as it stands, and the graph of one more token if it has been built.
struct Standing {
    state: State,
    next: Option<(TokenSlot, Graph)>,
}

pub(crate) struct Engine {
    pub network: Network,
    sequences: HashMap<u64, Standing>,
}

impl Engine {
    pub fn new(network: Network) -> Self {
        Self { network, sequences: HashMap::new() }
    }

    /// A sequence's state.
    pub fn state(&self, sequence: u64) -> Result<&State, MlxBackendError> {
        self.sequences.get(&sequence).map(|standing| &standing.state).ok_or(MlxBackendError::Lost)
    }

    /// Puts a sequence, new or not, into a state.
    pub fn set_state(&mut self, sequence: u64, state: State) {
        self.sequences.insert(sequence, Standing { state, next: None });
    }

    pub fn remove(&mut self, sequence: u64) {
        self.sequences.remove(&sequence);
    }

    /// Consumes a piece of tokens. A sequence for which this fails is lost until it is given a state again: keeping a
    /// second one would keep MLX from writing keys and values where they are.
    pub fn advance(
        &mut self,
        sequence: u64,
        ids: &[u32],
        rows: LogitsFor,
        watch: bool,
    ) -> Result<Produced, MlxBackendError> {
        let Standing { state, next } = self.sequences.remove(&sequence).ok_or(MlxBackendError::Lost)?;
        let graph = match (next, ids) {
            (Some((slot, graph)), [id]) if rows == LogitsFor::LastToken && !watch => {
                slot.fill(*id);
                graph
            }
            (next, _) => {
                drop(next);
                let ids = Array::from_slice(ids, &[ids.len() as i32]);
                self.network.graph(&state, &ids, rows, watch)?
            }
        };
        drop(state);
        let Graph { after, logits, watched } = graph;
        async_eval(after.arrays().chain(&logits).chain(watched.iter().map(|(_, x)| x)))?;
        let mut next = None;
        if rows == LogitsFor::LastToken && !watch {
            let slot = TokenSlot::new();
            let graph = self.network.graph(&after, slot.ids(), LogitsFor::LastToken, false)?;
            next = Some((slot, graph));
        }
        let mut produced = Produced::default();
        if let Some(rows) = &logits {
            produced.logits = to_host(rows)?;
        }
        for (site, x) in watched {
            produced.hidden.push((site, to_host(&x)?));
        }
        self.sequences.insert(sequence, Standing { state: after, next });
        Ok(produced)
    }
}

/// The numbers of an array, row-major, f32.
pub(crate) fn to_host(array: &Array) -> mlx_rs::error::Result<Vec<f32>> {
    let array = array.as_dtype(Dtype::Float32)?.contiguous()?;
    array.eval()?;
    Ok(array.as_slice::<f32>().to_vec())
}
