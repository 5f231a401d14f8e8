//! Recipes: rules that turn float weights into codes, scales and biases.

use std::ops::Range;

use q35_architecture::TensorSpec;
use q35_checkpoint::TensorView;
use q35_quant::affine::{AffineSpec, PackedMatrix, quantize_rows};
use serde_json::{Map, Value};

/// Treatment of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// Quantized with these bits and this group size.
    Quantize(AffineSpec),
    /// Kept in the source's type.
    Keep,
}

/// A rule that quantizes matrices. The planner calls [`Self::treatment`] for every matrix; the writer then calls
/// [`Self::quantize`] for consecutive chunks of rows of each quantized matrix.
pub trait Recipe: Sync {
    /// Name in the manifest.
    fn name(&self) -> &str;

    /// Bits and group size that config.json gives as the default.
    fn default_spec(&self) -> AffineSpec;

    /// Treatment of the matrix `tensor`. Rows of a quantized matrix must divide into groups.
    fn treatment(&self, tensor: &TensorSpec) -> Treatment;

    /// The rows `rows` of `tensor` quantized with `spec`; scales and biases have the source's float type.
    ///
    /// # Errors
    /// A description of the failure.
    fn quantize(
        &self,
        tensor: &TensorView<'_>,
        spec: AffineSpec,
        rows: Range<usize>,
    ) -> Result<PackedMatrix, String>;

    /// Replacement values of `tensor`, which stays in float, in the checkpoint's convention (zero-centred norms); [`None`]
    /// keeps the source's.
    fn float_values(&self, tensor: &TensorSpec) -> Option<&[f32]> {
        let _ = tensor;
        None
    }

    /// Further settings for the manifest.
    fn settings(&self) -> Map<String, Value> {
        Map::new()
    }
}

/// Round to nearest with the same bits and group size for every matrix, as mlx-lm's `quantize_model`: matrices whose
/// rows do not divide into groups stay in float.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoundToNearest(
    /// Bits and group size.
    pub AffineSpec,
);

impl Recipe for RoundToNearest {
    fn name(&self) -> &str {
        "rtn"
    }

    fn default_spec(&self) -> AffineSpec {
        self.0
    }

    fn treatment(&self, tensor: &TensorSpec) -> Treatment {
        if self.0.fits(tensor.shape[1]) { Treatment::Quantize(self.0) } else { Treatment::Keep }
    }

    fn quantize(
        &self,
        tensor: &TensorView<'_>,
        spec: AffineSpec,
        rows: Range<usize>,
    ) -> Result<PackedMatrix, String> {
        quantize_rows(spec, tensor.dtype, tensor.rows(rows), tensor.row_len())
            .map_err(|error| error.to_string())
    }
}
