//! The computed state of a session, which outlives a reply and which unloading takes away.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use q35_inference::{LogitsFor, Model, Observer, RunError, Sequence, Snapshot};

/// A sequence and the tokens that it has consumed.
pub(crate) struct SequenceState {
    pub(crate) sequence: Box<dyn Sequence>,
    /// The consumed tokens.
    pub(crate) ids: Vec<u32>,
    /// True if the state comes from prefill in aligned chunks alone, without decode steps.
    aligned: bool,
}

impl SequenceState {
    /// The state of a new sequence.
    pub(crate) fn new(sequence: Box<dyn Sequence>) -> Self {
        Self { sequence, ids: Vec::new(), aligned: true }
    }

    /// Consumes `ids`. After an error `self.ids` holds the tokens that were consumed before it.
    pub(crate) fn extend(
        &mut self,
        ids: &[u32],
        logits: LogitsFor,
        observer: &mut dyn Observer,
    ) -> Result<(), RunError> {
        let before = self.sequence.position();
        let result = self.sequence.extend(ids, logits, observer);
        self.ids.extend_from_slice(&ids[..self.sequence.position() - before]);
        result
    }

    /// Records that a decode step follows: the state no longer consists of aligned chunks.
    pub(crate) fn begin_decode(&mut self) {
        self.aligned = false;
    }

    /// Replaces the state by a snapshot that has consumed `ids`.
    pub(crate) fn restore(&mut self, snapshot: &Snapshot, ids: &[u32]) -> Result<(), RunError> {
        self.sequence.restore(snapshot)?;
        self.ids = ids.to_vec();
        self.aligned = true;
        Ok(())
    }

    /// Empties the sequence.
    pub(crate) fn reset(&mut self) {
        self.sequence.reset();
        self.ids.clear();
        self.aligned = true;
    }
}

/// The prefill alignment of a model: the lengths at which a state may be reused are multiples of it. At other lengths
/// the prompt would be cut into other chunks than without reuse, and rounding would differ.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Alignment(usize);

impl Alignment {
    pub(crate) fn of(model: &dyn Model) -> Self {
        Self(model.prefill_alignment().max(1))
    }

    /// The largest aligned length up to `length`.
    pub(crate) fn round_down(self, length: usize) -> usize {
        length - length % self.0
    }

    /// Shortens `ids` to an aligned length.
    pub(crate) fn truncate(self, ids: &mut Vec<u32>) {
        ids.truncate(self.round_down(ids.len()));
    }

    /// True if `length` is aligned.
    pub(crate) fn divides(self, length: usize) -> bool {
        length.is_multiple_of(self.0)
    }

    /// True if prefill may continue from `state` and compute the same as from an empty sequence.
    pub(crate) fn allows_reuse(self, state: &SequenceState) -> bool {
        self.0 == 1 || (state.aligned && self.divides(state.ids.len()))
    }
}

/// The cell in which a session keeps its state between replies, shared with the engine so that unloading can empty it.
#[derive(Default)]
pub(crate) struct SessionState {
    residency: Mutex<Residency>,
    cache_bytes: AtomicU64,
    scratch_bytes: AtomicU64,
}

/// The place of a session's state.
#[derive(Default)]
pub(crate) enum Residency {
    /// There is no state.
    #[default]
    Empty,
    /// The state waits for the next reply.
    Idle(SequenceState),
    /// A reply holds the state.
    Busy,
}

impl SessionState {
    fn lock(&self) -> MutexGuard<'_, Residency> {
        // Each critical section is a single assignment or look-up, so a poisoned value is still a valid one.
        self.residency.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the state for a reply; `None` if there is none yet.
    pub(crate) fn take(&self) -> Option<SequenceState> {
        match std::mem::replace(&mut *self.lock(), Residency::Busy) {
            Residency::Idle(state) => Some(state),
            Residency::Empty | Residency::Busy => None,
        }
    }

    /// Ends a reply: stores its state, or nothing if the state was lost.
    pub(crate) fn put(&self, state: Option<SequenceState>) {
        match &state {
            Some(state) => self.record_memory(state),
            None => self.clear_memory(),
        }
        *self.lock() = state.map_or(Residency::Empty, Residency::Idle);
    }

    /// Updates the memory figures from the state that a reply holds.
    pub(crate) fn record_memory(&self, state: &SequenceState) {
        self.cache_bytes.store(state.sequence.cache_bytes(), Ordering::Relaxed);
        self.scratch_bytes.store(state.sequence.scratch_bytes(), Ordering::Relaxed);
    }

    fn clear_memory(&self) {
        self.cache_bytes.store(0, Ordering::Relaxed);
        self.scratch_bytes.store(0, Ordering::Relaxed);
    }

    /// Bytes of key/value caches and recurrent states.
    pub(crate) fn cache_bytes(&self) -> u64 {
        self.cache_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of scratch buffers.
    pub(crate) fn scratch_bytes(&self) -> u64 {
        self.scratch_bytes.load(Ordering::Relaxed)
    }
}

/// Empties all `sessions` at once.
///
/// # Errors
/// Replies hold the state of some of them: their number. Nothing is emptied then.
pub(crate) fn clear_all(sessions: &[std::sync::Arc<SessionState>]) -> Result<(), usize> {
    // All locks are held until the end, so that no reply starts in between.
    let mut locked: Vec<_> = sessions.iter().map(|session| (session, session.lock())).collect();
    let busy = locked.iter().filter(|(_, residency)| matches!(**residency, Residency::Busy)).count();
    if busy > 0 {
        return Err(busy);
    }
    for (session, residency) in &mut locked {
        **residency = Residency::Empty;
        session.clear_memory();
    }
    Ok(())
}
