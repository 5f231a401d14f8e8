//! The weights of a model as numbers, whatever file they come from.

use std::ops::Range;

use q35_architecture::TextConfig;

/// Anything that can give the model's weights as f32 in the convention of Hugging Face checkpoints: a float
/// checkpoint gives them as they are; a converted artefact dequantizes them and undoes its own transforms (norms
/// zero-centred again, convolution [channels, 1, taps]). So the float reference runs on any of them, and any two can
/// be compared tensor by tensor.
pub trait Weights: Send + Sync {
    /// The sizes of the model.
    fn config(&self) -> &TextConfig;

    /// Rows of the tensor called `name` in [`q35_architecture::tensor_table`], along its first axis: f32, row-major, a row being
    /// the product of the other axes. Replaces the contents of `out`.
    ///
    /// # Errors
    /// No such tensor, or its data cannot be read.
    fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut Vec<f32>) -> Result<(), WeightError>;
}

/// Why a tensor's numbers could not be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot read tensor `{name}`: {message}")]
pub struct WeightError {
    /// The tensor.
    pub name: String,
    /// What stood in the way, with the file where there is one.
    pub message: String,
}
