//! AVX2 with FMA and F16C: sixteen lanes in two registers.

use std::arch::x86_64::*;

use super::{Kernel, Simd, even_then_odd, every_second, with_features, word};

#[derive(Clone, Copy)]
pub(super) struct Avx2(());

pub(super) fn detected() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
        && is_x86_feature_detected!("bmi2")
}

/// # Safety
/// [`detected`] has returned true.
#[target_feature(enable = "avx2,fma,f16c,bmi2")]
pub(super) unsafe fn enter<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx2(()))
}

type F32 = [__m256; 2];
type I32 = [__m256i; 2];

/// Applies an intrinsic to both halves.
macro_rules! both {
    ($op:ident($a:expr)) => {
        [$op($a[0]), $op($a[1])]
    };
    ($op:ident($a:expr, $b:expr)) => {
        [$op($a[0], $b[0]), $op($a[1], $b[1])]
    };
}

/// One half of each of eight consecutive vectors.
macro_rules! eight {
    ($vectors:ident, $from:literal, $half:literal) => {
        [
            $vectors[$from][$half],
            $vectors[$from + 1][$half],
            $vectors[$from + 2][$half],
            $vectors[$from + 3][$half],
            $vectors[$from + 4][$half],
            $vectors[$from + 5][$half],
            $vectors[$from + 6][$half],
            $vectors[$from + 7][$half],
        ]
    };
}

impl Avx2 {
    with_features! {
        fn zip(self, a: __m256i) -> __m256i {
            _mm256_permutevar8x32_epi32(a, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))
        }
        fn load_signed(self, from: &[i8; 64]) -> I32 {
            [_mm256_loadu_si256(from.as_ptr().cast()), _mm256_loadu_si256(from.as_ptr().add(32).cast())]
        }
        /// Even bytes, then odd ones, sign-extended to 16 bits.
        fn widen_signed(self, bytes: __m256i) -> [__m256i; 2] {
            [_mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(bytes)), _mm256_srai_epi16::<8>(bytes)]
        }
        fn add_widened(self, sum: I32, codes: [I32; 2], x: [I32; 2]) -> I32 {
            let even = both!(_mm256_madd_epi16(codes[0], x[0]));
            let odd = both!(_mm256_madd_epi16(codes[1], x[1]));
            self.int_add(sum, self.int_add(even, odd))
        }
        /// Transposes an 8 x 8 matrix of lanes.
        fn transpose_eight(self, rows: [__m256i; 8]) -> [__m256i; 8] {
            let [a, b, c, d, e, f, g, h] = rows;
            let (ab, ab_high) = (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
            let (cd, cd_high) = (_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
            let (ef, ef_high) = (_mm256_unpacklo_epi32(e, f), _mm256_unpackhi_epi32(e, f));
            let (gh, gh_high) = (_mm256_unpacklo_epi32(g, h), _mm256_unpackhi_epi32(g, h));
            let fours = [
                (_mm256_unpacklo_epi64(ab, cd), _mm256_unpacklo_epi64(ef, gh)),
                (_mm256_unpackhi_epi64(ab, cd), _mm256_unpackhi_epi64(ef, gh)),
                (_mm256_unpacklo_epi64(ab_high, cd_high), _mm256_unpacklo_epi64(ef_high, gh_high)),
                (_mm256_unpackhi_epi64(ab_high, cd_high), _mm256_unpackhi_epi64(ef_high, gh_high)),
            ];
            let [p, q, r, s] = fours;
            [
                _mm256_permute2x128_si256::<0x20>(p.0, p.1),
                _mm256_permute2x128_si256::<0x20>(q.0, q.1),
                _mm256_permute2x128_si256::<0x20>(r.0, r.1),
                _mm256_permute2x128_si256::<0x20>(s.0, s.1),
                _mm256_permute2x128_si256::<0x31>(p.0, p.1),
                _mm256_permute2x128_si256::<0x31>(q.0, q.1),
                _mm256_permute2x128_si256::<0x31>(r.0, r.1),
                _mm256_permute2x128_si256::<0x31>(s.0, s.1),
            ]
        }
    }
}

impl Simd for Avx2 {
    type F32 = F32;
    type I32 = I32;
    type U8 = I32;
    /// i16 activations of the even bytes of each word, then of the odd ones. `vpmaddubsw` saturates, so codes are widened to 16
    /// bits and multiplied with whole activations.
    type Activations = [I32; 2];
    type Dot = I32;
    /// i16: even bytes of each word, then odd ones.
    type TileCodes = [I32; 2];
    type TileActivations = [__m256i; 2];
    type TileDot = I32;
    /// i16: low nibbles of the even bytes of each word, of the odd bytes, then the high nibbles.
    type Int4Codes = [I32; 4];
    type Int4Activations = [I32; 4];
    type Int4Dot = I32;

    // 4 x 2 accumulators, 2 x 2 vectors of codes, 2 of activations: 14 of 16 registers.
    const TILE_TOKENS: usize = 4;
    const INT4_TILE_TOKENS: usize = 4;
    const TILES_PER_PASS: usize = 1;
    // Their accumulators do not fit registers, but cache codes are widened once for all four.
    const QUERY_HEADS_PER_PASS: usize = 4;
    const CODE_OFFSET: i32 = 0;

    #[inline(always)]
    fn pack_tile_activations(upper: [i8; 4], lower: [i8; 4]) -> [i32; 2] {
        even_then_odd(upper, lower)
    }

    #[inline(always)]
    fn pack_int4_tile_activations(upper: [i8; 8], lower: [i8; 8]) -> [i32; 4] {
        let low = even_then_odd(every_second(upper, 0), every_second(lower, 0));
        let high = even_then_odd(every_second(upper, 1), every_second(lower, 1));
        [low[0], low[1], high[0], high[1]]
    }

    with_features! {
        fn splat(self, value: f32) -> F32 { [_mm256_set1_ps(value); 2] }
        fn load(self, from: &[f32; 16]) -> F32 {
            [_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from.as_ptr().add(8))]
        }
        fn store(self, value: F32, to: &mut [f32; 16]) {
            _mm256_storeu_ps(to.as_mut_ptr(), value[0]);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), value[1]);
        }
        fn add(self, a: F32, b: F32) -> F32 { both!(_mm256_add_ps(a, b)) }
        fn sub(self, a: F32, b: F32) -> F32 { both!(_mm256_sub_ps(a, b)) }
        fn mul(self, a: F32, b: F32) -> F32 { both!(_mm256_mul_ps(a, b)) }
        fn div(self, a: F32, b: F32) -> F32 { both!(_mm256_div_ps(a, b)) }
        fn fma(self, a: F32, b: F32, c: F32) -> F32 {
            [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])]
        }
        fn max(self, a: F32, b: F32) -> F32 { both!(_mm256_max_ps(a, b)) }
        fn min(self, a: F32, b: F32) -> F32 { both!(_mm256_min_ps(a, b)) }
        fn abs(self, a: F32) -> F32 {
            let sign = _mm256_set1_ps(-0.0);
            [_mm256_andnot_ps(sign, a[0]), _mm256_andnot_ps(sign, a[1])]
        }
        fn round_to_i32(self, a: F32) -> I32 { both!(_mm256_cvtps_epi32(a)) }
        fn to_f32(self, a: I32) -> F32 { both!(_mm256_cvtepi32_ps(a)) }
        fn f32_to_bits(self, a: F32) -> I32 { both!(_mm256_castps_si256(a)) }
        fn f32_from_bits(self, a: I32) -> F32 { both!(_mm256_castsi256_ps(a)) }
        fn exp2i(self, n: I32) -> F32 {
            let bits = both!(_mm256_add_epi32(n, [_mm256_set1_epi32(127); 2]));
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(bits[0])),
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(bits[1])),
            ]
        }
        fn load_bf16(self, from: &[u8; 32]) -> F32 {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.as_ptr().cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.as_ptr().add(16).cast()));
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
            ]
        }
        fn load_f16(self, from: &[u8; 32]) -> F32 {
            [
                _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().add(16).cast())),
            ]
        }
        fn round_to_f16(self, a: F32) -> F32 {
            [
                _mm256_cvtph_ps(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(a[0])),
                _mm256_cvtph_ps(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(a[1])),
            ]
        }
        fn reduce_add(self, a: F32) -> f32 {
            let pairs = [
                _mm256_add_ps(a[0], _mm256_permute_ps::<0b01_00_11_10>(a[0])),
                _mm256_add_ps(a[1], _mm256_permute_ps::<0b01_00_11_10>(a[1])),
            ];
            let quads = [
                _mm256_add_ps(pairs[0], _mm256_permute_ps::<0b10_11_00_01>(pairs[0])),
                _mm256_add_ps(pairs[1], _mm256_permute_ps::<0b10_11_00_01>(pairs[1])),
            ];
            let first = _mm_add_ss(_mm256_castps256_ps128(quads[0]), _mm256_extractf128_ps::<1>(quads[0]));
            let second = _mm_add_ss(_mm256_castps256_ps128(quads[1]), _mm256_extractf128_ps::<1>(quads[1]));
            _mm_cvtss_f32(_mm_add_ss(first, second))
        }
        fn reduce_max(self, a: F32) -> f32 {
            let eight = _mm256_max_ps(a[0], a[1]);
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
        fn quad_sums(self, vectors: [F32; 4]) -> F32 {
            let [a, b, c, d] = vectors;
            let ab = both!(_mm256_add_ps(both!(_mm256_unpacklo_ps(a, b)), both!(_mm256_unpackhi_ps(a, b))));
            let cd = both!(_mm256_add_ps(both!(_mm256_unpacklo_ps(c, d)), both!(_mm256_unpackhi_ps(c, d))));
            let (ab, cd) = (both!(_mm256_castps_pd(ab)), both!(_mm256_castps_pd(cd)));
            let low = both!(_mm256_castpd_ps(both!(_mm256_unpacklo_pd(ab, cd))));
            let high = both!(_mm256_castpd_ps(both!(_mm256_unpackhi_pd(ab, cd))));
            both!(_mm256_add_ps(low, high))
        }
        fn add_quad_pairs(self, a: F32, b: F32) -> F32 {
            [
                _mm256_add_ps(
                    _mm256_permute2f128_ps::<0x20>(a[0], a[1]),
                    _mm256_permute2f128_ps::<0x31>(a[0], a[1]),
                ),
                _mm256_add_ps(
                    _mm256_permute2f128_ps::<0x20>(b[0], b[1]),
                    _mm256_permute2f128_ps::<0x31>(b[0], b[1]),
                ),
            ]
        }
        fn transpose_quads(self, a: F32) -> F32 {
            both!(_mm256_castsi256_ps(self.int_transpose_quads(both!(_mm256_castps_si256(a)))))
        }
        fn zip_quads(self, a: F32) -> F32 {
            both!(_mm256_castsi256_ps(self.int_zip_quads(both!(_mm256_castps_si256(a)))))
        }

        fn int_splat(self, value: i32) -> I32 { [_mm256_set1_epi32(value); 2] }
        fn int_load(self, from: &[i32; 16]) -> I32 {
            [_mm256_loadu_si256(from.as_ptr().cast()), _mm256_loadu_si256(from.as_ptr().add(8).cast())]
        }
        fn int_store(self, value: I32, to: &mut [i32; 16]) {
            _mm256_storeu_si256(to.as_mut_ptr().cast(), value[0]);
            _mm256_storeu_si256(to.as_mut_ptr().add(8).cast(), value[1]);
        }
        fn int_add(self, a: I32, b: I32) -> I32 { both!(_mm256_add_epi32(a, b)) }
        fn int_sub(self, a: I32, b: I32) -> I32 { both!(_mm256_sub_epi32(a, b)) }
        fn int_and(self, a: I32, b: I32) -> I32 { both!(_mm256_and_si256(a, b)) }
        fn int_shl<const BITS: u32>(self, a: I32) -> I32 {
            let count = _mm_cvtsi32_si128(BITS as i32);
            [_mm256_sll_epi32(a[0], count), _mm256_sll_epi32(a[1], count)]
        }
        fn int_shr<const BITS: u32>(self, a: I32) -> I32 {
            let count = _mm_cvtsi32_si128(BITS as i32);
            [_mm256_sra_epi32(a[0], count), _mm256_sra_epi32(a[1], count)]
        }
        fn int_quad_sums(self, vectors: [I32; 4]) -> I32 {
            let [a, b, c, d] = vectors;
            let ab = both!(_mm256_add_epi32(both!(_mm256_unpacklo_epi32(a, b)), both!(_mm256_unpackhi_epi32(a, b))));
            let cd = both!(_mm256_add_epi32(both!(_mm256_unpacklo_epi32(c, d)), both!(_mm256_unpackhi_epi32(c, d))));
            both!(_mm256_add_epi32(both!(_mm256_unpacklo_epi64(ab, cd)), both!(_mm256_unpackhi_epi64(ab, cd))))
        }
        fn int_add_quad_pairs(self, a: I32, b: I32) -> I32 {
            [
                _mm256_add_epi32(
                    _mm256_permute2x128_si256::<0x20>(a[0], a[1]),
                    _mm256_permute2x128_si256::<0x31>(a[0], a[1]),
                ),
                _mm256_add_epi32(
                    _mm256_permute2x128_si256::<0x20>(b[0], b[1]),
                    _mm256_permute2x128_si256::<0x31>(b[0], b[1]),
                ),
            ]
        }
        fn int_transpose_quads(self, a: I32) -> I32 {
            let zipped = self.int_zip_quads(a);
            let even = _mm256_unpacklo_epi64(zipped[0], zipped[1]);
            let odd = _mm256_unpackhi_epi64(zipped[0], zipped[1]);
            [_mm256_permute2x128_si256::<0x20>(even, odd), _mm256_permute2x128_si256::<0x31>(even, odd)]
        }
        fn int_zip_quads(self, a: I32) -> I32 { [self.zip(a[0]), self.zip(a[1])] }
        fn swap_pairs(self, a: I32) -> I32 {
            [_mm256_shuffle_epi32::<0b10_11_00_01>(a[0]), _mm256_shuffle_epi32::<0b10_11_00_01>(a[1])]
        }
        fn int_transpose(self, rows: &mut [I32; 16]) {
            let a = self.transpose_eight(eight!(rows, 0, 0));
            let b = self.transpose_eight(eight!(rows, 8, 0));
            let c = self.transpose_eight(eight!(rows, 0, 1));
            let d = self.transpose_eight(eight!(rows, 8, 1));
            for i in 0..8 {
                (rows[i], rows[8 + i]) = ([a[i], b[i]], [c[i], d[i]]);
            }
        }
        fn store_low_bytes(self, a: I32, to: &mut [i8; 16]) {
            let low = _mm256_set1_epi32(255);
            let words = _mm256_packus_epi32(_mm256_and_si256(a[0], low), _mm256_and_si256(a[1], low));
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
            let bytes =
                _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(to.as_mut_ptr().cast(), bytes)
        }

        fn load_bytes(self, from: &[u8; 64]) -> I32 {
            [_mm256_loadu_si256(from.as_ptr().cast()), _mm256_loadu_si256(from.as_ptr().add(32).cast())]
        }
        fn store_bytes(self, value: I32, to: &mut [u8; 64]) {
            _mm256_storeu_si256(to.as_mut_ptr().cast(), value[0]);
            _mm256_storeu_si256(to.as_mut_ptr().add(32).cast(), value[1]);
        }
        fn low_nibbles(self, a: I32) -> I32 { both!(_mm256_and_si256(a, [_mm256_set1_epi8(15); 2])) }
        fn high_nibbles(self, a: I32) -> I32 {
            self.low_nibbles([_mm256_srli_epi16::<4>(a[0]), _mm256_srli_epi16::<4>(a[1])])
        }
        fn flip_sign(self, a: I32) -> I32 { both!(_mm256_xor_si256(a, [_mm256_set1_epi8(-128); 2])) }
        fn pack_activations(self, upper: &mut [i8; 64], lower: &mut [i8; 64]) {
            let (high, low) = (self.load_signed(upper), self.load_signed(lower));
            for i in 0..2 {
                let (high, low) = (self.widen_signed(high[i]), self.widen_signed(low[i]));
                let even = _mm256_add_epi16(_mm256_slli_epi16::<8>(high[0]), low[0]);
                let odd = _mm256_add_epi16(_mm256_slli_epi16::<8>(high[1]), low[1]);
                _mm256_storeu_si256(upper.as_mut_ptr().add(32 * i).cast(), even);
                _mm256_storeu_si256(lower.as_mut_ptr().add(32 * i).cast(), odd);
            }
        }
        fn load_activations(self, first: &[i8; 64], second: &[i8; 64]) -> [I32; 2] {
            [self.load_signed(first), self.load_signed(second)]
        }
        fn broadcast_activations(self, first: [i8; 4], second: [i8; 4]) -> [I32; 2] {
            [[_mm256_set1_epi32(word(first)); 2], [_mm256_set1_epi32(word(second)); 2]]
        }
        fn zero_dot(self) -> I32 { [_mm256_setzero_si256(); 2] }
        fn add_dot(self, sum: I32, a: I32, x: [I32; 2]) -> I32 {
            self.add_widened(sum, self.widen_codes(a), x)
        }
        fn dot_to_i32(self, sum: I32) -> I32 { sum }
        fn broadcast_tile_activations(self, quad: &[i32; 2]) -> [__m256i; 2] {
            [_mm256_set1_epi32(quad[0]), _mm256_set1_epi32(quad[1])]
        }
        fn widen_codes(self, codes: I32) -> [I32; 2] {
            [
                both!(_mm256_and_si256(codes, [_mm256_set1_epi16(255); 2])),
                [_mm256_srli_epi16::<8>(codes[0]), _mm256_srli_epi16::<8>(codes[1])],
            ]
        }
        fn zero_tile_dot(self) -> I32 { self.zero_dot() }
        fn add_tile_dot(self, sum: I32, codes: [I32; 2], x: [__m256i; 2]) -> I32 {
            self.add_widened(sum, codes, [[x[0]; 2], [x[1]; 2]])
        }
        fn tile_dot_to_i32(self, sum: I32) -> I32 { sum }
        fn pack_int4_activations(self, x: &mut [[i8; 64]; 4]) {
            let [low, low_rest, high, high_rest] = x;
            self.pack_activations(low, low_rest);
            self.pack_activations(high, high_rest);
        }
        fn load_int4_activations(self, x: &[[i8; 64]; 4]) -> [I32; 4] {
            [self.load_signed(&x[0]), self.load_signed(&x[1]), self.load_signed(&x[2]), self.load_signed(&x[3])]
        }
        fn broadcast_int4_activations(self, eight: &[i32; 4]) -> [I32; 4] {
            [
                [_mm256_set1_epi32(eight[0]); 2],
                [_mm256_set1_epi32(eight[1]); 2],
                [_mm256_set1_epi32(eight[2]); 2],
                [_mm256_set1_epi32(eight[3]); 2],
            ]
        }
        fn split_nibbles(self, a: I32) -> [I32; 4] {
            let four = [_mm256_set1_epi16(15); 2];
            [
                both!(_mm256_and_si256(a, four)),
                both!(_mm256_and_si256([_mm256_srli_epi16::<8>(a[0]), _mm256_srli_epi16::<8>(a[1])], four)),
                both!(_mm256_and_si256([_mm256_srli_epi16::<4>(a[0]), _mm256_srli_epi16::<4>(a[1])], four)),
                [_mm256_srli_epi16::<12>(a[0]), _mm256_srli_epi16::<12>(a[1])],
            ]
        }
        fn zero_int4_dot(self) -> I32 { self.zero_dot() }
        fn add_int4_dot(self, sum: I32, codes: [I32; 4], x: [I32; 4]) -> I32 {
            let low = both!(_mm256_add_epi32(
                both!(_mm256_madd_epi16(codes[0], x[0])),
                both!(_mm256_madd_epi16(codes[1], x[1]))
            ));
            let high = both!(_mm256_add_epi32(
                both!(_mm256_madd_epi16(codes[2], x[2])),
                both!(_mm256_madd_epi16(codes[3], x[3]))
            ));
            self.int_add(sum, self.int_add(low, high))
        }
        fn int4_dot_to_i32(self, sum: I32) -> I32 { sum }
        fn as_words(self, a: I32) -> I32 { a }
        fn as_bytes(self, a: I32) -> I32 { a }
        fn nibble_to_f32<const J: u32>(self, a: I32) -> F32 {
            let (count, mask) = (_mm_cvtsi32_si128(4 * J as i32), _mm256_set1_epi32(15));
            [
                _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srl_epi32(a[0], count), mask)),
                _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srl_epi32(a[1], count), mask)),
            ]
        }
        fn byte_to_f32<const J: u32>(self, a: I32) -> F32 {
            let (count, mask) = (_mm_cvtsi32_si128(8 * J as i32), _mm256_set1_epi32(255));
            [
                _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srl_epi32(a[0], count), mask)),
                _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srl_epi32(a[1], count), mask)),
            ]
        }
        fn signed_byte_to_f32<const J: u32>(self, a: I32) -> F32 {
            let count = _mm_cvtsi32_si128(24 - 8 * J as i32);
            [
                _mm256_cvtepi32_ps(_mm256_srai_epi32::<24>(_mm256_sll_epi32(a[0], count))),
                _mm256_cvtepi32_ps(_mm256_srai_epi32::<24>(_mm256_sll_epi32(a[1], count))),
            ]
        }
        fn unpack<const BITS: u32>(self, from: &[u8]) -> I32 {
            let mask = 0x0101_0101_0101_0101 * ((1 << BITS) - 1);
            let mut codes = [0; 8];
            for (code, packed) in codes.iter_mut().zip(from.chunks_exact(BITS as usize)) {
                let mut word = [0; 8];
                word[..packed.len()].copy_from_slice(packed);
                *code = _pdep_u64(u64::from_le_bytes(word), mask);
            }
            let bytes: &[u8; 64] = bytemuck::cast_ref(&codes);
            self.load_bytes(bytes)
        }
        fn prefetch_l2(self, base: &[u8], offset: usize) {
            _mm_prefetch::<_MM_HINT_T1>(base.as_ptr().wrapping_add(offset).cast())
        }
        fn prefetch_l1(self, base: &[u8], offset: usize) {
            _mm_prefetch::<_MM_HINT_T0>(base.as_ptr().wrapping_add(offset).cast())
        }
    }
}
