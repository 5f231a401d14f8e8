//! Second moments E[x x^T] of activations.

use candle_core::{Result, Tensor};

use crate::CalibrateError;

/// The weighted sum of x x^T over rows x, and the sum of the weights.
#[derive(Debug, Default)]
pub(crate) struct SecondMoments {
    sum: Option<Tensor>,
    weights: f64,
}

impl SecondMoments {
    /// Adds `rows` [tokens, width], each with weight 1.
    pub(crate) fn add(&mut self, rows: &Tensor) -> Result<()> {
        self.add_products(&rows.contiguous()?, rows, rows.dim(0)? as f64)
    }

    /// Adds `rows` [tokens, width] with one weight per row.
    pub(crate) fn add_weighted(&mut self, rows: &Tensor, weights: &[f32]) -> Result<()> {
        let column = Tensor::from_slice(weights, (weights.len(), 1), rows.device())?;
        let total = weights.iter().map(|w| f64::from(*w)).sum();
        self.add_products(&rows.broadcast_mul(&column)?, rows, total)
    }

    /// Adds the rows of `other`.
    pub(crate) fn merge(&mut self, other: Self) -> Result<()> {
        self.weights += other.weights;
        self.sum = match (self.sum.take(), other.sum) {
            (Some(a), Some(b)) => Some((a + b)?),
            (a, b) => a.or(b),
        };
        Ok(())
    }

    fn add_products(&mut self, weighted: &Tensor, rows: &Tensor, weights: f64) -> Result<()> {
        let sum = Some(rows.t()?.contiguous()?.matmul(weighted)?);
        self.merge(Self { sum, weights })
    }

    /// The weighted mean, [width, width].
    pub(crate) fn mean(&self) -> std::result::Result<Vec<f32>, CalibrateError> {
        // If all weights are zero, so is the sum; any positive divisor keeps the mean finite.
        self.sum_over(if self.weights > 0.0 { self.weights } else { 1.0 })
    }

    /// The sum divided by `count`, [width, width].
    pub(crate) fn sum_over(&self, count: f64) -> std::result::Result<Vec<f32>, CalibrateError> {
        let sum = self.sum.as_ref().ok_or(CalibrateError::TooShort { expected: 1, found: 0 })?;
        Ok((sum / count)?.flatten_all()?.to_vec1::<f32>()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn a_weight_counts_like_that_many_rows() {
        let rows = Tensor::new(&[[1.0f32, 2.0], [3.0, -1.0]], &Device::Cpu).unwrap();
        let mut weighted = SecondMoments::default();
        weighted.add_weighted(&rows, &[1.0, 2.0]).unwrap();
        let twice = Tensor::new(&[[1.0f32, 2.0], [3.0, -1.0], [3.0, -1.0]], &Device::Cpu).unwrap();
        let mut plain = SecondMoments::default();
        plain.add(&twice).unwrap();
        assert_eq!(weighted.mean().unwrap(), plain.mean().unwrap());
    }
}
