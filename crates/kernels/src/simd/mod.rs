//! Instruction sets behind one trait, and the only place that names them.
//!
//! A kernel is written once over [`Simd`], whose vectors have sixteen 32-bit lanes everywhere: one register on
//! AVX-512, two on AVX2, four on NEON, an array in the portable form. Every operation is defined to the bit (one
//! rounding for a fused multiply-add, one order for every sum over lanes), so all instruction sets give the same
//! results and the portable form is the scalar twin that tests compare with.
//!
//! [`Kernel::run`] is inlined into one entry function per instruction set, which is compiled with its features.
//! A value of a `Simd` type is the proof that detection found them; only the entry functions make one.

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
mod portable;

use std::sync::OnceLock;

pub(crate) use amx::{MatrixUnit, Session};

use crate::stream::unpack_plain;

/// Tokens that the matrix unit multiplies at a time.
pub(crate) const UNIT_TOKENS: usize = 16;

/// Sums of products by the matrix unit: [tiles][halves of activations][tokens][rows].
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(crate) struct UnitSums(pub [[[[i32; 16]; UNIT_TOKENS]; 2]; 2]);

impl UnitSums {
    pub(crate) const ZERO: Self = Self([[[[0; 16]; UNIT_TOKENS]; 2]; 2]);
}

/// An instruction set that this machine has. All give the same results, bit for bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// AVX-512 and, for several tokens, the matrix unit.
    #[cfg(target_arch = "x86_64")]
    Amx(MatrixUnit),
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "aarch64")]
    Neon,
    Portable,
}

impl Isa {
    /// The fastest of this machine.
    pub fn detect() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| Self::available()[0])
    }

    /// All of this machine, fastest first; the portable one is last.
    pub fn available() -> Vec<Self> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if avx512::detected() {
                found.extend(MatrixUnit::detect().map(|unit| Self(Kind::Amx(unit))));
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

    /// The plain form that every processor runs, the twin that the others are tested against.
    pub fn portable() -> Self {
        Self(Kind::Portable)
    }

    /// Its name for people.
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

    /// The matrix unit, if this is the instruction set that has it.
    pub(crate) fn matrix_unit(self) -> Option<MatrixUnit> {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Amx(unit) => Some(unit),
            _ => None,
        }
    }

    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            // SAFETY: an `Isa` of this kind is only made where its features were detected.
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

/// Work that is compiled once for every instruction set.
pub(crate) trait Kernel {
    type Output;

    /// Must be `#[inline(always)]`, as must be everything generic that it calls.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// Sixteen lanes of 32 bits: `F` floats, `I` integers, `B` 64 bytes. A quad is four neighbouring lanes.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    type F: Copy;
    type I: Copy;
    type B: Copy;
    /// 64 activations of sixteen bits, each 256 * upper + lower.
    type X: Copy;
    /// A sum of products with them.
    type Sum: Copy;
    /// Codes as products with repeated activations take them.
    type Wide: Copy;
    /// Four activations, sixteen times.
    type Quad: Copy;
    /// A sum of products of the two.
    type WideSum: Copy;
    /// 64 bytes of nibbles as products take them.
    type Nibbles: Copy;
    /// Their activations, pairs of [`crate::halves`].
    type NibbleX: Copy;
    /// A sum of products of the two.
    type NibbleSum: Copy;

    /// Tokens, at most eight, whose sums over the rows of [`Simd::TILES`] tiles stay in registers.
    const TILE_TOKENS: usize;
    /// The same for nibbles.
    const NIBBLE_TILE_TOKENS: usize;
    /// Tiles of sixteen rows, one or two, that share the repeated activations.
    const TILES: usize;
    /// Query heads, one, two or four, that pass over a cache together: fewer loads, for more sums in registers.
    const HEADS: usize;

    /// What [`Simd::add_products`] and [`Simd::add_wide_products`] take off each byte: 128 where only signed ones
    /// multiply, or 0.
    const OFFSET: i32;

    fn splat(self, value: f32) -> Self::F;
    fn load(self, from: &[f32; 16]) -> Self::F;
    fn store(self, value: Self::F, to: &mut [f32; 16]);
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The larger; either of the two if one is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// The smaller; either of the two if one is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    fn abs(self, a: Self::F) -> Self::F;
    /// To the nearest integer, ties to even. |a| < 2^31.
    fn round(self, a: Self::F) -> Self::I;
    fn float(self, a: Self::I) -> Self::F;
    /// The same bits.
    fn float_bits(self, a: Self::F) -> Self::I;
    /// The same bits.
    fn float_of_bits(self, a: Self::I) -> Self::F;
    /// 2^n for n in -126..=127.
    fn exp2i(self, n: Self::I) -> Self::F;
    /// Little-endian bf16.
    fn load_bf16(self, from: &[u8; 32]) -> Self::F;
    /// Little-endian IEEE half.
    fn load_f16(self, from: &[u8; 32]) -> Self::F;
    /// To the nearest IEEE half, ties to even; infinite beyond its range.
    fn round_to_f16(self, a: Self::F) -> Self::F;
    /// All lanes: (l0 + l2) + (l1 + l3) within each quad, then (Q0 + Q1) + (Q2 + Q3).
    fn sum(self, a: Self::F) -> f32;
    /// The largest lane.
    fn largest(self, a: Self::F) -> f32;
    /// Quad q of the result: the sums (l0 + l2) + (l1 + l3) of quad q of a, b, c and d.
    fn quad_sums(self, of: [Self::F; 4]) -> Self::F;
    /// Quads [a0 + a1, a2 + a3, b0 + b1, b2 + b3].
    fn pair_quads(self, a: Self::F, b: Self::F) -> Self::F;
    /// Lane i of quad q goes to lane 4 i + q.
    fn transpose_quads(self, a: Self::F) -> Self::F;
    /// Quads 0 and 1 are zipped lane by lane, and so are quads 2 and 3.
    fn zip_quads(self, a: Self::F) -> Self::F;

    fn int_splat(self, value: i32) -> Self::I;
    fn int_load(self, from: &[i32; 16]) -> Self::I;
    fn int_store(self, value: Self::I, to: &mut [i32; 16]);
    fn int_add(self, a: Self::I, b: Self::I) -> Self::I;
    fn int_sub(self, a: Self::I, b: Self::I) -> Self::I;
    fn int_and(self, a: Self::I, b: Self::I) -> Self::I;
    fn int_shl<const BITS: u32>(self, a: Self::I) -> Self::I;
    /// Arithmetic: rounds down.
    fn int_shr<const BITS: u32>(self, a: Self::I) -> Self::I;
    fn int_quad_sums(self, of: [Self::I; 4]) -> Self::I;
    fn int_pair_quads(self, a: Self::I, b: Self::I) -> Self::I;
    fn int_transpose_quads(self, a: Self::I) -> Self::I;
    fn int_zip_quads(self, a: Self::I) -> Self::I;
    /// Lanes 0 and 1 change places, 2 and 3, and so on.
    fn swap_pairs(self, a: Self::I) -> Self::I;
    /// Lane c of vector r goes to lane r of vector c.
    fn int_transpose(self, rows: &mut [Self::I; 16]);
    /// Each lane's low byte, signed.
    fn store_low_bytes(self, a: Self::I, to: &mut [i8; 16]);

    fn load_bytes(self, from: &[u8; 64]) -> Self::B;
    fn store_bytes(self, value: Self::B, to: &mut [u8; 64]);
    /// Bits 0..4 of each byte.
    fn low_nibbles(self, a: Self::B) -> Self::B;
    /// Bits 4..8 of each byte.
    fn high_nibbles(self, a: Self::B) -> Self::B;
    /// Adds 128 to each byte: signed to unsigned with zero at 128, and back.
    fn flip_sign(self, a: Self::B) -> Self::B;
    /// Turns the upper and lower halves of 64 activations into two vectors as [`Simd::arranged`] takes them, four
    /// activations in the same word of both.
    #[inline(always)]
    fn arrange(self, _upper: &mut [i8; 64], _lower: &mut [i8; 64]) {}
    fn arranged(self, first: &[i8; 64], second: &[i8; 64]) -> Self::X;
    /// One word of the two vectors, sixteen times.
    fn repeat_arranged(self, first: [i8; 4], second: [i8; 4]) -> Self::X;
    fn no_sum(self) -> Self::Sum;
    /// Adds the products of unsigned bytes, less [`Simd::OFFSET`], with activations.
    fn add_products(self, sum: Self::Sum, a: Self::B, x: Self::X) -> Self::Sum;
    /// Four activations, 256 * upper + lower each, as they are kept for [`Simd::repeat`].
    fn quad(upper: [i8; 4], lower: [i8; 4]) -> [i32; 2];
    fn repeat(self, quad: &[i32; 2]) -> Self::Quad;
    fn widen(self, codes: Self::B) -> Self::Wide;
    fn no_wide_sum(self) -> Self::WideSum;
    /// Adds the products of unsigned bytes, less [`Simd::OFFSET`], with activations.
    fn add_wide_products(self, sum: Self::WideSum, codes: Self::Wide, x: Self::Quad) -> Self::WideSum;
    /// Lane i: the products of bytes 4 i..4 i + 4.
    fn end_wide_sum(self, sum: Self::WideSum) -> Self::I;
    /// Lane i: the products of bytes 4 i..4 i + 4.
    fn end_sum(self, sum: Self::Sum) -> Self::I;
    /// [`Simd::int_quad_sums`] of the sums' ends.
    #[inline(always)]
    fn end_quad_sums(self, of: [Self::Sum; 4]) -> Self::I {
        let [a, b, c, d] = of;
        self.int_quad_sums([self.end_sum(a), self.end_sum(b), self.end_sum(c), self.end_sum(d)])
    }
    /// Turns the activations of 64 bytes of nibbles, the upper and the lower halves of those of low nibbles, then of
    /// high ones, into four vectors as [`Simd::nibble_x`] takes them.
    fn arrange_for_nibbles(self, x: &mut [[i8; 64]; 4]);
    fn nibble_x(self, x: &[[i8; 64]; 4]) -> Self::NibbleX;
    /// Eight neighbouring activations, those of a word, as they are kept for [`Simd::repeat_eight`].
    fn eight(upper: [i8; 8], lower: [i8; 8]) -> [i32; 4];
    /// One word's activations, sixteen times.
    fn repeat_eight(self, eight: &[i32; 4]) -> Self::NibbleX;
    fn nibbles(self, a: Self::B) -> Self::Nibbles;
    fn no_nibble_sum(self) -> Self::NibbleSum;
    fn add_nibble_products(
        self,
        sum: Self::NibbleSum,
        codes: Self::Nibbles,
        x: Self::NibbleX,
    ) -> Self::NibbleSum;
    /// Lane i: the products of the nibbles of bytes 4 i..4 i + 4.
    fn end_nibble_sum(self, sum: Self::NibbleSum) -> Self::I;
    /// The sum of one vector's products.
    #[inline(always)]
    fn nibble_products(self, codes: Self::Nibbles, x: Self::NibbleX) -> Self::I {
        self.end_nibble_sum(self.add_nibble_products(self.no_nibble_sum(), codes, x))
    }
    /// The same bits as 16 words, little-endian.
    fn words(self, a: Self::B) -> Self::I;
    /// The same bits as bytes.
    fn bytes(self, a: Self::I) -> Self::B;
    /// Bits 4 J..4 J + 4 of each word as a number.
    fn nibble<const J: u32>(self, a: Self::I) -> Self::F;
    /// Byte J of each word as a number.
    fn byte<const J: u32>(self, a: Self::I) -> Self::F;
    /// Byte J of each word as a signed number.
    fn signed_byte<const J: u32>(self, a: Self::I) -> Self::F;
    /// 64 codes of `BITS` bits (2, 3, 5 or 6), one per byte, from a little-endian bit stream of `8 * BITS` bytes.
    #[inline(always)]
    fn unpack<const BITS: u32>(self, from: &[u8]) -> Self::B {
        let mut codes = [0; 64];
        unpack_plain(BITS as usize, from, &mut codes);
        self.load_bytes(&codes)
    }
    /// Asks for the cache line `offset` bytes from the start of `of`, which may lie outside it, into the second-level
    /// cache: the first can wait for too few lines at a time to keep memory busy.
    fn prefetch(self, of: &[u8], offset: usize);
    /// The same for a line that the second-level cache has, into the first.
    fn prefetch_near(self, of: &[u8], offset: usize);
}

/// Four bytes as one lane holds them.
#[inline(always)]
fn word(bytes: [i8; 4]) -> i32 {
    i32::from_le_bytes(bytes.map(|byte| byte as u8))
}

/// [`Simd::quad`] where bytes are widened to sixteen bits, the even ones of a word apart from the odd ones.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn even_then_odd(upper: [i8; 4], lower: [i8; 4]) -> [i32; 2] {
    let code = |i: usize| 256 * i32::from(upper[i]) + i32::from(lower[i]);
    let pair = |low: usize, high: usize| code(low) & 0xffff | code(high) << 16;
    [pair(0, 2), pair(1, 3)]
}

/// Every second of eight, from the first or the second on.
#[inline(always)]
fn every_second(of: [i8; 8], from: usize) -> [i8; 4] {
    [of[from], of[from + 2], of[from + 4], of[from + 6]]
}

/// Implements trait methods by expressions that need the instruction set's features.
macro_rules! with_features {
    ($($(#[$meta:meta])* fn $name:ident $(<const $c:ident: u32>)? ($self:ident $(, $arg:ident: $ty:ty)*) $(-> $ret:ty)? $body:block)*) => {
        $(
            $(#[$meta])*
            #[inline(always)]
            fn $name $(<const $c: u32>)? ($self $(, $arg: $ty)*) $(-> $ret)? {
                // SAFETY: a value of `Self` exists only inside the entry function, which runs only where the
                // features were detected; loads and stores go through references to arrays of the full width.
                #[allow(unused_unsafe)]
                unsafe {
                    $body
                }
            }
        )*
    };
}
use with_features;
