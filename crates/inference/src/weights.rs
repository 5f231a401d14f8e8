//! Reading a model's weights as f32, whatever file format holds them.

use std::ops::Range;

use q35_architecture::TextConfig;

/// A source of the model's weights as f32, in the convention of Hugging Face checkpoints.
///
/// A float checkpoint returns its weights unchanged. A converted artefact dequantizes them and undoes its own transforms:
/// norms are zero-centred again, a convolution is [channels, 1, taps]. The float reference therefore runs on any source,
/// and any two sources can be compared tensor by tensor.
pub trait Weights: Send + Sync {
    /// The sizes of the model.
    fn config(&self) -> &TextConfig;

    /// Reads `rows` along the first axis of the tensor `name` of [`q35_architecture::tensor_table`] into `out`, replacing
    /// its contents: f32, row-major; the length of a row is the product of the other axes.
    ///
    /// # Errors
    /// No such tensor, or its data cannot be read.
    fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut Vec<f32>) -> Result<(), WeightError>;
}

/// An error of [`Weights::read_rows`].
#[derive(Debug, thiserror::Error)]
#[error("cannot read tensor `{name}`: {message}")]
pub struct WeightError {
    /// The tensor.
    pub name: String,
    /// The reason, with the file where there is one.
    pub message: String,
}
