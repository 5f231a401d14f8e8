//! How weights become codes.

use std::ops::Range;

use q35_architecture::TensorSpec;
use q35_checkpoint::TensorView;
use q35_quant::affine::{AffineSpec, PackedMatrix, quantize_rows};
use serde_json::{Map, Value};

/// What is to become of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// Quantized so.
    Quantize(AffineSpec),
    /// Left in the source's type.
    Keep,
}

/// A way to quantize. The writer asks it about every matrix first, then for the rows of each that it quantizes, from
/// the first to the last in pieces.
pub trait Recipe: Sync {
    /// Its name, as `--recipe` takes it and the manifest records it.
    fn name(&self) -> &str;

    /// The bits and group size of matrices that are not treated in their own way; config.json states them for all.
    fn default_spec(&self) -> AffineSpec;

    /// What is to become of the matrix `tensor`, which has whole groups of 32 at least if it is quantized.
    fn treatment(&self, tensor: &TensorSpec) -> Treatment;

    /// The rows `rows` of `tensor`, quantized as `spec` says with scales and biases in the source's type.
    ///
    /// # Errors
    /// A description of what is in the way.
    fn quantize(
        &self,
        tensor: &TensorView<'_>,
        spec: AffineSpec,
        rows: Range<usize>,
    ) -> Result<PackedMatrix, String>;

    /// Other numbers for `tensor`, which stays in float, in the checkpoint's convention (norms zero-centred); nothing
    /// leaves those of the source.
    fn float_values(&self, tensor: &TensorSpec) -> Option<&[f32]> {
        let _ = tensor;
        None
    }

    /// Further settings, for the manifest.
    fn settings(&self) -> Map<String, Value> {
        Map::new()
    }
}

/// Every matrix rounded to nearest with the same bits and group size, but for those whose rows do not divide into
/// groups, which stay in float: what mlx-lm's `quantize_model` does.
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
