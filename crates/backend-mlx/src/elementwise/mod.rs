//! The parts of a layer between its matrix products and the delta rule: convolution, gated norm and SwiGLU.
//!
//! Letters: T tokens, C channels of the convolution, H value heads, V value width, I intermediate size.

mod kernels;
mod operations;

use mlx_rs::error::Result;
use mlx_rs::{Array, Dtype};

use crate::device::GpuApi;
use kernels::Kernels;

/// Sizes of a model's layers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LayerSizes {
    /// Channels of the convolution, C.
    pub channels: i32,
    /// Taps of the convolution.
    pub taps: i32,
    /// Value heads, H.
    pub value_heads: i32,
    /// Value width, V.
    pub value_dim: i32,
    /// Intermediate size of the MLP, I.
    pub intermediate: i32,
    /// Epsilon of the RMS norms.
    pub epsilon: f32,
}

/// The computations by the fastest implementation for the device: fused GPU kernels, or MLX operations.
pub(crate) struct Elementwise {
    sizes: LayerSizes,
    dtype: Dtype,
    /// The kernels, or the reason for which they are not used.
    kernels: std::result::Result<Kernels, String>,
}

impl Elementwise {
    /// For activations of type `dtype`, on a GPU or (`None`) on the CPU.
    pub fn new(sizes: LayerSizes, dtype: Dtype, gpu: Option<GpuApi>) -> Self {
        let kernels = match gpu {
            Some(api) => Kernels::checked(sizes, dtype, api),
            None => Err("only GPUs have them".to_owned()),
        };
        Self { sizes, dtype, kernels }
    }

    /// The reason for which the fused kernels are not used; `None` if they are.
    pub fn unfused_reason(&self) -> Option<&str> {
        self.kernels.as_ref().err().map(String::as_str)
    }

    /// Depthwise causal convolution of x [T, C] after window [taps - 1, C] with weight [taps, C]: [T, C], and the next
    /// window. The last tap multiplies the token itself.
    pub fn convolution(&self, window: &Array, x: &Array, weight: &Array) -> Result<(Array, Array)> {
        match &self.kernels {
            Ok(kernels) => kernels.convolution(window, x, weight),
            Err(_) => operations::convolution(window, x, weight),
        }
    }

    /// RMS norm of each head of x [T, H, V], f32, with weight [V], times SiLU(z), z [T, H V]: [T, H V] in the activations'
    /// type.
    pub fn gated_norm(&self, x: &Array, z: &Array, weight: &Array) -> Result<Array> {
        match &self.kernels {
            Ok(kernels) => kernels.gated_norm(x, z, weight),
            Err(_) => operations::gated_norm(x, z, weight, self.sizes.epsilon, self.dtype),
        }
    }

    /// SiLU(gate) up, both [T, I].
    pub fn swiglu(&self, gate: &Array, up: &Array) -> Result<Array> {
        match &self.kernels {
            Ok(kernels) => kernels.swiglu(gate, up),
            Err(_) => operations::swiglu(gate, up),
        }
    }
}
