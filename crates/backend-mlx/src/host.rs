//! Transfer from MLX to host memory.

use mlx_rs::error::Result;
use mlx_rs::{Array, Dtype};

/// Evaluates an array and copies its elements, row-major, as f32.
pub(crate) fn to_host(array: &Array) -> Result<Vec<f32>> {
    let array = array.as_dtype(Dtype::Float32)?.contiguous()?;
    array.eval()?;
    Ok(array.as_slice::<f32>().to_vec())
}
