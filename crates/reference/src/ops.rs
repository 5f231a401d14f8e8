//! Differentiable operations that candle's core lacks.

use candle_core::{D, Result, Tensor};

/// Size of a product, in elements, up to which `gemm` uses special code.
const SMALL_PRODUCT: usize = 256;

/// `x W^T` for x [.., in] and a weight [out, in].
///
/// Batch-invariant on the CPU: a row's result does not depend on the other rows. candle's `gemm` sums products of up to
/// 256 elements, and of a single row, in another order, so these are padded with rows of zeros. This matters because the
/// gated norm amplifies rounding differences a hundredfold where a head's output nearly cancels.
///
/// # Errors
/// Different widths.
pub fn project(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let mut shape = x.dims().to_vec();
    let width = shape.pop().unwrap_or(0);
    let mut flat = x.reshape(((), width))?;
    let rows = flat.dim(0)?;
    let least = (SMALL_PRODUCT / weight.dim(0)? + 1).max(2);
    if rows < least && flat.device().is_cpu() {
        flat = flat.pad_with_zeros(0, 0, least - rows)?;
    }
    let product = flat.matmul(&weight.t()?)?.narrow(0, 0, rows)?;
    shape.push(weight.dim(0)?);
    product.reshape(shape)
}

/// `x_hat * weight` over the last axis, x_hat = x / rms(x).
///
/// # Errors
/// Different widths.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let size = x.sqr()?.mean_keepdim(D::Minus1)?.affine(1.0, eps)?.sqrt()?;
    x.broadcast_div(&size)?.broadcast_mul(weight)
}

/// `x / sqrt(sum x^2 + 1e-6)` over the last axis.
///
/// # Errors
/// A failure of candle.
pub fn l2_norm(x: &Tensor) -> Result<Tensor> {
    let size = x.sqr()?.sum_keepdim(D::Minus1)?.affine(1.0, 1e-6)?.sqrt()?;
    x.broadcast_div(&size)
}

/// `1 / (1 + exp(-x))`.
///
/// # Errors
/// A failure of candle.
pub fn sigmoid(x: &Tensor) -> Result<Tensor> {
    // tanh does not overflow on either side.
    x.affine(0.5, 0.0)?.tanh()?.affine(0.5, 0.5)
}

/// `ln(1 + exp x)`, to f32's relative accuracy even where it is tiny.
///
/// `1 + y` with y = exp(-|x|) would lose the digits of a small y, and the decay of a slowly forgetting head is such a
/// number, summed over thousands of tokens. Hence ln(1 + y) = 2 artanh(s), s = y / (2 + y) <= 1/3.
///
/// # Errors
/// A failure of candle.
pub fn softplus(x: &Tensor) -> Result<Tensor> {
    let y = x.abs()?.neg()?.exp()?;
    let s = (&y / y.affine(1.0, 2.0)?)?;
    let square = s.sqr()?;
    let mut series = square.affine(1.0 / 17.0, 1.0 / 15.0)?;
    for denominator in [13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0] {
        series = (series * &square)?.affine(1.0, 1.0 / denominator)?;
    }
    x.relu()? + (s * series)?.affine(2.0, 0.0)?
}

/// Softmax over the last axis.
///
/// # Errors
/// A failure of candle.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    // The shift cancels out, in the derivative too.
    let shift = x.max_keepdim(D::Minus1)?.detach();
    let powers = x.broadcast_sub(&shift)?.exp()?;
    powers.broadcast_div(&powers.sum_keepdim(D::Minus1)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn softplus_keeps_its_digits_far_out() -> Result<()> {
        let points: Vec<f32> = (-80..=80).map(|i| i as f32 / 2.0).collect();
        let found = softplus(&Tensor::new(points.as_slice(), &Device::Cpu)?)?.to_vec1::<f32>()?;
        for (x, found) in points.iter().zip(found) {
            let exact = f64::from(*x).exp().ln_1p();
            let error = (f64::from(found) / exact - 1.0).abs();
            assert!(error < 4e-7, "softplus({x}) = {found}, exactly {exact}");
        }
        Ok(())
    }

    #[test]
    fn softmax_survives_large_and_masked_scores() -> Result<()> {
        let x = Tensor::new(&[[1e4f32, 1e4 - 1.0, f32::NEG_INFINITY]], &Device::Cpu)?;
        let found = softmax(&x)?.to_vec2::<f32>()?;
        assert!((found[0][0] - 0.731_058_6).abs() < 1e-6 && found[0][2] == 0.0, "{found:?}");
        Ok(())
    }

    #[test]
    fn sigmoid_is_right_on_both_sides() -> Result<()> {
        let found = sigmoid(&Tensor::new(&[-200f32, 0.0, 1.0, 200.0], &Device::Cpu)?)?.to_vec1::<f32>()?;
        for (found, exact) in found.iter().zip([0.0, 0.5, 0.731_058_6, 1.0]) {
            assert!((found - exact).abs() < 1e-7);
        }
        Ok(())
    }
}
