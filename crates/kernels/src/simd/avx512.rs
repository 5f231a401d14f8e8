//! AVX-512 with VNNI and VBMI, and GFNI: Ice Lake, Zen 4 and later.

use std::arch::asm;
use std::arch::x86_64::*;

use super::{Kernel, Simd, even_then_odd, every_second, with_features, word};
use crate::int16_split::pair_upper;

/// `_mm512_dpwssd_epi32` by inline assembly: LLVM splits the second of two consecutive ones into a product and an addition,
/// three instructions instead of two in loops that are bound by the number of instructions.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn dot_words(sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
    let mut sum = sum;
    // SAFETY: the target feature is enabled, and the instruction modifies only its operand.
    unsafe {
        asm!(
            "vpdpwssd {sum}, {a}, {b}",
            sum = inout(zmm_reg) sum,
            a = in(zmm_reg) a,
            b = in(zmm_reg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

#[derive(Clone, Copy)]
pub(super) struct Avx512(());

pub(super) fn detected() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
        && is_x86_feature_detected!("avx512vbmi")
        && is_x86_feature_detected!("gfni")
        && is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
}

/// # Safety
/// [`detected`] has returned true.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,gfni,avx2,fma")]
pub(super) unsafe fn enter<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx512(()))
}

impl Simd for Avx512 {
    type F32 = __m512;
    type I32 = __m512i;
    type U8 = __m512i;
    type Activations = [__m512i; 2];
    /// Products with upper and with lower halves.
    type Dot = [__m512i; 2];
    /// i16: even bytes of each word, then odd ones.
    type TileCodes = [__m512i; 2];
    type TileActivations = [__m512i; 2];
    type TileDot = __m512i;
    /// The bytes themselves, their low nibbles and their high ones.
    type Int4Codes = [__m512i; 3];
    /// c, d and e of the paired nibble encoding.
    type Int4Activations = [__m512i; 3];
    /// Products with c, and with d and e.
    type Int4Dot = [__m512i; 2];

    // 2 x 8 accumulators, 2 x 2 vectors of codes, 2 of activations: 22 of 32 registers.
    const TILE_TOKENS: usize = 8;
    // 2 x 4 x 2 accumulators, 2 x 3 vectors of codes, 3 of activations: 25 registers.
    const INT4_TILE_TOKENS: usize = 4;
    const TILES_PER_PASS: usize = 2;
    const QUERY_HEADS_PER_PASS: usize = 4;
    const CODE_OFFSET: i32 = 0;

    #[inline(always)]
    fn pack_tile_activations(upper: [i8; 4], lower: [i8; 4]) -> [i32; 2] {
        even_then_odd(upper, lower)
    }

    #[inline(always)]
    fn pack_int4_tile_activations(upper: [i8; 8], lower: [i8; 8]) -> [i32; 4] {
        let c = every_second(lower, 0);
        let upper_odd = every_second(upper, 1);
        let e = std::array::from_fn(|i| pair_upper(upper_odd[i], c[i]));
        [word(c), word(every_second(upper, 0)), word(e), 0]
    }

    with_features! {
        fn splat(self, value: f32) -> __m512 { _mm512_set1_ps(value) }
        fn load(self, from: &[f32; 16]) -> __m512 { _mm512_loadu_ps(from.as_ptr()) }
        fn store(self, value: __m512, to: &mut [f32; 16]) { _mm512_storeu_ps(to.as_mut_ptr(), value) }
        fn add(self, a: __m512, b: __m512) -> __m512 { _mm512_add_ps(a, b) }
        fn sub(self, a: __m512, b: __m512) -> __m512 { _mm512_sub_ps(a, b) }
        fn mul(self, a: __m512, b: __m512) -> __m512 { _mm512_mul_ps(a, b) }
        fn div(self, a: __m512, b: __m512) -> __m512 { _mm512_div_ps(a, b) }
        fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 { _mm512_fmadd_ps(a, b, c) }
        fn max(self, a: __m512, b: __m512) -> __m512 { _mm512_max_ps(a, b) }
        fn min(self, a: __m512, b: __m512) -> __m512 { _mm512_min_ps(a, b) }
        fn abs(self, a: __m512) -> __m512 { _mm512_abs_ps(a) }
        fn round_to_i32(self, a: __m512) -> __m512i { _mm512_cvtps_epi32(a) }
        fn to_f32(self, a: __m512i) -> __m512 { _mm512_cvtepi32_ps(a) }
        fn f32_to_bits(self, a: __m512) -> __m512i { _mm512_castps_si512(a) }
        fn f32_from_bits(self, a: __m512i) -> __m512 { _mm512_castsi512_ps(a) }
        fn exp2i(self, n: __m512i) -> __m512 {
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_add_epi32(n, _mm512_set1_epi32(127))))
        }
        fn load_bf16(self, from: &[u8; 32]) -> __m512 {
            let half = _mm256_loadu_si256(from.as_ptr().cast());
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half)))
        }
        fn load_f16(self, from: &[u8; 32]) -> __m512 {
            _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast()))
        }
        fn round_to_f16(self, a: __m512) -> __m512 {
            _mm512_cvtph_ps(_mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(a))
        }
        fn reduce_add(self, a: __m512) -> f32 {
            let a = _mm512_add_ps(a, _mm512_permute_ps::<0b01_00_11_10>(a));
            let a = _mm512_add_ps(a, _mm512_permute_ps::<0b10_11_00_01>(a));
            let a = _mm512_add_ps(a, _mm512_shuffle_f32x4::<0b10_11_00_01>(a, a));
            let a = _mm512_add_ps(a, _mm512_shuffle_f32x4::<0b01_00_11_10>(a, a));
            _mm512_cvtss_f32(a)
        }
        fn reduce_max(self, a: __m512) -> f32 { _mm512_reduce_max_ps(a) }
        fn quad_sums(self, vectors: [__m512; 4]) -> __m512 {
            let [a, b, c, d] = vectors;
            let ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
            let cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
            let (ab, cd) = (_mm512_castps_pd(ab), _mm512_castps_pd(cd));
            _mm512_add_ps(
                _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)),
                _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)),
            )
        }
        fn add_quad_pairs(self, a: __m512, b: __m512) -> __m512 {
            _mm512_add_ps(
                _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b),
                _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b),
            )
        }
        fn transpose_quads(self, a: __m512) -> __m512 {
            _mm512_permutexvar_ps(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), a)
        }
        fn zip_quads(self, a: __m512) -> __m512 {
            _mm512_permutexvar_ps(_mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15), a)
        }

        fn int_splat(self, value: i32) -> __m512i { _mm512_set1_epi32(value) }
        fn int_load(self, from: &[i32; 16]) -> __m512i { _mm512_loadu_si512(from.as_ptr().cast()) }
        fn int_store(self, value: __m512i, to: &mut [i32; 16]) {
            _mm512_storeu_si512(to.as_mut_ptr().cast(), value)
        }
        fn int_add(self, a: __m512i, b: __m512i) -> __m512i { _mm512_add_epi32(a, b) }
        fn int_sub(self, a: __m512i, b: __m512i) -> __m512i { _mm512_sub_epi32(a, b) }
        fn int_and(self, a: __m512i, b: __m512i) -> __m512i { _mm512_and_si512(a, b) }
        fn int_shl<const BITS: u32>(self, a: __m512i) -> __m512i { _mm512_slli_epi32::<BITS>(a) }
        fn int_shr<const BITS: u32>(self, a: __m512i) -> __m512i { _mm512_srai_epi32::<BITS>(a) }
        fn int_quad_sums(self, vectors: [__m512i; 4]) -> __m512i {
            let [a, b, c, d] = vectors;
            let ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
            let cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
            _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd))
        }
        fn int_add_quad_pairs(self, a: __m512i, b: __m512i) -> __m512i {
            _mm512_add_epi32(
                _mm512_shuffle_i32x4::<0b10_00_10_00>(a, b),
                _mm512_shuffle_i32x4::<0b11_01_11_01>(a, b),
            )
        }
        fn int_transpose_quads(self, a: __m512i) -> __m512i {
            let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            _mm512_permutexvar_epi32(order, a)
        }
        fn int_zip_quads(self, a: __m512i) -> __m512i {
            let order = _mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
            _mm512_permutexvar_epi32(order, a)
        }
        fn swap_pairs(self, a: __m512i) -> __m512i { _mm512_shuffle_epi32::<0b10_11_00_01>(a) }
        fn int_transpose(self, rows: &mut [__m512i; 16]) {
            // Transpose 4 x 4 blocks of lanes within each group of four rows, then the blocks.
            for four in 0..4 {
                let [a, b, c, d] = [rows[4 * four], rows[4 * four + 1], rows[4 * four + 2], rows[4 * four + 3]];
                let (ab, ab_high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
                let (cd, cd_high) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
                rows[4 * four] = _mm512_unpacklo_epi64(ab, cd);
                rows[4 * four + 1] = _mm512_unpackhi_epi64(ab, cd);
                rows[4 * four + 2] = _mm512_unpacklo_epi64(ab_high, cd_high);
                rows[4 * four + 3] = _mm512_unpackhi_epi64(ab_high, cd_high);
            }
            let mut out = *rows;
            for column in 0..4 {
                let [a, b, c, d] = [rows[column], rows[4 + column], rows[8 + column], rows[12 + column]];
                let even_ab = _mm512_shuffle_i32x4::<0b10_00_10_00>(a, b);
                let odd_ab = _mm512_shuffle_i32x4::<0b11_01_11_01>(a, b);
                let even_cd = _mm512_shuffle_i32x4::<0b10_00_10_00>(c, d);
                let odd_cd = _mm512_shuffle_i32x4::<0b11_01_11_01>(c, d);
                out[column] = _mm512_shuffle_i32x4::<0b10_00_10_00>(even_ab, even_cd);
                out[4 + column] = _mm512_shuffle_i32x4::<0b10_00_10_00>(odd_ab, odd_cd);
                out[8 + column] = _mm512_shuffle_i32x4::<0b11_01_11_01>(even_ab, even_cd);
                out[12 + column] = _mm512_shuffle_i32x4::<0b11_01_11_01>(odd_ab, odd_cd);
            }
            *rows = out;
        }
        fn store_low_bytes(self, a: __m512i, to: &mut [i8; 16]) {
            _mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(a))
        }

        fn load_bytes(self, from: &[u8; 64]) -> __m512i { _mm512_loadu_si512(from.as_ptr().cast()) }
        fn store_bytes(self, value: __m512i, to: &mut [u8; 64]) {
            _mm512_storeu_si512(to.as_mut_ptr().cast(), value)
        }
        fn low_nibbles(self, a: __m512i) -> __m512i { _mm512_and_si512(a, _mm512_set1_epi8(15)) }
        fn high_nibbles(self, a: __m512i) -> __m512i {
            // Bit matrix of a shift right by four: byte 7 - i selects the input bits of output bit i.
            _mm512_gf2p8affine_epi64_epi8::<0>(a, _mm512_set1_epi64(0x1020_4080_0000_0000))
        }
        fn flip_sign(self, a: __m512i) -> __m512i { _mm512_xor_si512(a, _mm512_set1_epi8(-128)) }
        fn load_activations(self, upper: &[i8; 64], lower: &[i8; 64]) -> [__m512i; 2] {
            [_mm512_loadu_si512(upper.as_ptr().cast()), _mm512_loadu_si512(lower.as_ptr().cast())]
        }
        fn broadcast_activations(self, upper: [i8; 4], lower: [i8; 4]) -> [__m512i; 2] {
            [_mm512_set1_epi32(word(upper)), _mm512_set1_epi32(word(lower))]
        }
        fn zero_dot(self) -> [__m512i; 2] { [_mm512_setzero_si512(); 2] }
        fn add_dot(self, sum: [__m512i; 2], a: __m512i, x: [__m512i; 2]) -> [__m512i; 2] {
            [_mm512_dpbusd_epi32(sum[0], a, x[0]), _mm512_dpbusd_epi32(sum[1], a, x[1])]
        }
        fn dot_to_i32(self, sum: [__m512i; 2]) -> __m512i {
            _mm512_add_epi32(_mm512_slli_epi32::<8>(sum[0]), sum[1])
        }
        fn broadcast_tile_activations(self, quad: &[i32; 2]) -> [__m512i; 2] {
            [_mm512_set1_epi32(quad[0]), _mm512_set1_epi32(quad[1])]
        }
        fn widen_codes(self, codes: __m512i) -> [__m512i; 2] {
            [_mm512_and_si512(codes, _mm512_set1_epi16(255)), _mm512_srli_epi16::<8>(codes)]
        }
        fn zero_tile_dot(self) -> __m512i { _mm512_setzero_si512() }
        fn add_tile_dot(self, sum: __m512i, codes: [__m512i; 2], x: [__m512i; 2]) -> __m512i {
            dot_words(dot_words(sum, codes[0], x[0]), codes[1], x[1])
        }
        fn tile_dot_to_i32(self, sum: __m512i) -> __m512i { sum }
        fn pack_int4_activations(self, x: &mut [[i8; 64]; 4]) {
            let [d, c, upper, _] = x;
            for (upper, &c) in upper.iter_mut().zip(c.iter()) {
                *upper = pair_upper(*upper, c);
            }
            std::mem::swap(d, c);
        }
        fn load_int4_activations(self, x: &[[i8; 64]; 4]) -> [__m512i; 3] {
            [
                _mm512_loadu_si512(x[0].as_ptr().cast()),
                _mm512_loadu_si512(x[1].as_ptr().cast()),
                _mm512_loadu_si512(x[2].as_ptr().cast()),
            ]
        }
        fn broadcast_int4_activations(self, eight: &[i32; 4]) -> [__m512i; 3] {
            [_mm512_set1_epi32(eight[0]), _mm512_set1_epi32(eight[1]), _mm512_set1_epi32(eight[2])]
        }
        fn split_nibbles(self, a: __m512i) -> [__m512i; 3] { [a, self.low_nibbles(a), self.high_nibbles(a)] }
        fn zero_int4_dot(self) -> [__m512i; 2] { self.zero_dot() }
        fn add_int4_dot(self, sum: [__m512i; 2], codes: [__m512i; 3], x: [__m512i; 3]) -> [__m512i; 2] {
            let upper = _mm512_dpbusd_epi32(sum[1], codes[1], x[1]);
            [_mm512_dpbusd_epi32(sum[0], codes[0], x[0]), _mm512_dpbusd_epi32(upper, codes[2], x[2])]
        }
        fn int4_dot_to_i32(self, sum: [__m512i; 2]) -> __m512i {
            _mm512_add_epi32(_mm512_slli_epi32::<8>(sum[1]), sum[0])
        }
        fn int4_dot(self, codes: [__m512i; 3], x: [__m512i; 3]) -> __m512i {
            let upper = _mm512_dpbusd_epi32(_mm512_setzero_si512(), codes[1], x[1]);
            let upper = _mm512_dpbusd_epi32(upper, codes[2], x[2]);
            _mm512_dpbusd_epi32(_mm512_slli_epi32::<8>(upper), codes[0], x[0])
        }
        fn as_words(self, a: __m512i) -> __m512i { a }
        fn as_bytes(self, a: __m512i) -> __m512i { a }
        fn nibble_to_f32<const J: u32>(self, a: __m512i) -> __m512 {
            // `vpermps` reads only the low four bits of each index, so no mask is needed.
            let numbers = _mm512_setr_ps(
                0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0,
            );
            _mm512_permutexvar_ps(_mm512_srlv_epi32(a, _mm512_set1_epi32(4 * J as i32)), numbers)
        }
        fn byte_to_f32<const J: u32>(self, a: __m512i) -> __m512 {
            let shifted = _mm512_srlv_epi32(a, _mm512_set1_epi32(8 * J as i32));
            _mm512_cvtepi32_ps(_mm512_and_si512(shifted, _mm512_set1_epi32(255)))
        }
        fn signed_byte_to_f32<const J: u32>(self, a: __m512i) -> __m512 {
            let top = _mm512_sllv_epi32(a, _mm512_set1_epi32(24 - 8 * J as i32));
            _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(top))
        }
        fn unpack<const BITS: u32>(self, from: &[u8]) -> __m512i {
            // Each quadword receives the bytes from its first code on; then eight codes are shifted to its bytes.
            const fn places(bits: usize) -> [u8; 64] {
                let mut places = [0; 64];
                let mut at = 0;
                while at < 64 {
                    places[at] = (at / 8 * bits + at % 8) as u8;
                    at += 1;
                }
                places
            }
            const fn shifts(bits: usize) -> [u8; 64] {
                let mut shifts = [0; 64];
                let mut at = 0;
                while at < 64 {
                    shifts[at] = (at % 8 * bits) as u8;
                    at += 1;
                }
                shifts
            }
            let (places, shifts) = const { (places(BITS as usize), shifts(BITS as usize)) };
            let from = &from[..8 * BITS as usize];
            let packed = _mm512_maskz_loadu_epi8((1 << (8 * BITS)) - 1, from.as_ptr().cast());
            let words = _mm512_permutexvar_epi8(_mm512_loadu_si512(places.as_ptr().cast()), packed);
            let codes = _mm512_multishift_epi64_epi8(_mm512_loadu_si512(shifts.as_ptr().cast()), words);
            _mm512_and_si512(codes, _mm512_set1_epi8((1 << BITS) - 1))
        }
        fn prefetch_l2(self, base: &[u8], offset: usize) {
            _mm_prefetch::<_MM_HINT_T1>(base.as_ptr().wrapping_add(offset).cast())
        }
        fn prefetch_l1(self, base: &[u8], offset: usize) {
            _mm_prefetch::<_MM_HINT_T0>(base.as_ptr().wrapping_add(offset).cast())
        }
    }
}
