//! 16-bit activation codes split into two 8-bit halves, `256 * upper + lower`, for byte dot products.
//!
//! # Paired nibble encoding
//!
//! A byte of two INT4 codes is `low + 16 * high`, and a byte dot product does not need all of its eight bits for a nibble.
//! So the activations a and b of the two codes are rounded to the form
//!
//! ```text
//! a =      c + 256 d        low a + high b = byte c + 256 (low d + high e)
//! b = 16 * c + 256 e
//! ```
//!
//! which needs three byte products instead of the four of two halves each. The price is four bits of precision: b is a
//! multiple of 16, and the four low bits of a are those of c, which b determines.

use crate::simd::Simd;

/// Largest magnitude of a code.
pub(crate) const MAX_CODE: f32 = 127.0 * 256.0;

/// Largest magnitude of a paired code, divided by 16: d and e then fit a byte.
pub(crate) const MAX_PAIR_CODE: f32 = 119.0 * 16.0;

/// Rounds `vectors * factor` to codes and writes their halves; returns the sum of the codes per lane. The products are at
/// most [`MAX_CODE`]; with the paired encoding (`pairs`) at most [`MAX_PAIR_CODE`], and codes are sixteen times as large.
#[inline(always)]
pub(crate) fn split_i16<S: Simd>(
    simd: S,
    pairs: bool,
    vectors: &[[f32; 16]],
    factor: f32,
    upper: &mut [[i8; 16]],
    lower: &mut [[i8; 16]],
) -> S::I32 {
    let factor = simd.splat(factor);
    let mut sums = simd.int_splat(0);
    for (vector, (upper, lower)) in vectors.iter().zip(upper.iter_mut().zip(lower)) {
        let steps = simd.mul(simd.load(vector), factor);
        let codes = if pairs { pair_codes(simd, steps) } else { simd.round_to_i32(steps) };
        sums = simd.int_add(sums, codes);
        simd.store_low_bytes(codes, lower);
        simd.store_low_bytes(simd.int_shr::<8>(simd.int_add(codes, simd.int_splat(128))), upper);
    }
    sums
}

/// Codes of eight pairs.
#[inline(always)]
fn pair_codes<S: Simd>(simd: S, sixteens: S::F32) -> S::I32 {
    // The low four bits of c, which the second of a pair determines.
    let first_of_pair = simd.int_load(&[15, 0, 15, 0, 15, 0, 15, 0, 15, 0, 15, 0, 15, 0, 15, 0]);
    let low_bits = simd.int_and(simd.swap_pairs(simd.round_to_i32(sixteens)), first_of_pair);
    let rest = simd.sub(sixteens, simd.mul(simd.to_f32(low_bits), simd.splat(1.0 / 16.0)));
    simd.int_add(simd.int_shl::<4>(simd.round_to_i32(rest)), low_bits)
}

/// e of a pair from the upper half of b and from c, the lower half of a.
#[cfg(any(target_arch = "x86_64", test))]
#[inline(always)]
pub(crate) fn pair_upper(upper: i8, c: i8) -> i8 {
    (i16::from(upper) - ((i16::from(c) + 8) >> 4)) as i8
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::simd::{Isa, Kernel};

    struct Pairs<'a>(&'a [[f32; 16]], &'a mut [[i8; 16]], &'a mut [[i8; 16]]);

    impl Kernel for Pairs<'_> {
        type Output = i32;

        fn run<S: Simd>(self, simd: S) -> i32 {
            let sums = split_i16(simd, true, self.0, 1.0, self.1, self.2);
            let mut lanes = [0; 16];
            simd.int_store(sums, &mut lanes);
            lanes.iter().sum()
        }
    }

    proptest! {
        #[test]
        fn three_products_of_bytes_are_those_of_a_pair(
            numbers in prop::array::uniform16(-MAX_PAIR_CODE..=MAX_PAIR_CODE),
            extreme in prop::array::uniform16(prop::option::weighted(0.1, prop::bool::ANY)),
        ) {
            let mut numbers = numbers;
            for (number, extreme) in numbers.iter_mut().zip(extreme) {
                match extreme {
                    Some(true) => *number = MAX_PAIR_CODE,
                    Some(false) => *number = -MAX_PAIR_CODE,
                    None => {}
                }
            }
            for isa in Isa::available() {
                let (mut upper, mut lower) = ([[0; 16]], [[0; 16]]);
                let sum = isa.run(Pairs(&[numbers], &mut upper, &mut lower));
                let codes: Vec<i32> =
                    upper[0].iter().zip(lower[0]).map(|(&u, l)| 256 * i32::from(u) + i32::from(l)).collect();
                prop_assert_eq!(sum, codes.iter().sum::<i32>());
                for (code, number) in codes.iter().zip(numbers) {
                    prop_assert!((*code as f32 / 16.0 - number).abs() <= 0.5, "{code} for {number}");
                }
                for i in (0..16).step_by(2) {
                    let (c, d) = (lower[0][i], upper[0][i]);
                    let e = i32::from(pair_upper(upper[0][i + 1], c));
                    prop_assert_eq!(codes[i + 1], 16 * i32::from(c) + 256 * e);
                    prop_assert_eq!(codes[i], i32::from(c) + 256 * i32::from(d));
                }
            }
        }
    }
}
