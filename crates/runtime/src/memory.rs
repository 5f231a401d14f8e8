//! The memory of a chat.

use serde::Serialize;

/// Bytes that a chat occupies now, by purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemoryFootprint {
    /// Weights in mapped files: resident once read, and evicted by the system when memory is short.
    pub mapped_weight_bytes: u64,
    /// Weights and tables in allocated memory.
    pub owned_weight_bytes: u64,
    /// Key/value caches, convolution windows and recurrent states of all sessions.
    pub cache_bytes: u64,
    /// Snapshots in the prompt cache.
    pub snapshot_bytes: u64,
    /// Number of snapshots in the prompt cache.
    pub snapshots: usize,
    /// Scratch buffers of all sessions.
    pub scratch_bytes: u64,
    /// Tokenizer, and the tables of structured output once it was requested.
    pub text_bytes: u64,
}

impl MemoryFootprint {
    /// Sum of all parts.
    pub fn total_bytes(&self) -> u64 {
        self.mapped_weight_bytes
            + self.owned_weight_bytes
            + self.cache_bytes
            + self.snapshot_bytes
            + self.scratch_bytes
            + self.text_bytes
    }
}
