//! [`Weights`] of an MLX directory: dequantized values in the convention of Hugging Face checkpoints.

use std::ops::Range;

use q35_architecture::{Role, TextConfig};
use q35_inference::{WeightError, Weights};
use q35_quant::affine::dequantize_rows;

use crate::{MlxDirectory, MlxTensor};

/// Matrices are dequantized in f32, as in MLX's matrix products, without rounding to the scales' type.
impl Weights for MlxDirectory {
    fn config(&self) -> &TextConfig {
        MlxDirectory::config(self)
    }

    fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut Vec<f32>) -> Result<(), WeightError> {
        let error = |message: String| WeightError { name: name.to_owned(), message };
        let (spec, tensor) = self
            .described(name)
            .ok_or_else(|| error(format!("{} has no such tensor", self.dir().display())))?;
        if rows.start > rows.end || rows.end > spec.shape[0] {
            return Err(error(format!("rows {rows:?} of {:?}", spec.shape)));
        }
        let row = spec.shape[1..].iter().product::<usize>();
        out.clear();
        out.resize(rows.len() * row, 0.0);
        match tensor {
            MlxTensor::Packed(packed) => dequantize_rows(&packed.view(), rows, out),
            MlxTensor::Float(tensor) => {
                let bytes = row * tensor.float.size();
                tensor.float.widen(&tensor.bytes[rows.start * bytes..rows.end * bytes], out);
            }
        }
        if spec.role == Role::CenteredNorm {
            out.iter_mut().for_each(|weight| *weight -= 1.0);
        }
        match out.iter().position(|weight| !weight.is_finite()) {
            None => Ok(()),
            Some(at) => Err(error(format!(
                "{} holds {} at element {at} of these rows",
                self.dir().display(),
                out[at]
            ))),
        }
    }
}
