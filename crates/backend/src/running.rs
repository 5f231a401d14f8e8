//! A loaded model and the arithmetic that it computes with.

use q35_inference::Model;

/// A loaded model and the type of its activations.
pub struct Running {
    /// The model.
    pub model: Box<dyn Model>,
    /// The type of its activations.
    pub activations: Activations,
}

/// The type of the activations that a loaded model computes with. It bounds the model's distance from its own weights
/// in float.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activations {
    /// f32.
    F32,
    /// IEEE half, as a Core ML package declares.
    F16,
    /// bfloat16, as MLX computes on a GPU with scales of that type.
    Bf16,
    /// The CPU backend's fast mode: activations of fifteen bits in matrix products, a KV cache of eight bits.
    Quantized,
}

impl Activations {
    /// The key of the type in thresholds and reports.
    pub fn key(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Quantized => "fast",
        }
    }
}
