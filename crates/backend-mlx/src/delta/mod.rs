//! The gated delta rule.
//!
//! Letters: H value heads, T tokens, C tokens of a chunk, K key width, V value width. The state is [H, V, K], f32: the
//! layout in which the GPU kernel reads and writes whole cache lines.

mod kernel;
mod operations;

use mlx_rs::Array;
use mlx_rs::error::Result;

use crate::device::GpuApi;
use kernel::DeltaKernel;

pub(crate) use operations::{Gates, Projected, Sizes, silu};

/// The rule by the fastest implementation for the device: a fused GPU kernel, or MLX operations.
pub(crate) struct DeltaRule {
    sizes: Sizes,
    kernel: Option<DeltaKernel>,
}

impl DeltaRule {
    /// The rule for layers of these sizes, on a GPU or (`None`) on the CPU.
    pub fn new(sizes: Sizes, gpu: Option<GpuApi>) -> Self {
        Self { sizes, kernel: gpu.and_then(|api| DeltaKernel::checked(sizes, api)) }
    }

    /// True if the fused kernel is used.
    pub fn is_fused(&self) -> bool {
        self.kernel.is_some()
    }

    /// Applies the rule to T tokens; returns outputs [T, H, V], f32, and the next state [H, V, K].
    pub fn run(&self, projected: &Projected, gates: Gates<'_>, state: &Array) -> Result<(Array, Array)> {
        match &self.kernel {
            Some(kernel) => kernel.run(projected, gates, state),
            None if projected.mixed.dim(0) == 1 => operations::step(projected, gates, self.sizes, state),
            None => operations::chunks(projected, gates, self.sizes, state),
        }
    }
}
