//! The computations in MLX operations. Letters as in [`super`].

use mlx_rs::error::Result;
use mlx_rs::ops::{self, indexing::TryIndexOp};
use mlx_rs::{Array, Dtype, fast};

use crate::delta::silu;

/// See [`super::Elementwise::convolution`].
pub(super) fn convolution(window: &Array, x: &Array, weight: &Array) -> Result<(Array, Array)> {
    let (tokens, taps) = (x.dim(0), weight.dim(0));
    let rows = ops::concatenate(&[window.clone(), x.clone()], 0)?;
    let next = rows.try_index(tokens..tokens + taps - 1)?;
    if tokens == 1 {
        return Ok((rows.multiply(weight)?.sum_axis(0, true)?, next));
    }
    let mut out = rows.try_index(0..tokens)?.multiply(weight.try_index(0..1)?)?;
    for tap in 1..taps {
        let shifted = rows.try_index(tap..tap + tokens)?;
        out = out.add(&shifted.multiply(weight.try_index(tap..tap + 1)?)?)?;
    }
    Ok((out, next))
}

/// See [`super::Elementwise::gated_norm`].
pub(super) fn gated_norm(x: &Array, z: &Array, weight: &Array, epsilon: f32, dtype: Dtype) -> Result<Array> {
    let gate = silu(&z.reshape(x.shape())?.as_dtype(Dtype::Float32)?)?;
    let gated = fast::rms_norm(x, Some(weight), epsilon)?.multiply(&gate)?;
    gated.reshape(z.shape())?.as_dtype(dtype)
}

/// See [`super::Elementwise::swiglu`].
pub(super) fn swiglu(gate: &Array, up: &Array) -> Result<Array> {
    silu(gate)?.multiply(up)
}
