//! Options of opening a model.

use q35_kernels::Mode;

/// Options of [`CpuModel::open`](crate::CpuModel::open).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuOptions {
    /// Number of computing threads, the caller included; at least one.
    pub threads: usize,
    /// Arithmetic of products and format of the KV cache.
    pub mode: Mode,
}

impl Default for CpuOptions {
    /// [`Mode::Fast`] on all available cores.
    fn default() -> Self {
        Self { threads: std::thread::available_parallelism().map_or(1, usize::from), mode: Mode::Fast }
    }
}

impl CpuOptions {
    /// Sets the number of threads.
    pub fn with_threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// Sets the mode.
    pub fn with_mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }
}
