//! The part of a loaded model that its sequences share.

use std::sync::atomic::{AtomicU64, Ordering};

use q35_architecture::TextConfig;
use q35_quant::FloatType;

use crate::device::MlxDevice;
use crate::worker::Worker;

pub(crate) struct Shared {
    pub config: TextConfig,
    pub worker: Worker,
    /// Layout string of snapshots.
    pub layout: String,
    pub device: MlxDevice,
    pub activations: FloatType,
    /// True if decoding uses the fused delta-rule kernel.
    pub fused: bool,
    pub weight_bytes: u64,
    pub bytes_per_token: u64,
    pub next_sequence: AtomicU64,
}

impl Shared {
    /// An id for a new sequence.
    pub fn new_sequence_id(&self) -> u64 {
        self.next_sequence.fetch_add(1, Ordering::Relaxed)
    }
}
