//! Numbers of fifteen bits in two halves of eight: 128 * upper + lower.

use crate::simd::Simd;

/// The largest code: its upper half is then 127, and the lower one between -64 and 63.
pub(crate) const STEPS: f32 = 127.0 * 128.0;

/// Rounds `vectors` times `factor`, which are at most [`STEPS`], to codes; returns their sums, lane by lane.
#[inline(always)]
pub(crate) fn split<S: Simd>(
    simd: S,
    vectors: &[[f32; 16]],
    factor: f32,
    upper: &mut [[i8; 16]],
    lower: &mut [[i8; 16]],
) -> S::I {
    let factor = simd.splat(factor);
    let mut sums = simd.int_splat(0);
    for (vector, (upper, lower)) in vectors.iter().zip(upper.iter_mut().zip(lower)) {
        let codes = simd.round(simd.mul(simd.load(vector), factor));
        sums = simd.int_add(sums, codes);
        let high = simd.int_shr::<7>(simd.int_add(codes, simd.int_splat(64)));
        simd.store_low_bytes(high, upper);
        simd.store_low_bytes(simd.int_sub(codes, simd.int_shl::<7>(high)), lower);
    }
    sums
}
