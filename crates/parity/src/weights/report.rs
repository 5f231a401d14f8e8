//! Results of the comparison of tensors.

use q35_architecture::{Role, TensorSpec};
use serde::{Deserialize, Serialize};

/// Comparison of one tensor.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct TensorReport {
    /// Name without the text model's prefix.
    pub name: String,
    /// Class of tensor: "linear", "embedding", "norm" and so on.
    pub class: String,
    /// The decoder layer, if the tensor is in one.
    pub layer: Option<usize>,
    /// Encoding: "4-bit/64", "bf16".
    pub storage: String,
    /// Bits per element, scales included.
    pub bits_per_weight: f64,
    /// Number of elements.
    pub elements: u64,
    /// Norm of the error relative to the norm of the tensor.
    pub relative_error: f64,
    /// Cosine of the angle to the source tensor.
    pub cosine: f64,
    /// Root mean square error in quantization steps; absent for floats.
    pub rms_steps: Option<f64>,
    /// Largest error as a multiple of the error that the encoding allows: above 1 is outside.
    pub excess: f64,
    /// The element with the largest multiple.
    pub worst: Option<WorstElement>,
    /// Rows with an element outside the bound.
    pub rows_outside: usize,
    /// Rows of the tensor.
    pub rows: usize,
    /// True if the encoding explains every error.
    pub passed: bool,
    /// Likely cause of the failure, if it did not pass.
    pub cause: Option<String>,
    /// True if the tensor could not be read.
    pub unreadable: bool,
}

/// The element of a tensor with the largest error relative to its bound.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq)]
pub struct WorstElement {
    /// Row.
    pub row: usize,
    /// Column.
    pub column: usize,
    /// The source's value.
    pub expected: f64,
    /// The candidate's value.
    pub found: f64,
    /// The largest error that the encoding allows for this element.
    pub allowed: f64,
}

/// Comparison of all tensors.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct WeightCheck {
    /// In the order of computation.
    pub tensors: Vec<TensorReport>,
    /// Bits per element over all tensors, scales included.
    pub bits_per_weight: f64,
    /// Bits per element over quantized tensors; 0 if there are none.
    pub bits_per_quantized_weight: f64,
}

impl WeightCheck {
    /// Tensors with an error that their encoding does not explain.
    pub fn failed(&self) -> impl Iterator<Item = &TensorReport> {
        self.tensors.iter().filter(|tensor| !tensor.passed)
    }
}

/// Class of a tensor, as reports name it.
pub(crate) fn tensor_class(spec: &TensorSpec) -> &'static str {
    match spec.role {
        Role::Embedding => "embedding",
        Role::Head => "head",
        Role::Convolution => "convolution",
        Role::CenteredNorm if spec.layer.is_none() => "final norm",
        Role::CenteredNorm => "norm",
        Role::GatedNorm => "gated norm",
        Role::DecayLog | Role::StepBias => "decay",
        Role::Linear if spec.name.contains(".mlp.") => "mlp projection",
        Role::Linear if spec.name.contains(".self_attn.") => "attention projection",
        Role::Linear => "linear attention projection",
    }
}
