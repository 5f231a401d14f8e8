//! The gated delta rule.
//!
//! Letters: H value heads, T tokens, C tokens of a chunk, K key width, V value width. The state is [H, V, K], f32: the
//! layout in which the GPU kernel reads and writes whole cache lines.

mod kernel;
mod operations;

use mlx_rs::Array;

use crate::device::GpuApi;
use kernel::DeltaKernel;

pub(crate) use operations::{Gates, Projected, Sizes, silu};

/// The rule by the fastest implementation for the device: a fused GPU kernel, or MLX operations.
pub(crate) struct DeltaRule {
    sizes: Sizes,
    /// The fused kernel, or the reason for which it is not used.
    kernel: Result<DeltaKernel, String>,
}

impl DeltaRule {
    /// The rule for layers of these sizes, on a GPU or (`None`) on the CPU.
    pub fn new(sizes: Sizes, gpu: Option<GpuApi>) -> Self {
        let kernel = match gpu {
            Some(api) => DeltaKernel::checked(sizes, api),
            None => Err("only GPUs have it".to_owned()),
        };
        Self { sizes, kernel }
    }

    /// The reason for which the fused kernel is not used; `None` if it is used.
    pub fn unfused_reason(&self) -> Option<&str> {
        self.kernel.as_ref().err().map(String::as_str)
    }

    /// Applies the rule to T tokens; returns outputs [T, H, V], f32, and the next state [H, V, K].
    pub fn run(
        &self,
        projected: &Projected,
        gates: Gates<'_>,
        state: &Array,
    ) -> mlx_rs::error::Result<(Array, Array)> {
        match &self.kernel {
            Ok(kernel) => kernel.run(projected, gates, state),
            Err(_) if projected.mixed.dim(0) == 1 => operations::step(projected, gates, self.sizes, state),
            Err(_) => operations::chunks(projected, gates, self.sizes, state),
        }
    }
}
