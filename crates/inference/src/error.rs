//! Errors of a running sequence.

/// An error of [`crate::Model::new_sequence`] or of a [`crate::Sequence`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// A token id outside the vocabulary.
    #[error("token id {id} at position {position} is outside the vocabulary of {vocab_size}")]
    Token {
        /// The id.
        id: u32,
        /// Its position in the sequence.
        position: usize,
        /// Vocabulary size of the model.
        vocab_size: usize,
    },
    /// The context is full.
    #[error("the context is full: {needed} tokens needed, room for {max_context}")]
    ContextFull {
        /// Tokens that the sequence would hold after the call.
        needed: usize,
        /// Capacity of the sequence, in tokens.
        max_context: usize,
    },
    /// The requested context exceeds the limit of the artefact.
    #[error("a context of {requested} tokens was requested, this model holds {limit}")]
    ContextLimit {
        /// Requested capacity, in tokens.
        requested: usize,
        /// Limit of the artefact, in tokens.
        limit: usize,
    },
    /// The observer cancelled the call.
    #[error("cancelled")]
    Cancelled,
    /// A snapshot of another model, layout or size.
    #[error("this snapshot does not fit the model\n  expected: {expected}\n  found:    {found}")]
    Snapshot {
        /// Layout or size that the sequence needs.
        expected: String,
        /// Layout or size of the snapshot.
        found: String,
    },
    /// The backend failed.
    #[error("{backend} failed: {message}")]
    Backend {
        /// Name of the backend.
        backend: &'static str,
        /// The backend's own message.
        message: String,
    },
}
