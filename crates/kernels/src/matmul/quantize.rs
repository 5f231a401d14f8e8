//! Quantization of one group of a token's activations.

use crate::elementwise::max_magnitude;
use crate::int16_split::{MAX_CODE, MAX_PAIR_CODE, split_i16};
use crate::simd::Simd;

/// One group of a token's activations as whole vectors, zero beyond the last column.
pub(crate) struct Group<'a> {
    values: &'a [f32],
}

impl<'a> Group<'a> {
    /// Columns `start..start + group` of `x` [columns]; `padded` is the buffer for a group that ends beyond the last
    /// column.
    #[inline(always)]
    pub(crate) fn read(x: &'a [f32], start: usize, group: usize, padded: &'a mut [f32; 128]) -> Self {
        let values = x.get(start..start + group).unwrap_or_else(|| {
            let rest = &x[start..];
            padded[..rest.len()].copy_from_slice(rest);
            padded[rest.len()..].fill(0.0);
            &padded[..group]
        });
        Self { values }
    }

    #[inline(always)]
    pub(crate) fn values(&self) -> &[f32] {
        self.values
    }

    #[inline(always)]
    fn vectors(&self) -> &[[f32; 16]] {
        self.values.as_chunks().0
    }

    /// Sum of the values: vectors in sequence, then [`Simd::reduce_add`].
    #[inline(always)]
    pub(crate) fn sum<S: Simd>(&self, simd: S) -> f32 {
        let mut sum = simd.splat(0.0);
        for vector in self.vectors() {
            sum = simd.add(sum, simd.load(vector));
        }
        simd.reduce_add(sum)
    }

    /// Quantizes to 16-bit codes, written as their upper and lower halves; returns scale and sum of the codes. `pairs`
    /// selects the paired nibble encoding of [`crate::int16_split`].
    #[inline(always)]
    pub(crate) fn quantize<S: Simd>(&self, simd: S, pairs: bool, halves: &mut [[i8; 128]; 2]) -> (f32, f32) {
        let steps = if pairs { MAX_PAIR_CODE } else { MAX_CODE };
        let largest = max_magnitude(simd, self.vectors().as_flattened());
        // Below this the inverse overflows; such a group is zero beside any other.
        let inverse = if largest > 1e-33 { steps / largest } else { 0.0 };
        let [upper, lower] = halves;
        let (upper, lower) = (upper.as_chunks_mut().0, lower.as_chunks_mut().0);
        let sum = split_i16(simd, pairs, self.vectors(), inverse, upper, lower);
        let step = if pairs { 16.0 * steps } else { steps };
        let scale = if inverse > 0.0 { largest / step } else { 0.0 };
        // At most 128 * MAX_CODE: exact in any order.
        (scale, simd.reduce_add(simd.to_f32(sum)))
    }
}
