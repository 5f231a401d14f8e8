//! The gated delta rule.
//!
//! Letters: H value heads, T tokens, C tokens of a chunk, K key width, V value width. The state is [H, V, K], f32: the
//! layout in which the Metal kernel reads and writes whole cache lines.

mod operations;
#[cfg(target_vendor = "apple")]
mod step_kernel;

use mlx_rs::Array;
use mlx_rs::error::Result;

pub(crate) use operations::{Gates, Projected, Sizes, silu};

/// The rule by the fastest implementation for the device: MLX operations, or a fused kernel for single tokens.
pub(crate) struct DeltaRule {
    sizes: Sizes,
    #[cfg(target_vendor = "apple")]
    kernel: Option<step_kernel::StepKernel>,
}

impl DeltaRule {
    /// The rule for layers of these sizes; `gpu` if it runs on a GPU. Only Metal has a fused kernel.
    pub fn new(sizes: Sizes, gpu: bool) -> Self {
        #[cfg(not(target_vendor = "apple"))]
        debug_assert!(!gpu, "only Apple builds have a GPU");
        Self {
            sizes,
            #[cfg(target_vendor = "apple")]
            kernel: gpu.then(|| step_kernel::StepKernel::checked(sizes)).flatten(),
        }
    }

    /// True if single tokens use the fused kernel.
    #[cfg(target_vendor = "apple")]
    pub fn is_fused(&self) -> bool {
        self.kernel.is_some()
    }

    /// True if single tokens use the fused kernel.
    #[cfg(not(target_vendor = "apple"))]
    pub fn is_fused(&self) -> bool {
        false
    }

    /// Applies the rule to T tokens; returns outputs [T, H, V], f32, and the next state [H, V, K].
    pub fn run(&self, projected: &Projected, gates: Gates<'_>, state: &Array) -> Result<(Array, Array)> {
        if projected.mixed.dim(0) == 1 {
            #[cfg(target_vendor = "apple")]
            if let Some(kernel) = &self.kernel {
                return kernel.step(projected, gates, state);
            }
            return operations::step(projected, gates, self.sizes, state);
        }
        operations::chunks(projected, gates, self.sizes, state)
    }
}
