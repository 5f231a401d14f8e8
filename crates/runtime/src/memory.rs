//! What a chat occupies.

use serde::Serialize;

/// Bytes that a chat holds now, by what they are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemoryFootprint {
    /// Weights in mapped files: resident once read, and given back by the system when memory is short.
    pub mapped_weight_bytes: u64,
    /// Weights and tables in memory of the process's own.
    pub owned_weight_bytes: u64,
    /// Key/value caches and recurrent states of all sessions.
    pub cache_bytes: u64,
    /// Snapshots of prompts.
    pub snapshot_bytes: u64,
    /// How many snapshots that is.
    pub snapshots: usize,
    /// Work space of all sessions.
    pub scratch_bytes: u64,
    /// Tokenizer, and the tables of structured output once it was asked for.
    pub text_bytes: u64,
}

impl MemoryFootprint {
    /// All of it.
    pub fn total_bytes(&self) -> u64 {
        self.mapped_weight_bytes
            + self.owned_weight_bytes
            + self.cache_bytes
            + self.snapshot_bytes
            + self.scratch_bytes
            + self.text_bytes
    }
}
