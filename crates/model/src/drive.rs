//! How a loaded model is driven, whoever executes it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::{Snapshot, TextConfig};

/// A loaded model. Weights are shared: any number of [`Sequence`]s may run over one model, from any threads.
pub trait Model: Send + Sync {
    /// The sizes of the model.
    fn config(&self) -> &TextConfig;

    /// Who executes what, for people: "CPU (AVX-512 VNNI), MLX int4 group 64, exact".
    fn describe(&self) -> String;

    /// An empty sequence with room for `max_context` tokens.
    ///
    /// # Errors
    /// The context is longer than this model can hold (a Core ML package has a fixed cache).
    fn new_sequence(&self, max_context: usize) -> Result<Box<dyn Sequence>, RunError>;

    /// Longest context a sequence may have, if the artefact itself fixes one.
    fn context_limit(&self) -> Option<usize>;

    /// The grid on which prefill is computed, in tokens: results do not depend on how a prompt is cut if every cut
    /// falls on a multiple of it. 1 means that they never do.
    fn prefill_grid(&self) -> usize;

    /// Whether prefill gives the logits of every token that it takes, so that [`Rows::All`] costs no more than that. Where
    /// it gives the last one's only, every token is decoded for them.
    fn prefill_gives_every_row(&self) -> bool {
        true
    }

    /// What the loaded weights occupy.
    fn memory(&self) -> ModelMemory;
}

/// What a loaded model occupies, in bytes; sequences report their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ModelMemory {
    /// Weights in mapped files: resident when read, given back by the system when short.
    pub mapped_bytes: u64,
    /// Weights and tables in memory of the process's own.
    pub owned_bytes: u64,
    /// Bytes of weights that one decoded token must read.
    pub weight_bytes_per_token: u64,
}

/// The state of one growing sequence of tokens: key/value caches, convolution and recurrent states.
pub trait Sequence: Send {
    /// Tokens consumed so far.
    fn position(&self) -> usize;

    /// Tokens there is room for.
    fn max_context(&self) -> usize;

    /// Consumes `ids` after what has been consumed; `rows` says for which of them `observer` receives logits.
    ///
    /// Work is cut into bounded pieces; between them `observer.cancelled()` is asked. A cancelled call returns
    /// [`RunError::Cancelled`] and leaves the sequence at the last whole piece: [`Sequence::position`] tells.
    ///
    /// # Errors
    /// A token outside the vocabulary, no room, cancellation, or a failure of the backend. After any error but
    /// cancellation the position is where it was before the call.
    fn extend(&mut self, ids: &[u32], rows: Rows, observer: &mut dyn Observer) -> Result<(), RunError>;

    /// A copy of the state, complete in itself.
    ///
    /// # Errors
    /// The backend failed to read its state back.
    fn snapshot(&self) -> Result<Snapshot, RunError>;

    /// Puts the sequence into a state that this model's [`Sequence::snapshot`] returned, of this or another sequence.
    ///
    /// # Errors
    /// The snapshot is of another model or layout, or longer than this sequence has room for.
    fn restore(&mut self, snapshot: &Snapshot) -> Result<(), RunError>;

    /// Back to zero tokens. Memory is kept.
    fn reset(&mut self);

    /// Bytes of caches and states held now.
    fn cache_bytes(&self) -> u64;

    /// Bytes of work space held now.
    fn scratch_bytes(&self) -> u64;

    /// The recurrent state of every linear-attention layer, first to last.
    ///
    /// # Errors
    /// The backend failed to read its state back.
    fn recurrent_states(&self) -> Result<Vec<RecurrentState>, RunError>;
}

/// One layer's recurrent state.
#[derive(Clone, Debug, PartialEq)]
pub struct RecurrentState {
    /// The decoder layer.
    pub layer: usize,
    /// [value heads, key width, value width], row-major, whatever the backend's own layout.
    pub values: Vec<f32>,
}

/// For which of the consumed tokens logits are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// None: the tokens only change the state.
    None,
    /// The last one.
    Last,
    /// Every one, in order.
    All,
}

/// A place in the model where the residual stream can be watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Site {
    /// After the embedding.
    Embedding,
    /// After a layer's mixer was added.
    Mixer(usize),
    /// After a layer's MLP was added: the layer's output.
    Layer(usize),
    /// After the final norm.
    FinalNorm,
}

/// Receives what a running sequence produces.
pub trait Observer {
    /// Logits of the token at `position` (0 is the sequence's first): `[vocab]` f32, predicting `position + 1`.
    fn logits(&mut self, position: usize, row: &[f32]);

    /// Whether [`Observer::hidden`] is wanted; asked once per call of [`Sequence::extend`].
    fn wants_hidden(&self) -> bool {
        false
    }

    /// The residual stream at `site` for consecutive tokens from `position` on: [tokens, hidden] f32.
    fn hidden(&mut self, site: Site, position: usize, rows: &[f32]) {
        let _ = (site, position, rows);
    }

    /// Whether to stop as soon as possible.
    fn cancelled(&self) -> bool {
        false
    }
}

/// Collects nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Discard;

impl Observer for Discard {
    fn logits(&mut self, _position: usize, _row: &[f32]) {}
}

/// Asks a running computation to stop; clones ask the same one.
#[derive(Clone, Debug, Default)]
pub struct CancelToken(Arc<AtomicBool>);

impl CancelToken {
    /// A token that has not been cancelled.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks for the stop. Never blocks; may be called from a signal handler's thread.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether a stop was asked for.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Why a sequence could not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// A token id outside the vocabulary.
    #[error("token id {id} at position {position} is outside the vocabulary of {vocab_size}")]
    Token {
        /// The id.
        id: u32,
        /// Its place in the sequence.
        position: usize,
        /// The model's vocabulary.
        vocab_size: usize,
    },
    /// The context is full.
    #[error("the context is full: {needed} tokens needed, room for {max_context}")]
    ContextFull {
        /// Tokens that the call would have led to.
        needed: usize,
        /// Room of the sequence.
        max_context: usize,
    },
    /// A sequence longer than the artefact's own limit was asked for.
    #[error("a context of {asked} tokens was asked for, this model holds {limit}")]
    ContextLimit {
        /// Asked for.
        asked: usize,
        /// The artefact's limit.
        limit: usize,
    },
    /// The observer asked to stop.
    #[error("cancelled")]
    Cancelled,
    /// A snapshot of another model, layout or size.
    #[error("this snapshot does not fit the model\n  expected: {expected}\n  found:    {found}")]
    Snapshot {
        /// What the sequence needs.
        expected: String,
        /// What the snapshot holds.
        found: String,
    },
    /// The backend failed.
    #[error("{backend} failed: {message}")]
    Backend {
        /// Which backend.
        backend: &'static str,
        /// Its own words.
        message: String,
    },
}
