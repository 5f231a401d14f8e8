//! NEON with the dot-product instructions: sixteen lanes in four registers.

use std::arch::aarch64::*;
use std::array::from_fn;

use half::f16;

use super::{Kernel, Simd, every_second, with_features, word};

#[derive(Clone, Copy)]
pub(super) struct Neon(());

pub(super) fn detected() -> bool {
    std::arch::is_aarch64_feature_detected!("neon") && std::arch::is_aarch64_feature_detected!("dotprod")
}

/// # Safety
/// [`detected`] has returned true.
#[target_feature(enable = "neon,dotprod")]
pub(super) unsafe fn enter<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Neon(()))
}

type F32 = [float32x4_t; 4];
type I32 = [int32x4_t; 4];
type U8 = [uint8x16_t; 4];

/// Applies an intrinsic to all four registers.
macro_rules! each {
    ($op:ident($a:expr)) => {
        [$op($a[0]), $op($a[1]), $op($a[2]), $op($a[3])]
    };
    ($op:ident($a:expr, $b:expr)) => {
        [$op($a[0], $b[0]), $op($a[1], $b[1]), $op($a[2], $b[2]), $op($a[3], $b[3])]
    };
}

impl Neon {
    with_features! {
        /// `vdotq_s32` by inline assembly: the intrinsic is unstable.
        fn signed_dot(self, acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
            let mut acc = acc;
            std::arch::asm!(
                "sdot {acc:v}.4s, {a:v}.16b, {b:v}.16b",
                acc = inout(vreg) acc,
                a = in(vreg) a,
                b = in(vreg) b,
                options(pure, nomem, nostack, preserves_flags)
            );
            acc
        }
        fn add_signed_dot(self, sum: [I32; 2], a: U8, x: [[int8x16_t; 4]; 2]) -> [I32; 2] {
            let mut sum = sum;
            for i in 0..4 {
                for (sum, x) in sum.iter_mut().zip(&x) {
                    sum[i] = self.signed_dot(sum[i], vreinterpretq_s8_u8(a[i]), x[i]);
                }
            }
            sum
        }
    }
}

impl Simd for Neon {
    type F32 = F32;
    type I32 = I32;
    type U8 = U8;
    type Activations = [[int8x16_t; 4]; 2];
    /// Products with upper and with lower halves.
    type Dot = [I32; 2];
    type TileCodes = U8;
    /// Upper halves, then lower ones.
    type TileActivations = [int8x16_t; 2];
    type TileDot = [I32; 2];
    /// Low nibbles, then high ones.
    type Int4Codes = [U8; 2];
    /// Upper and lower halves of the activations of low nibbles, then of high nibbles.
    type Int4Activations = [[int8x16_t; 4]; 4];
    type Int4Dot = [I32; 2];

    // 2 x 2 x 4 accumulators, 4 vectors of codes, 2 of activations: 22 of 32 registers.
    const TILE_TOKENS: usize = 2;
    const INT4_TILE_TOKENS: usize = 2;
    const TILES_PER_PASS: usize = 1;
    const QUERY_HEADS_PER_PASS: usize = 1;
    const CODE_OFFSET: i32 = 128;

    #[inline(always)]
    fn pack_tile_activations(upper: [i8; 4], lower: [i8; 4]) -> [i32; 2] {
        [word(upper), word(lower)]
    }

    #[inline(always)]
    fn pack_int4_tile_activations(upper: [i8; 8], lower: [i8; 8]) -> [i32; 4] {
        [(upper, 0), (lower, 0), (upper, 1), (lower, 1)].map(|(half, from)| word(every_second(half, from)))
    }

    with_features! {
        fn splat(self, value: f32) -> F32 { [vdupq_n_f32(value); 4] }
        fn load(self, from: &[f32; 16]) -> F32 {
            let at = from.as_ptr();
            [vld1q_f32(at), vld1q_f32(at.add(4)), vld1q_f32(at.add(8)), vld1q_f32(at.add(12))]
        }
        fn store(self, value: F32, to: &mut [f32; 16]) {
            let at = to.as_mut_ptr();
            vst1q_f32(at, value[0]);
            vst1q_f32(at.add(4), value[1]);
            vst1q_f32(at.add(8), value[2]);
            vst1q_f32(at.add(12), value[3]);
        }
        fn add(self, a: F32, b: F32) -> F32 { each!(vaddq_f32(a, b)) }
        fn sub(self, a: F32, b: F32) -> F32 { each!(vsubq_f32(a, b)) }
        fn mul(self, a: F32, b: F32) -> F32 { each!(vmulq_f32(a, b)) }
        fn div(self, a: F32, b: F32) -> F32 { each!(vdivq_f32(a, b)) }
        fn fma(self, a: F32, b: F32, c: F32) -> F32 {
            [
                vfmaq_f32(c[0], a[0], b[0]),
                vfmaq_f32(c[1], a[1], b[1]),
                vfmaq_f32(c[2], a[2], b[2]),
                vfmaq_f32(c[3], a[3], b[3]),
            ]
        }
        fn max(self, a: F32, b: F32) -> F32 { each!(vmaxnmq_f32(a, b)) }
        fn min(self, a: F32, b: F32) -> F32 { each!(vminnmq_f32(a, b)) }
        fn abs(self, a: F32) -> F32 { each!(vabsq_f32(a)) }
        fn round_to_i32(self, a: F32) -> I32 { each!(vcvtnq_s32_f32(a)) }
        fn to_f32(self, a: I32) -> F32 { each!(vcvtq_f32_s32(a)) }
        fn f32_to_bits(self, a: F32) -> I32 { each!(vreinterpretq_s32_f32(a)) }
        fn f32_from_bits(self, a: I32) -> F32 { each!(vreinterpretq_f32_s32(a)) }
        fn exp2i(self, n: I32) -> F32 {
            let biased = each!(vaddq_s32(n, [vdupq_n_s32(127); 4]));
            [
                vreinterpretq_f32_s32(vshlq_n_s32::<23>(biased[0])),
                vreinterpretq_f32_s32(vshlq_n_s32::<23>(biased[1])),
                vreinterpretq_f32_s32(vshlq_n_s32::<23>(biased[2])),
                vreinterpretq_f32_s32(vshlq_n_s32::<23>(biased[3])),
            ]
        }
        fn load_bf16(self, from: &[u8; 32]) -> F32 {
            let widen = |at: usize| {
                let half = vld1_u16(from.as_ptr().add(8 * at).cast());
                vreinterpretq_f32_u32(vshll_n_u16::<16>(half))
            };
            [widen(0), widen(1), widen(2), widen(3)]
        }
        fn load_f16(self, from: &[u8; 32]) -> F32 {
            self.load(&from_fn(|i| f16::from_le_bytes([from[2 * i], from[2 * i + 1]]).to_f32()))
        }
        fn round_to_f16(self, a: F32) -> F32 {
            let mut lanes = [0.0; 16];
            self.store(a, &mut lanes);
            self.load(&lanes.map(|lane| f16::from_f32(lane).to_f32()))
        }
        fn reduce_add(self, a: F32) -> f32 {
            let quad = |v: float32x4_t| {
                let halves = vadd_f32(vget_low_f32(v), vget_high_f32(v));
                vget_lane_f32::<0>(halves) + vget_lane_f32::<1>(halves)
            };
            (quad(a[0]) + quad(a[1])) + (quad(a[2]) + quad(a[3]))
        }
        fn reduce_max(self, a: F32) -> f32 {
            vmaxnmvq_f32(vmaxnmq_f32(vmaxnmq_f32(a[0], a[1]), vmaxnmq_f32(a[2], a[3])))
        }
        fn quad_sums(self, vectors: [F32; 4]) -> F32 {
            let [a, b, c, d] = vectors;
            let ab = each!(vaddq_f32(each!(vzip1q_f32(a, b)), each!(vzip2q_f32(a, b))));
            let cd = each!(vaddq_f32(each!(vzip1q_f32(c, d)), each!(vzip2q_f32(c, d))));
            let (ab, cd) = (each!(vreinterpretq_f64_f32(ab)), each!(vreinterpretq_f64_f32(cd)));
            let first = each!(vreinterpretq_f32_f64(each!(vzip1q_f64(ab, cd))));
            let second = each!(vreinterpretq_f32_f64(each!(vzip2q_f64(ab, cd))));
            each!(vaddq_f32(first, second))
        }
        fn add_quad_pairs(self, a: F32, b: F32) -> F32 {
            [vaddq_f32(a[0], a[1]), vaddq_f32(a[2], a[3]), vaddq_f32(b[0], b[1]), vaddq_f32(b[2], b[3])]
        }
        fn transpose_quads(self, a: F32) -> F32 {
            each!(vreinterpretq_f32_s32(self.int_transpose_quads(each!(vreinterpretq_s32_f32(a)))))
        }
        fn zip_quads(self, a: F32) -> F32 {
            [vzip1q_f32(a[0], a[1]), vzip2q_f32(a[0], a[1]), vzip1q_f32(a[2], a[3]), vzip2q_f32(a[2], a[3])]
        }

        fn int_splat(self, value: i32) -> I32 { [vdupq_n_s32(value); 4] }
        fn int_load(self, from: &[i32; 16]) -> I32 {
            let at = from.as_ptr();
            [vld1q_s32(at), vld1q_s32(at.add(4)), vld1q_s32(at.add(8)), vld1q_s32(at.add(12))]
        }
        fn int_store(self, value: I32, to: &mut [i32; 16]) {
            let at = to.as_mut_ptr();
            vst1q_s32(at, value[0]);
            vst1q_s32(at.add(4), value[1]);
            vst1q_s32(at.add(8), value[2]);
            vst1q_s32(at.add(12), value[3]);
        }
        fn int_add(self, a: I32, b: I32) -> I32 { each!(vaddq_s32(a, b)) }
        fn int_sub(self, a: I32, b: I32) -> I32 { each!(vsubq_s32(a, b)) }
        fn int_and(self, a: I32, b: I32) -> I32 { each!(vandq_s32(a, b)) }
        fn int_shl<const BITS: u32>(self, a: I32) -> I32 { each!(vshlq_s32(a, [vdupq_n_s32(BITS as i32); 4])) }
        fn int_shr<const BITS: u32>(self, a: I32) -> I32 {
            each!(vshlq_s32(a, [vdupq_n_s32(-(BITS as i32)); 4]))
        }
        fn int_quad_sums(self, vectors: [I32; 4]) -> I32 {
            let [a, b, c, d] = vectors;
            each!(vpaddq_s32(each!(vpaddq_s32(a, b)), each!(vpaddq_s32(c, d))))
        }
        fn int_add_quad_pairs(self, a: I32, b: I32) -> I32 {
            [vaddq_s32(a[0], a[1]), vaddq_s32(a[2], a[3]), vaddq_s32(b[0], b[1]), vaddq_s32(b[2], b[3])]
        }
        fn int_transpose_quads(self, a: I32) -> I32 {
            let (even, odd) = (vzip1q_s32(a[0], a[1]), vzip1q_s32(a[2], a[3]));
            let (even_high, odd_high) = (vzip2q_s32(a[0], a[1]), vzip2q_s32(a[2], a[3]));
            let join = |low: int32x4_t, high: int32x4_t, second: bool| {
                let (low, high) = (vreinterpretq_s64_s32(low), vreinterpretq_s64_s32(high));
                vreinterpretq_s32_s64(if second { vzip2q_s64(low, high) } else { vzip1q_s64(low, high) })
            };
            [
                join(even, odd, false),
                join(even, odd, true),
                join(even_high, odd_high, false),
                join(even_high, odd_high, true),
            ]
        }
        fn int_zip_quads(self, a: I32) -> I32 {
            [vzip1q_s32(a[0], a[1]), vzip2q_s32(a[0], a[1]), vzip1q_s32(a[2], a[3]), vzip2q_s32(a[2], a[3])]
        }
        fn swap_pairs(self, a: I32) -> I32 { each!(vrev64q_s32(a)) }
        fn int_transpose(self, rows: &mut [I32; 16]) {
            let mut lanes = [[0i32; 16]; 16];
            for (row, lanes) in rows.iter().zip(&mut lanes) {
                self.int_store(*row, lanes);
            }
            for (column, row) in rows.iter_mut().enumerate() {
                *row = self.int_load(&from_fn(|r| lanes[r][column]));
            }
        }
        fn store_low_bytes(self, a: I32, to: &mut [i8; 16]) {
            let low = vcombine_s16(vmovn_s32(a[0]), vmovn_s32(a[1]));
            let high = vcombine_s16(vmovn_s32(a[2]), vmovn_s32(a[3]));
            vst1q_s8(to.as_mut_ptr(), vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
        }

        fn load_bytes(self, from: &[u8; 64]) -> U8 {
            let at = from.as_ptr();
            [vld1q_u8(at), vld1q_u8(at.add(16)), vld1q_u8(at.add(32)), vld1q_u8(at.add(48))]
        }
        fn store_bytes(self, value: U8, to: &mut [u8; 64]) {
            let at = to.as_mut_ptr();
            vst1q_u8(at, value[0]);
            vst1q_u8(at.add(16), value[1]);
            vst1q_u8(at.add(32), value[2]);
            vst1q_u8(at.add(48), value[3]);
        }
        fn low_nibbles(self, a: U8) -> U8 { each!(vandq_u8(a, [vdupq_n_u8(15); 4])) }
        fn high_nibbles(self, a: U8) -> U8 {
            [vshrq_n_u8::<4>(a[0]), vshrq_n_u8::<4>(a[1]), vshrq_n_u8::<4>(a[2]), vshrq_n_u8::<4>(a[3])]
        }
        fn flip_sign(self, a: U8) -> U8 { each!(veorq_u8(a, [vdupq_n_u8(128); 4])) }
        fn load_activations(self, upper: &[i8; 64], lower: &[i8; 64]) -> [[int8x16_t; 4]; 2] {
            [upper, lower].map(|half| from_fn(|i| vld1q_s8(half.as_ptr().add(16 * i))))
        }
        fn broadcast_activations(self, upper: [i8; 4], lower: [i8; 4]) -> [[int8x16_t; 4]; 2] {
            [upper, lower].map(|half| [vreinterpretq_s8_s32(vdupq_n_s32(word(half))); 4])
        }
        fn zero_dot(self) -> [I32; 2] { [[vdupq_n_s32(0); 4]; 2] }
        fn add_dot(self, sum: [I32; 2], a: U8, x: [[int8x16_t; 4]; 2]) -> [I32; 2] {
            self.add_signed_dot(sum, self.flip_sign(a), x)
        }
        fn dot_to_i32(self, sum: [I32; 2]) -> I32 {
            from_fn(|i| vaddq_s32(vshlq_n_s32::<8>(sum[0][i]), sum[1][i]))
        }
        fn broadcast_tile_activations(self, quad: &[i32; 2]) -> [int8x16_t; 2] {
            quad.map(|half| vreinterpretq_s8_s32(vdupq_n_s32(half)))
        }
        fn widen_codes(self, codes: U8) -> U8 { codes }
        fn zero_tile_dot(self) -> [I32; 2] { self.zero_dot() }
        fn add_tile_dot(self, sum: [I32; 2], codes: U8, x: [int8x16_t; 2]) -> [I32; 2] {
            self.add_dot(sum, codes, x.map(|half| [half; 4]))
        }
        fn tile_dot_to_i32(self, sum: [I32; 2]) -> I32 { self.dot_to_i32(sum) }
        fn pack_int4_activations(self, _x: &mut [[i8; 64]; 4]) {}
        fn load_int4_activations(self, x: &[[i8; 64]; 4]) -> [[int8x16_t; 4]; 4] {
            from_fn(|vector| from_fn(|i| vld1q_s8(x[vector].as_ptr().add(16 * i))))
        }
        fn broadcast_int4_activations(self, eight: &[i32; 4]) -> [[int8x16_t; 4]; 4] {
            eight.map(|word| [vreinterpretq_s8_s32(vdupq_n_s32(word)); 4])
        }
        fn split_nibbles(self, a: U8) -> [U8; 2] { [self.low_nibbles(a), self.high_nibbles(a)] }
        fn zero_int4_dot(self) -> [I32; 2] { self.zero_dot() }
        fn add_int4_dot(self, sum: [I32; 2], codes: [U8; 2], x: [[int8x16_t; 4]; 4]) -> [I32; 2] {
            let sum = self.add_signed_dot(sum, codes[0], [x[0], x[1]]);
            self.add_signed_dot(sum, codes[1], [x[2], x[3]])
        }
        fn int4_dot_to_i32(self, sum: [I32; 2]) -> I32 { self.dot_to_i32(sum) }
        fn as_words(self, a: U8) -> I32 { each!(vreinterpretq_s32_u8(a)) }
        fn as_bytes(self, a: I32) -> U8 { each!(vreinterpretq_u8_s32(a)) }
        fn nibble_to_f32<const J: u32>(self, a: I32) -> F32 {
            let (count, mask) = (vdupq_n_s32(-4 * (J as i32)), vdupq_n_u32(15));
            from_fn(|i| vcvtq_f32_u32(vandq_u32(vshlq_u32(vreinterpretq_u32_s32(a[i]), count), mask)))
        }
        fn byte_to_f32<const J: u32>(self, a: I32) -> F32 {
            let (count, mask) = (vdupq_n_s32(-8 * (J as i32)), vdupq_n_u32(255));
            from_fn(|i| vcvtq_f32_u32(vandq_u32(vshlq_u32(vreinterpretq_u32_s32(a[i]), count), mask)))
        }
        fn signed_byte_to_f32<const J: u32>(self, a: I32) -> F32 {
            let count = vdupq_n_s32(24 - 8 * (J as i32));
            from_fn(|i| vcvtq_f32_s32(vshrq_n_s32::<24>(vshlq_s32(a[i], count))))
        }
        fn prefetch_l2(self, base: &[u8], offset: usize) {
            std::arch::asm!(
                "prfm pldl1keep, [{at}]",
                at = in(reg) base.as_ptr().wrapping_add(offset),
                options(nostack, readonly, preserves_flags)
            );
        }
        // `prefetch_l2` prefetches into L1.
        fn prefetch_l1(self, _of: &[u8], _offset: usize) {}
    }
}
