//! Instruction sets behind one trait; no other module names them.
//!
//! A kernel is written once over [`Simd`], whose vectors have sixteen 32-bit lanes everywhere: one register on
//! AVX-512, two on AVX2, four on NEON, an array in the portable form. Every operation is defined to the bit (one
//! rounding for a fused multiply-add, one order for every reduction over lanes), so all instruction sets return the same
//! results and tests compare them with the portable form.
//!
//! [`Kernel::run`] is inlined into one entry function per instruction set, which is compiled with its features. A value of a
//! `Simd` type proves that they were detected; only the entry functions create one.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
#[path = "no_amx.rs"]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
pub(crate) mod portable;

use std::sync::OnceLock;

pub(crate) use amx::{AmxSession, AmxUnit};

/// Tokens per AMX product.
pub(crate) const AMX_TOKENS: usize = 16;

/// Integer sums of AMX products: [tiles][upper and lower halves of the activations][tokens][rows].
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(crate) struct AmxSums(pub [[[[i32; 16]; AMX_TOKENS]; 2]; 2]);

impl AmxSums {
    pub(crate) const ZERO: Self = Self([[[[0; 16]; AMX_TOKENS]; 2]; 2]);
}

/// An instruction set that this machine has. All return the same results, bit for bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// AVX-512 and, for several tokens, AMX.
    #[cfg(target_arch = "x86_64")]
    Amx(AmxUnit),
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "aarch64")]
    Neon,
    Portable,
}

impl Isa {
    /// Fastest instruction set of this machine.
    pub fn detect() -> Self {
        static FASTEST: OnceLock<Isa> = OnceLock::new();
        *FASTEST.get_or_init(|| Self::available()[0])
    }

    /// Instruction sets of this machine, fastest first; the last is the portable form.
    pub fn available() -> Vec<Self> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if avx512::detected() {
                found.extend(AmxUnit::detect().map(|unit| Self(Kind::Amx(unit))));
                found.push(Self(Kind::Avx512));
            }
            if avx2::detected() {
                found.push(Self(Kind::Avx2));
            }
        }
        #[cfg(target_arch = "aarch64")]
        if neon::detected() {
            found.push(Self(Kind::Neon));
        }
        found.push(Self(Kind::Portable));
        found
    }

    /// Portable form, which every processor runs and the others are tested against.
    pub fn portable() -> Self {
        Self(Kind::Portable)
    }

    /// Display name.
    pub fn name(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Amx(_) => "AMX and AVX-512 VNNI",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => "AVX-512 VNNI",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "AVX2",
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => "NEON dotprod",
            Kind::Portable => "portable",
        }
    }

    /// The AMX unit, if this instruction set includes it.
    pub(crate) fn amx(self) -> Option<AmxUnit> {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Amx(unit) => Some(unit),
            _ => None,
        }
    }

    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            // SAFETY: an `Isa` of this kind exists only if its features were detected.
            #[cfg(target_arch = "x86_64")]
            Kind::Amx(_) | Kind::Avx512 => unsafe { avx512::enter(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => unsafe { avx2::enter(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => unsafe { neon::enter(kernel) },
            Kind::Portable => portable::enter(kernel),
        }
    }
}

/// Code that is compiled once per instruction set.
pub(crate) trait Kernel {
    type Output;

    /// Must be `#[inline(always)]`, like every generic function that it calls: what is not inlined is compiled without the
    /// instruction set's features.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// Vectors of sixteen 32-bit lanes. A quad is four neighbouring lanes.
///
/// There are three integer dot products, each with operand and accumulator types that suit the instruction set:
///
/// | codes | activations | accumulator | used by |
/// |---|---|---|---|
/// | `U8` | `Activations` | `Dot` | INT8 gemv, INT8 attention |
/// | `TileCodes` | `TileActivations` | `TileDot` | INT8 gemm |
/// | `Int4Codes` | `Int4Activations` | `Int4Dot` | INT4 gemv and gemm |
///
/// Activations are 16-bit codes `256 * upper + lower`, see [`crate::int16_split`].
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    /// 16 x f32.
    type F32: Copy;
    /// 16 x i32.
    type I32: Copy;
    /// 64 x u8.
    type U8: Copy;
    /// 64 activations.
    type Activations: Copy;
    /// Accumulator of products of `U8` with `Activations`.
    type Dot: Copy;
    /// 64 codes, widened for [`Simd::add_tile_dot`].
    type TileCodes: Copy;
    /// Four activations, broadcast to sixteen lanes.
    type TileActivations: Copy;
    /// Accumulator of products of `TileCodes` with `TileActivations`.
    type TileDot: Copy;
    /// 128 INT4 codes, split for [`Simd::add_int4_dot`].
    type Int4Codes: Copy;
    /// 128 activations in the paired nibble encoding of [`crate::int16_split`].
    type Int4Activations: Copy;
    /// Accumulator of products of `Int4Codes` with `Int4Activations`.
    type Int4Dot: Copy;

    /// Number of tokens, at most eight, whose accumulators for [`Simd::TILES_PER_PASS`] tiles fit registers.
    const TILE_TOKENS: usize;
    /// The same for INT4 codes.
    const INT4_TILE_TOKENS: usize;
    /// Number of tiles, one or two, that share broadcast activations.
    const TILES_PER_PASS: usize;
    /// Number of query heads, one, two or four, that pass over a KV cache together: fewer loads, more accumulators.
    const QUERY_HEADS_PER_PASS: usize;

    /// Number that [`Simd::add_dot`] and [`Simd::add_tile_dot`] subtract from each code: 128 where bytes multiply as signed,
    /// otherwise 0.
    const CODE_OFFSET: i32;

    fn splat(self, value: f32) -> Self::F32;
    fn load(self, from: &[f32; 16]) -> Self::F32;
    fn store(self, value: Self::F32, to: &mut [f32; 16]);
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// Maximum; either operand if one is NaN.
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// Minimum; either operand if one is NaN.
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn abs(self, a: Self::F32) -> Self::F32;
    /// Nearest integer, ties to even, for |a| < 2^31.
    fn round_to_i32(self, a: Self::F32) -> Self::I32;
    fn to_f32(self, a: Self::I32) -> Self::F32;
    /// Bit cast.
    fn f32_to_bits(self, a: Self::F32) -> Self::I32;
    /// Bit cast.
    fn f32_from_bits(self, a: Self::I32) -> Self::F32;
    /// 2^n for n in -126..=127.
    fn exp2i(self, n: Self::I32) -> Self::F32;
    /// Loads sixteen little-endian bf16.
    fn load_bf16(self, from: &[u8; 32]) -> Self::F32;
    /// Loads sixteen little-endian IEEE halves.
    fn load_f16(self, from: &[u8; 32]) -> Self::F32;
    /// Rounds to the nearest IEEE half, ties to even; infinite beyond its range.
    fn round_to_f16(self, a: Self::F32) -> Self::F32;
    /// Sum of all lanes: (l0 + l2) + (l1 + l3) within each quad, then (Q0 + Q1) + (Q2 + Q3).
    fn reduce_add(self, a: Self::F32) -> f32;
    /// Maximum of all lanes.
    fn reduce_max(self, a: Self::F32) -> f32;
    /// Quad q of the result holds the sums (l0 + l2) + (l1 + l3) of quad q of the four vectors.
    fn quad_sums(self, vectors: [Self::F32; 4]) -> Self::F32;
    /// Quads [a0 + a1, a2 + a3, b0 + b1, b2 + b3].
    fn add_quad_pairs(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// Moves lane i of quad q to lane 4 i + q.
    fn transpose_quads(self, a: Self::F32) -> Self::F32;
    /// Interleaves the lanes of quads 0 and 1, and those of quads 2 and 3.
    fn zip_quads(self, a: Self::F32) -> Self::F32;

    fn int_splat(self, value: i32) -> Self::I32;
    fn int_load(self, from: &[i32; 16]) -> Self::I32;
    fn int_store(self, value: Self::I32, to: &mut [i32; 16]);
    fn int_add(self, a: Self::I32, b: Self::I32) -> Self::I32;
    fn int_sub(self, a: Self::I32, b: Self::I32) -> Self::I32;
    fn int_and(self, a: Self::I32, b: Self::I32) -> Self::I32;
    fn int_shl<const BITS: u32>(self, a: Self::I32) -> Self::I32;
    /// Arithmetic shift.
    fn int_shr<const BITS: u32>(self, a: Self::I32) -> Self::I32;
    fn int_quad_sums(self, vectors: [Self::I32; 4]) -> Self::I32;
    fn int_add_quad_pairs(self, a: Self::I32, b: Self::I32) -> Self::I32;
    fn int_transpose_quads(self, a: Self::I32) -> Self::I32;
    fn int_zip_quads(self, a: Self::I32) -> Self::I32;
    /// Swaps lanes 0 and 1, 2 and 3, and so on.
    fn swap_pairs(self, a: Self::I32) -> Self::I32;
    /// Transposes a 16 x 16 matrix of lanes.
    fn int_transpose(self, rows: &mut [Self::I32; 16]);
    /// Stores the low byte of each lane.
    fn store_low_bytes(self, a: Self::I32, to: &mut [i8; 16]);

    fn load_bytes(self, from: &[u8; 64]) -> Self::U8;
    fn store_bytes(self, value: Self::U8, to: &mut [u8; 64]);
    /// Bits 0..4 of each byte.
    fn low_nibbles(self, a: Self::U8) -> Self::U8;
    /// Bits 4..8 of each byte.
    fn high_nibbles(self, a: Self::U8) -> Self::U8;
    /// Flips the top bit of each byte: signed codes to unsigned ones plus 128, and back.
    fn flip_sign(self, a: Self::U8) -> Self::U8;
    /// Packs the upper and lower halves of 64 activations in place for [`Simd::load_activations`]; four neighbouring activations
    /// stay in the same word of both vectors.
    #[inline(always)]
    fn pack_activations(self, _upper: &mut [i8; 64], _lower: &mut [i8; 64]) {}
    fn load_activations(self, first: &[i8; 64], second: &[i8; 64]) -> Self::Activations;
    /// Broadcasts one word of the two packed vectors.
    fn broadcast_activations(self, first: [i8; 4], second: [i8; 4]) -> Self::Activations;
    fn zero_dot(self) -> Self::Dot;
    /// Adds products of unsigned codes, less [`Simd::CODE_OFFSET`], with activations.
    fn add_dot(self, sum: Self::Dot, a: Self::U8, x: Self::Activations) -> Self::Dot;
    /// Packs four activations for [`Simd::broadcast_tile_activations`].
    fn pack_tile_activations(upper: [i8; 4], lower: [i8; 4]) -> [i32; 2];
    fn broadcast_tile_activations(self, quad: &[i32; 2]) -> Self::TileActivations;
    fn widen_codes(self, codes: Self::U8) -> Self::TileCodes;
    fn zero_tile_dot(self) -> Self::TileDot;
    /// Adds products of unsigned codes, less [`Simd::CODE_OFFSET`], with activations.
    fn add_tile_dot(
        self,
        sum: Self::TileDot,
        codes: Self::TileCodes,
        x: Self::TileActivations,
    ) -> Self::TileDot;
    /// Lane i holds the sum of the products of codes 4 i..4 i + 4.
    fn tile_dot_to_i32(self, sum: Self::TileDot) -> Self::I32;
    /// Lane i holds the sum of the products of codes 4 i..4 i + 4.
    fn dot_to_i32(self, sum: Self::Dot) -> Self::I32;
    /// [`Simd::int_quad_sums`] of the accumulators' [`Simd::dot_to_i32`].
    #[inline(always)]
    fn dot_quad_sums(self, vectors: [Self::Dot; 4]) -> Self::I32 {
        let [a, b, c, d] = vectors;
        self.int_quad_sums([self.dot_to_i32(a), self.dot_to_i32(b), self.dot_to_i32(c), self.dot_to_i32(d)])
    }
    /// Packs the activations of 64 bytes of INT4 codes in place for [`Simd::load_int4_activations`]. On entry the vectors hold the
    /// upper and lower halves of the activations of low nibbles, then those of high nibbles.
    fn pack_int4_activations(self, x: &mut [[i8; 64]; 4]);
    fn load_int4_activations(self, x: &[[i8; 64]; 4]) -> Self::Int4Activations;
    /// Packs the eight neighbouring activations of a word of codes for [`Simd::broadcast_int4_activations`].
    fn pack_int4_tile_activations(upper: [i8; 8], lower: [i8; 8]) -> [i32; 4];
    /// Broadcasts the activations of one word of codes.
    fn broadcast_int4_activations(self, eight: &[i32; 4]) -> Self::Int4Activations;
    fn split_nibbles(self, a: Self::U8) -> Self::Int4Codes;
    fn zero_int4_dot(self) -> Self::Int4Dot;
    fn add_int4_dot(
        self,
        sum: Self::Int4Dot,
        codes: Self::Int4Codes,
        x: Self::Int4Activations,
    ) -> Self::Int4Dot;
    /// Lane i holds the sum of the products of codes 8 i..8 i + 8.
    fn int4_dot_to_i32(self, sum: Self::Int4Dot) -> Self::I32;
    /// [`Simd::int4_dot_to_i32`] of a single product.
    #[inline(always)]
    fn int4_dot(self, codes: Self::Int4Codes, x: Self::Int4Activations) -> Self::I32 {
        self.int4_dot_to_i32(self.add_int4_dot(self.zero_int4_dot(), codes, x))
    }
    /// Bit cast to sixteen little-endian words.
    fn as_words(self, a: Self::U8) -> Self::I32;
    /// Bit cast to bytes.
    fn as_bytes(self, a: Self::I32) -> Self::U8;
    /// Bits 4 J..4 J + 4 of each word, unsigned.
    fn nibble_to_f32<const J: u32>(self, a: Self::I32) -> Self::F32;
    /// Byte J of each word, unsigned.
    fn byte_to_f32<const J: u32>(self, a: Self::I32) -> Self::F32;
    /// Byte J of each word, signed.
    fn signed_byte_to_f32<const J: u32>(self, a: Self::I32) -> Self::F32;
    /// Unpacks 64 codes of `BITS` bits (2, 3, 5 or 6) from a little-endian bit stream of `8 * BITS` bytes to one per byte.
    #[inline(always)]
    fn unpack<const BITS: u32>(self, from: &[u8]) -> Self::U8 {
        let mut codes = [0; 64];
        portable::unpack_bits(BITS as usize, from, &mut codes);
        self.load_bytes(&codes)
    }
    /// Prefetches the cache line at `offset` from the start of `base`, which may be out of bounds, into L2. L1 has too few line
    /// fill buffers to keep memory busy.
    fn prefetch_l2(self, base: &[u8], offset: usize);
    /// The same from L2 into L1.
    fn prefetch_l1(self, base: &[u8], offset: usize);
}

/// Four bytes of a lane, little-endian.
#[inline(always)]
fn word(bytes: [i8; 4]) -> i32 {
    i32::from_le_bytes(bytes.map(|byte| byte as u8))
}

/// [`Simd::pack_tile_activations`] where codes are widened to 16 bits: activations of the even bytes of a word, then those of the
/// odd ones.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn even_then_odd(upper: [i8; 4], lower: [i8; 4]) -> [i32; 2] {
    let code = |i: usize| 256 * i32::from(upper[i]) + i32::from(lower[i]);
    let pair = |low: usize, high: usize| code(low) & 0xffff | code(high) << 16;
    [pair(0, 2), pair(1, 3)]
}

/// Even (`from` 0) or odd (1) elements.
#[inline(always)]
fn every_second(values: [i8; 8], from: usize) -> [i8; 4] {
    [values[from], values[from + 2], values[from + 4], values[from + 6]]
}

/// Implements methods by intrinsics of the instruction set.
macro_rules! with_features {
    ($($(#[$meta:meta])* fn $name:ident $(<const $c:ident: u32>)? ($self:ident $(, $arg:ident: $ty:ty)*) $(-> $ret:ty)? $body:block)*) => {
        $(
            $(#[$meta])*
            #[inline(always)]
            fn $name $(<const $c: u32>)? ($self $(, $arg: $ty)*) $(-> $ret)? {
                // SAFETY: a value of `Self` exists only inside the entry function, which runs only where the features were
                // detected; loads and stores go through references to arrays of the full width.
                #[allow(unused_unsafe)]
                unsafe {
                    $body
                }
            }
        )*
    };
}
use with_features;
