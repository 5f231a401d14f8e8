//! Rotary position embedding (RoPE) in the half-split layout.

use crate::elementwise::{load_partial, sigmoid, store_partial, sum_of_squares};
use crate::simd::{Isa, Kernel, Simd};

/// Cosines and sines of the angles of one position.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rotation {
    cosines: Vec<f32>,
    sines: Vec<f32>,
}

impl Rotation {
    /// Rotation of the first `width` components of a head at `position`: pair i of width / 2 is rotated by
    /// `position * theta^(-2 i / width)`.
    pub fn at(position: usize, width: usize, theta: f64) -> Self {
        let mut rotation = Self::default();
        for pair in 0..width / 2 {
            // The frequency is rounded to f32 first, as in transformers; the angle is exact.
            let frequency = theta.powf(-2.0 * pair as f64 / width as f64) as f32;
            let angle = (position as f32 * frequency) as f64;
            rotation.cosines.push(angle.cos() as f32);
            rotation.sines.push(angle.sin() as f32);
        }
        rotation
    }

    /// Rotates the leading `width` components of `head`, pairs (i, i + width / 2).
    pub fn apply(&self, head: &mut [f32]) {
        let half = self.cosines.len();
        let (low, rest) = head.split_at_mut(half);
        for (((a, b), cos), sin) in low.iter_mut().zip(rest).zip(&self.cosines).zip(&self.sines) {
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}

/// RMS norm of one head, then its rotation: `out` = rotate(weight * x / rms(x)).
///
/// # Panics
/// If the lengths of `x`, `weight` and `out` differ.
pub fn norm_and_rotate(isa: Isa, x: &[f32], weight: &[f32], eps: f32, rotation: &Rotation, out: &mut [f32]) {
    crate::elementwise::rms_norm(isa, x, weight, eps, out);
    rotation.apply(out);
}

/// `x` = x * scale / sqrt(sum(x^2) + eps): L2 norm of the queries and keys of linear attention.
#[inline(always)]
pub(crate) fn l2_norm<S: Simd>(simd: S, x: &mut [f32], eps: f32, scale: f32) {
    let factor = simd.splat(scale / (sum_of_squares(simd, x) + eps).sqrt());
    for chunk in x.chunks_mut(16) {
        store_partial(simd, simd.mul(load_partial(simd, chunk), factor), chunk);
    }
}

/// `values` *= sigmoid(`gates`).
///
/// # Panics
/// If the lengths differ.
pub fn sigmoid_multiply(isa: Isa, values: &mut [f32], gates: &[f32]) {
    assert_eq!(values.len(), gates.len(), "lengths of operands");
    isa.run(SigmoidMultiply { values, gates });
}

struct SigmoidMultiply<'a> {
    values: &'a mut [f32],
    gates: &'a [f32],
}

impl Kernel for SigmoidMultiply<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for (values, gates) in self.values.chunks_mut(16).zip(self.gates.chunks(16)) {
            let gate = sigmoid(simd, load_partial(simd, gates));
            store_partial(simd, simd.mul(load_partial(simd, values), gate), values);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotation_turns_pairs_half_a_width_apart() {
        let rotation = Rotation::at(3, 4, 100.0);
        let mut head = [1.0, 2.0, 0.0, 1.0, 7.0];
        rotation.apply(&mut head);
        let (a, b) = (3.0f32, 0.3f32);
        let expected = [a.cos(), 2.0 * b.cos() - b.sin(), a.sin(), b.cos() + 2.0 * b.sin(), 7.0];
        for (got, expected) in head.into_iter().zip(expected) {
            assert!((got - expected).abs() < 1e-6, "{got} for {expected}");
        }
    }

    #[test]
    fn position_zero_turns_nothing() {
        let mut head = [0.5, -1.0, 2.0, 3.0];
        Rotation::at(0, 4, 1e7).apply(&mut head);
        assert_eq!(head, [0.5, -1.0, 2.0, 3.0]);
    }
}
