//! Activations of sixteen bits in two halves of eight: 256 * upper + lower.
//!
//! # Pairs
//!
//! A byte of nibbles is `low + 16 * high`, and no dot product of bytes needs all of its eight bits for a nibble. So the
//! activations a and b that two nibbles of a byte meet are chosen as
//!
//! ```text
//! a =      c + 256 d        low a + high b = byte c + 256 (low d + high e)
//! b = 16 * c + 256 e
//! ```
//!
//! which takes three products of bytes instead of the four of two halves each. The price is four bits: b is a multiple
//! of 16, and so is a but for what b's lower half has already settled of c.

use crate::simd::Simd;

/// The largest code.
pub(crate) const STEPS: f32 = 127.0 * 256.0;

/// The largest code of a pair, in sixteens: d and e are then within a byte.
pub(crate) const PAIR_STEPS: f32 = 119.0 * 16.0;

/// Rounds `vectors` times `factor` to codes, which are at most [`STEPS`]; returns their sums, lane by lane. Of `pairs` the
/// products are at most [`PAIR_STEPS`], and the codes sixteen times as large.
#[inline(always)]
pub(crate) fn split<S: Simd>(
    simd: S,
    pairs: bool,
    vectors: &[[f32; 16]],
    factor: f32,
    upper: &mut [[i8; 16]],
    lower: &mut [[i8; 16]],
) -> S::I {
    let factor = simd.splat(factor);
    let mut sums = simd.int_splat(0);
    for (vector, (upper, lower)) in vectors.iter().zip(upper.iter_mut().zip(lower)) {
        let steps = simd.mul(simd.load(vector), factor);
        let codes = if pairs { pair_codes(simd, steps) } else { simd.round(steps) };
        sums = simd.int_add(sums, codes);
        simd.store_low_bytes(codes, lower);
        simd.store_low_bytes(simd.int_shr::<8>(simd.int_add(codes, simd.int_splat(128))), upper);
    }
    sums
}

/// The codes of eight pairs.
#[inline(always)]
fn pair_codes<S: Simd>(simd: S, sixteens: S::F) -> S::I {
    // The lower four bits of c, which the second of a pair settles.
    let of_first = simd.int_load(&[15, 0, 15, 0, 15, 0, 15, 0, 15, 0, 15, 0, 15, 0, 15, 0]);
    let settled = simd.int_and(simd.swap_pairs(simd.round(sixteens)), of_first);
    let left = simd.sub(sixteens, simd.mul(simd.float(settled), simd.splat(1.0 / 16.0)));
    simd.int_add(simd.int_shl::<4>(simd.round(left)), settled)
}

/// e of a pair, from the upper half of b and the lower half of a, which is c.
#[cfg(any(target_arch = "x86_64", test))]
#[inline(always)]
pub(crate) fn upper_beside(upper: i8, c: i8) -> i8 {
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
            let sums = split(simd, true, self.0, 1.0, self.1, self.2);
            let mut lanes = [0; 16];
            simd.int_store(sums, &mut lanes);
            lanes.iter().sum()
        }
    }

    proptest! {
        #[test]
        fn three_products_of_bytes_are_those_of_a_pair(
            numbers in prop::array::uniform16(-PAIR_STEPS..=PAIR_STEPS),
            extreme in prop::array::uniform16(prop::option::weighted(0.1, prop::bool::ANY)),
        ) {
            let mut numbers = numbers;
            for (number, extreme) in numbers.iter_mut().zip(extreme) {
                match extreme {
                    Some(true) => *number = PAIR_STEPS,
                    Some(false) => *number = -PAIR_STEPS,
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
                    let e = i32::from(upper_beside(upper[0][i + 1], c));
                    prop_assert_eq!(codes[i + 1], 16 * i32::from(c) + 256 * e);
                    prop_assert_eq!(codes[i], i32::from(c) + 256 * i32::from(d));
                }
            }
        }
    }
}
