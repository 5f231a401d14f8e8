//! The part of a loaded model that its sequences share.

use std::sync::atomic::{AtomicU64, Ordering};

use q35_architecture::TextConfig;
use q35_quant::FloatType;

use crate::device::GpuApi;
use crate::worker::Worker;

pub(crate) struct Shared {
    pub config: TextConfig,
    pub worker: Worker,
    /// Layout string of snapshots.
    pub layout: String,
    /// Interface to the GPU, `None` on the CPU.
    pub gpu: Option<GpuApi>,
    pub activations: FloatType,
    /// The reason for which a fused kernel is not used; `None` if all are used.
    pub unfused_reason: Option<String>,
    /// Tokens of a prefill chunk: the prefill alignment, and the interval of cancellation checks.
    pub chunk: usize,
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
