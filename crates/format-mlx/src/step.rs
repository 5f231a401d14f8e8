//! One step of a conversion: a tensor, its treatment and its output tensors.

use q35_checkpoint::TensorView;
use q35_quant::affine::AffineSpec;

use crate::layout::OutputTensor;

/// Treatment of one tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Quantize; the output is weight, scales and biases.
    Quantize(AffineSpec),
    /// Add one: the checkpoint's norm weight `w` becomes the `1 + w` that MLX multiplies by.
    Shift,
    /// [channels, 1, taps] to [channels, taps, 1].
    Transpose,
    /// Copy.
    Keep,
}

impl Action {
    /// Name in the manifest.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Quantize(_) => "quantized",
            Self::Shift => "shifted",
            Self::Transpose => "transposed",
            Self::Keep => "kept",
        }
    }
}

/// One tensor of the source, its treatment and its name in the output.
#[derive(Clone, Debug)]
pub(crate) struct Step<'a> {
    pub(crate) tensor: TensorView<'a>,
    pub(crate) action: Action,
    /// Output name: of the module for a quantized matrix (without `.weight`), else of the tensor.
    pub(crate) output: String,
}

impl Step<'_> {
    /// The output tensors, in the order in which they are produced.
    pub(crate) fn output_tensors(&self) -> Vec<OutputTensor> {
        let shape = self.tensor.shape();
        let float = self.tensor.dtype;
        let of_float = |name: String, shape: Vec<usize>| {
            OutputTensor::new(name, float.safetensors_name(), float.size(), shape)
        };
        match self.action {
            Action::Quantize(spec) => {
                let groups = vec![shape[0], spec.groups_per_row(shape[1])];
                let words = vec![shape[0], spec.words_per_row(shape[1])];
                let name = |suffix: &str| format!("{}.{suffix}", self.output);
                vec![
                    OutputTensor::new(name("weight"), "U32", 4, words),
                    of_float(name("scales"), groups.clone()),
                    of_float(name("biases"), groups),
                ]
            }
            Action::Transpose => vec![of_float(self.output.clone(), vec![shape[0], shape[2], shape[1]])],
            Action::Shift | Action::Keep => vec![of_float(self.output.clone(), shape.to_vec())],
        }
    }

    /// Size of the source tensor.
    pub(crate) fn source_bytes(&self) -> u64 {
        self.tensor.data.len() as u64
    }

    /// Source rows of one chunk: about 4 MiB, so that chunks in flight are small beside the model and each still has
    /// work for every thread.
    pub(crate) fn rows_per_chunk(&self) -> usize {
        const CHUNK_BYTES: usize = 4 << 20;
        (CHUNK_BYTES / (self.tensor.row_len() * self.tensor.dtype.size()).max(1)).max(1)
    }
}
