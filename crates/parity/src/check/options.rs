//! Inputs and options of a check.

use std::path::PathBuf;

use q35_architecture::TensorSpec;
use q35_backend::Activations;
use q35_inference::{Model, Weights};

use crate::{Grade, ReferencePass, Storage};

/// The original model.
pub struct Source<'a> {
    /// Name that the user gave.
    pub name: String,
    /// Hash of its files, which keys saved reference passes and is reported.
    pub hash: Option<String>,
    /// Its weights.
    pub weights: &'a dyn Weights,
}

/// The converted model.
pub struct Candidate<'a> {
    /// Name that the user gave.
    pub name: String,
    /// Encoding, the key of the conversion limits: "mlx-4".
    pub kind: String,
    /// Recipe or encoding options for the report, if known.
    pub recipe: Option<String>,
    /// Size of its weight files in bytes.
    pub size_bytes: Option<u64>,
    /// Its dequantized weights, in the source's convention.
    pub weights: &'a dyn Weights,
    /// Returns the encoding of a tensor.
    pub storage: &'a (dyn Fn(&TensorSpec) -> Storage + Sync),
    /// The executable model; without it, only dequantized weights are compared.
    pub model: Option<&'a dyn Model>,
    /// Type of the activations of `model`, which selects the implementation limits.
    pub activations: Activations,
}

/// Options of a check.
#[derive(Debug)]
pub struct CheckOptions {
    /// Name and version of the program, for the report.
    pub tool: String,
    /// The lowest accepted grade of the fidelity verdict; none if any is accepted.
    pub require: Option<Grade>,
    /// Time of the check for the report, RFC 3339 in UTC; may be empty.
    pub date: String,
    /// True if tensors are compared.
    pub weights: bool,
    /// True if models are run.
    pub run: bool,
    /// Threads for comparing tensors.
    pub threads: usize,
    /// Tokens of a greedy continuation.
    pub greedy_tokens: usize,
    /// Tokens of the first prompt whose hidden states are compared.
    pub probe_tokens: usize,
    /// Tokens of the first prompt on which self-consistency is checked.
    pub decoded_tokens: usize,
    /// True if self-consistency includes split prompts and a snapshot, false for prefill against decode alone.
    pub thorough: bool,
    /// A saved pass of the float reference, used instead of running it.
    pub use_reference: Option<ReferencePass>,
    /// File in which the pass of the float reference is saved.
    pub save_reference: Option<PathBuf>,
    /// True if known faults are tried as explanations of a failing implementation.
    pub explain: bool,
}

impl Default for CheckOptions {
    fn default() -> Self {
        Self {
            tool: format!("q35-parity {}", env!("CARGO_PKG_VERSION")),
            require: None,
            date: String::new(),
            weights: true,
            run: true,
            threads: 1,
            greedy_tokens: 64,
            probe_tokens: 48,
            decoded_tokens: 48,
            thorough: true,
            use_reference: None,
            save_reference: None,
            explain: true,
        }
    }
}
