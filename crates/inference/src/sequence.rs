//! The state of one growing sequence of tokens.

use crate::{Observer, RunError, Snapshot};

/// The state of one growing sequence of tokens: key/value caches, convolution windows and recurrent states.
pub trait Sequence: Send {
    /// Tokens consumed so far.
    fn position(&self) -> usize;

    /// Capacity in tokens.
    fn max_context(&self) -> usize;

    /// Consumes `ids` after the tokens consumed so far. `observer` receives the logits of the tokens that `logits`
    /// selects.
    ///
    /// Prefill runs in bounded chunks, and `observer.cancelled()` is read between them. A cancelled call returns
    /// [`RunError::Cancelled`] and leaves the sequence at the last whole chunk, see [`Sequence::position`].
    ///
    /// # Errors
    /// A token outside the vocabulary, no room, cancellation, or a failure of the backend. After any error but
    /// cancellation the position is that before the call.
    fn extend(&mut self, ids: &[u32], logits: LogitsFor, observer: &mut dyn Observer)
    -> Result<(), RunError>;

    /// A complete copy of the state.
    ///
    /// # Errors
    /// The backend failed to read its state back.
    fn snapshot(&self) -> Result<Snapshot, RunError>;

    /// Restores a state that [`Sequence::snapshot`] of this or another sequence of the same model returned.
    ///
    /// # Errors
    /// The snapshot is of another model or layout, or longer than this sequence's capacity.
    fn restore(&mut self, snapshot: &Snapshot) -> Result<(), RunError>;

    /// Returns to zero tokens. Memory is kept.
    fn reset(&mut self);

    /// Bytes of caches and states held now.
    fn cache_bytes(&self) -> u64;

    /// Bytes of scratch buffers held now.
    fn scratch_bytes(&self) -> u64;

    /// The recurrent state of every linear-attention layer, first to last.
    ///
    /// # Errors
    /// The backend failed to read its state back.
    fn recurrent_states(&self) -> Result<Vec<RecurrentState>, RunError>;
}

/// Recurrent state of one linear-attention layer.
#[derive(Clone, Debug, PartialEq)]
pub struct RecurrentState {
    /// Index of the decoder layer.
    pub layer: usize,
    /// [value heads, key width, value width] f32, row-major, in whatever layout the backend keeps it.
    pub values: Vec<f32>,
}

/// Tokens of a call to [`Sequence::extend`] whose logits are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogitsFor {
    /// No token: the call only changes the state.
    None,
    /// The last token.
    LastToken,
    /// Every token, in order.
    AllTokens,
}
