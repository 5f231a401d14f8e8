//! Code formats: how 64 bytes of codes are multiplied with activations.
//!
//! [`CodeFormat`] covers one token in f32, [`IntegerFormat`] one token in integers, [`TileFormat`] tiles of several tokens
//! in integers.

use crate::simd::Simd;

/// Unpacking of 64 bytes of codes.
pub(crate) trait CodeFormat {
    const CODES_PER_BYTE: usize;
    /// Vectors of 8-bit activation halves per 64 bytes of codes.
    const INT_VECTORS: usize = 2 * Self::CODES_PER_BYTE;
    /// Vectors of f32 activations per 64 bytes of codes.
    const FLOAT_VECTORS: usize = 4 * Self::CODES_PER_BYTE;
    /// True if all codes are below 128.
    const BELOW_128: bool = Self::CODES_PER_BYTE > 1;
    /// True if codes are scaled one by one instead of sums of groups.
    const SCALES_CODES: bool = false;

    /// `acc` + codes * x. `scale` is the scale of each lane's codes if the format [scales codes](Self::SCALES_CODES).
    fn float_dot<S: Simd>(simd: S, acc: S::F32, codes: &[u8; 64], x: &[[f32; 16]], scale: S::F32) -> S::F32;
}

/// Formats whose groups have exact integer sums.
pub(crate) trait IntegerFormat: CodeFormat {
    /// Accumulator of the products.
    type Dot<S: Simd>: Copy;

    fn zero<S: Simd>(simd: S) -> Self::Dot<S>;

    /// `dot` + codes * x; codes that are not [below 128](CodeFormat::BELOW_128) less [`Simd::CODE_OFFSET`] each.
    fn dot<S: Simd>(simd: S, dot: Self::Dot<S>, codes: &[u8; 64], x: &[[i8; 64]]) -> Self::Dot<S>;

    /// [`Simd::int_quad_sums`] of the finished accumulators.
    fn quad_sums<S: Simd>(simd: S, dots: [Self::Dot<S>; 4]) -> S::I32;
}

/// Formats of tiles. A vector of a tile holds one 32-bit word of codes of each of its sixteen rows.
pub(crate) trait TileFormat: CodeFormat {
    /// Columns per word of codes.
    const WORD_COLUMNS: usize = 4 * Self::CODES_PER_BYTE;
    /// True if tokens whose sums do not fit registers pass over the whole tile later, instead of group by group: better
    /// where codes are small.
    const TOKENS_OUTERMOST: bool;

    /// One token's packed activations of a word's columns.
    type Packed: Copy;
    /// The same, broadcast to sixteen lanes.
    type Activations<S: Simd>: Copy;
    type Codes<S: Simd>: Copy;
    /// Accumulator of the products.
    type Dot<S: Simd>: Copy;

    /// Number of tokens whose accumulators fit registers.
    fn tokens_in_registers<S: Simd>() -> usize;

    /// `words` as packed activations [columns / WORD_COLUMNS][T].
    fn as_packed<const T: usize>(words: &[i32]) -> &[[Self::Packed; T]];
    fn broadcast<S: Simd>(simd: S, packed: &Self::Packed) -> Self::Activations<S>;
    fn load_codes<S: Simd>(simd: S, bytes: &[u8; 64]) -> Self::Codes<S>;
    fn zero<S: Simd>(simd: S) -> Self::Dot<S>;

    /// `dot` + codes * x per row; codes that are not [below 128](CodeFormat::BELOW_128) less [`Simd::CODE_OFFSET`] each.
    fn dot<S: Simd>(
        simd: S,
        dot: Self::Dot<S>,
        codes: Self::Codes<S>,
        x: Self::Activations<S>,
    ) -> Self::Dot<S>;
    fn finish<S: Simd>(simd: S, dot: Self::Dot<S>) -> S::I32;
}

/// [`Codes::U4`](super::matrix::Codes::U4).
pub(crate) struct U4;
/// [`Codes::U8`](super::matrix::Codes::U8), and bit-packed codes once they are unpacked.
pub(crate) struct U8;
/// [`Codes::I8`](super::matrix::Codes::I8).
pub(crate) struct I8;
/// [`Codes::I8RoundedToF16`](super::matrix::Codes::I8RoundedToF16).
pub(crate) struct I8RoundedToF16;

/// `$acc` + the products of `$unpack::<$j>` of the code words with the vectors of x, in sequence.
macro_rules! chain {
    ($simd:ident, $acc:ident, $codes:ident, $x:ident, $unpack:ident, $($j:literal)*) => {{
        let words = $simd.as_words($simd.load_bytes($codes));
        $(let $acc = $simd.fma($simd.$unpack::<$j>(words), $simd.load(&$x[$j]), $acc);)*
        $acc
    }};
}

impl CodeFormat for U4 {
    const CODES_PER_BYTE: usize = 2;

    #[inline(always)]
    fn float_dot<S: Simd>(simd: S, acc: S::F32, codes: &[u8; 64], x: &[[f32; 16]], _: S::F32) -> S::F32 {
        chain!(simd, acc, codes, x, nibble_to_f32, 0 1 2 3 4 5 6 7)
    }
}

impl IntegerFormat for U4 {
    type Dot<S: Simd> = S::I32;

    #[inline(always)]
    fn zero<S: Simd>(simd: S) -> S::I32 {
        simd.int_splat(0)
    }

    #[inline(always)]
    fn dot<S: Simd>(simd: S, dot: S::I32, codes: &[u8; 64], x: &[[i8; 64]]) -> S::I32 {
        let x = simd.load_int4_activations(x.first_chunk().expect("four vectors for 64 bytes"));
        simd.int_add(dot, simd.int4_dot(simd.split_nibbles(simd.load_bytes(codes)), x))
    }

    #[inline(always)]
    fn quad_sums<S: Simd>(simd: S, dots: [S::I32; 4]) -> S::I32 {
        simd.int_quad_sums(dots)
    }
}

impl TileFormat for U4 {
    const TOKENS_OUTERMOST: bool = true;

    type Packed = [i32; 4];
    type Activations<S: Simd> = S::Int4Activations;
    type Codes<S: Simd> = S::Int4Codes;
    type Dot<S: Simd> = S::Int4Dot;

    #[inline(always)]
    fn tokens_in_registers<S: Simd>() -> usize {
        S::INT4_TILE_TOKENS
    }

    #[inline(always)]
    fn as_packed<const T: usize>(words: &[i32]) -> &[[[i32; 4]; T]] {
        words.as_chunks().0.as_chunks().0
    }

    #[inline(always)]
    fn broadcast<S: Simd>(simd: S, packed: &[i32; 4]) -> S::Int4Activations {
        simd.broadcast_int4_activations(packed)
    }

    #[inline(always)]
    fn load_codes<S: Simd>(simd: S, bytes: &[u8; 64]) -> S::Int4Codes {
        simd.split_nibbles(simd.load_bytes(bytes))
    }

    #[inline(always)]
    fn zero<S: Simd>(simd: S) -> S::Int4Dot {
        simd.zero_int4_dot()
    }

    #[inline(always)]
    fn dot<S: Simd>(simd: S, dot: S::Int4Dot, codes: S::Int4Codes, x: S::Int4Activations) -> S::Int4Dot {
        simd.add_int4_dot(dot, codes, x)
    }

    #[inline(always)]
    fn finish<S: Simd>(simd: S, dot: S::Int4Dot) -> S::I32 {
        simd.int4_dot_to_i32(dot)
    }
}

impl CodeFormat for U8 {
    const CODES_PER_BYTE: usize = 1;

    #[inline(always)]
    fn float_dot<S: Simd>(simd: S, acc: S::F32, codes: &[u8; 64], x: &[[f32; 16]], _: S::F32) -> S::F32 {
        chain!(simd, acc, codes, x, byte_to_f32, 0 1 2 3)
    }
}

impl IntegerFormat for U8 {
    type Dot<S: Simd> = S::Dot;

    #[inline(always)]
    fn zero<S: Simd>(simd: S) -> S::Dot {
        simd.zero_dot()
    }

    #[inline(always)]
    fn dot<S: Simd>(simd: S, dot: S::Dot, codes: &[u8; 64], x: &[[i8; 64]]) -> S::Dot {
        simd.add_dot(dot, simd.load_bytes(codes), simd.load_activations(&x[0], &x[1]))
    }

    #[inline(always)]
    fn quad_sums<S: Simd>(simd: S, dots: [S::Dot; 4]) -> S::I32 {
        simd.dot_quad_sums(dots)
    }
}

impl TileFormat for U8 {
    const TOKENS_OUTERMOST: bool = false;

    type Packed = [i32; 2];
    type Activations<S: Simd> = S::TileActivations;
    type Codes<S: Simd> = S::TileCodes;
    type Dot<S: Simd> = S::TileDot;

    #[inline(always)]
    fn tokens_in_registers<S: Simd>() -> usize {
        S::TILE_TOKENS
    }

    #[inline(always)]
    fn as_packed<const T: usize>(words: &[i32]) -> &[[[i32; 2]; T]] {
        words.as_chunks().0.as_chunks().0
    }

    #[inline(always)]
    fn broadcast<S: Simd>(simd: S, packed: &[i32; 2]) -> S::TileActivations {
        simd.broadcast_tile_activations(packed)
    }

    #[inline(always)]
    fn load_codes<S: Simd>(simd: S, bytes: &[u8; 64]) -> S::TileCodes {
        simd.widen_codes(simd.load_bytes(bytes))
    }

    #[inline(always)]
    fn zero<S: Simd>(simd: S) -> S::TileDot {
        simd.zero_tile_dot()
    }

    #[inline(always)]
    fn dot<S: Simd>(simd: S, dot: S::TileDot, codes: S::TileCodes, x: S::TileActivations) -> S::TileDot {
        simd.add_tile_dot(dot, codes, x)
    }

    #[inline(always)]
    fn finish<S: Simd>(simd: S, dot: S::TileDot) -> S::I32 {
        simd.tile_dot_to_i32(dot)
    }
}

impl CodeFormat for I8 {
    const CODES_PER_BYTE: usize = 1;

    #[inline(always)]
    fn float_dot<S: Simd>(simd: S, acc: S::F32, codes: &[u8; 64], x: &[[f32; 16]], _: S::F32) -> S::F32 {
        chain!(simd, acc, codes, x, signed_byte_to_f32, 0 1 2 3)
    }
}

impl IntegerFormat for I8 {
    type Dot<S: Simd> = S::Dot;

    #[inline(always)]
    fn zero<S: Simd>(simd: S) -> S::Dot {
        simd.zero_dot()
    }

    #[inline(always)]
    fn dot<S: Simd>(simd: S, dot: S::Dot, codes: &[u8; 64], x: &[[i8; 64]]) -> S::Dot {
        // The sign flip adds 128 to each code; scaling subtracts it by the sum of the activations.
        simd.add_dot(dot, simd.flip_sign(simd.load_bytes(codes)), simd.load_activations(&x[0], &x[1]))
    }

    #[inline(always)]
    fn quad_sums<S: Simd>(simd: S, dots: [S::Dot; 4]) -> S::I32 {
        simd.dot_quad_sums(dots)
    }
}

impl CodeFormat for I8RoundedToF16 {
    const CODES_PER_BYTE: usize = 1;
    const SCALES_CODES: bool = true;

    #[inline(always)]
    fn float_dot<S: Simd>(simd: S, acc: S::F32, codes: &[u8; 64], x: &[[f32; 16]], scale: S::F32) -> S::F32 {
        let words = simd.as_words(simd.load_bytes(codes));
        let acc =
            simd.fma(dequantize(simd, simd.signed_byte_to_f32::<0>(words), scale), simd.load(&x[0]), acc);
        let acc =
            simd.fma(dequantize(simd, simd.signed_byte_to_f32::<1>(words), scale), simd.load(&x[1]), acc);
        let acc =
            simd.fma(dequantize(simd, simd.signed_byte_to_f32::<2>(words), scale), simd.load(&x[2]), acc);
        simd.fma(dequantize(simd, simd.signed_byte_to_f32::<3>(words), scale), simd.load(&x[3]), acc)
    }
}

/// Dequantized weights, rounded to f16.
#[inline(always)]
fn dequantize<S: Simd>(simd: S, codes: S::F32, scale: S::F32) -> S::F32 {
    simd.round_to_f16(simd.mul(codes, scale))
}
