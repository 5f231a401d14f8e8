//! How a model is run.

use q35_kernels::Mode;

/// How a model is run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuOptions {
    /// Threads that compute, the caller's included. At least one.
    pub threads: usize,
    /// Whether activations keep their f32 values.
    pub mode: Mode,
}

impl Default for CpuOptions {
    /// Fast, on as many threads as the system offers.
    fn default() -> Self {
        Self { threads: std::thread::available_parallelism().map_or(1, usize::from), mode: Mode::Fast }
    }
}

impl CpuOptions {
    /// With another number of threads.
    pub fn with_threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// In another mode.
    pub fn with_mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }
}
