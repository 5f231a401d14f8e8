//! How 64 bytes of codes meet activations: one token's, in integers and in floats, and several tokens' in integers.

use crate::simd::Simd;

/// How codes are taken out of 64 bytes.
pub(crate) trait Format {
    /// Codes in a byte.
    const PER_BYTE: usize;
    /// Vectors of activations that 64 bytes of codes meet: of codes, and of floats.
    const CODES: usize = 2 * Self::PER_BYTE;
    const FLOATS: usize = 4 * Self::PER_BYTE;
    /// Codes are below 128.
    const SMALL: bool = Self::PER_BYTE > 1;
    /// Codes are scaled one by one, instead of sums of groups.
    const SCALED: bool = false;

    /// acc + their products. `factor` is what the lanes' codes are scaled by, where sums cannot be scaled instead.
    fn float_dot<S: Simd>(simd: S, acc: S::F, codes: &[u8; 64], x: &[[f32; 16]], factor: S::F) -> S::F;
}

/// Formats whose sums may be integers.
pub(crate) trait WholeFormat: Format {
    /// A sum of products.
    type Sum<S: Simd>: Copy;

    fn none<S: Simd>(simd: S) -> Self::Sum<S>;

    /// sum + the products of the codes in 64 bytes, less [`Simd::OFFSET`] each if they are not small.
    fn dot<S: Simd>(simd: S, sum: Self::Sum<S>, codes: &[u8; 64], x: &[[i8; 64]]) -> Self::Sum<S>;

    /// [`Simd::int_quad_sums`] of the sums' ends.
    fn quad_sums<S: Simd>(simd: S, of: [Self::Sum<S>; 4]) -> S::I;
}

/// Formats whose tiles meet several tokens in integers. A vector of a tile holds one word of codes of each of its rows.
pub(crate) trait TileFormat: Format {
    /// Columns whose codes are in a word.
    const COLUMNS: usize = 4 * Self::PER_BYTE;
    /// Tokens whose sums have no place in registers pass over the tiles later, instead of group by group: better where
    /// codes are few.
    const PASSES: bool;

    /// One token's activations of these columns, as they are kept.
    type Kept: Copy;
    /// The same, sixteen times.
    type X<S: Simd>: Copy;
    type Codes<S: Simd>: Copy;
    /// A sum of products.
    type Sum<S: Simd>: Copy;

    /// Tokens whose sums stay in registers.
    fn tokens<S: Simd>() -> usize;

    /// `words`, [columns / COLUMNS][T] kept activations.
    fn kept<const T: usize>(words: &[i32]) -> &[[Self::Kept; T]];
    fn repeat<S: Simd>(simd: S, kept: &Self::Kept) -> Self::X<S>;
    fn codes<S: Simd>(simd: S, bytes: &[u8; 64]) -> Self::Codes<S>;
    fn none<S: Simd>(simd: S) -> Self::Sum<S>;

    /// sum + the products of words, less [`Simd::OFFSET`] for each code if they are not small.
    fn dot<S: Simd>(simd: S, sum: Self::Sum<S>, codes: Self::Codes<S>, x: Self::X<S>) -> Self::Sum<S>;
    fn end<S: Simd>(simd: S, sum: Self::Sum<S>) -> S::I;
}

pub(crate) struct Nibbles;
pub(crate) struct Bytes;
pub(crate) struct Signed;
pub(crate) struct Rounded;

/// acc + the products of `$take::<$j>` of the words with the vectors of x, in turn.
macro_rules! chain {
    ($simd:ident, $acc:ident, $codes:ident, $x:ident, $take:ident, $($j:literal)*) => {{
        let words = $simd.words($simd.load_bytes($codes));
        $(let $acc = $simd.fma($simd.$take::<$j>(words), $simd.load(&$x[$j]), $acc);)*
        $acc
    }};
}

impl Format for Nibbles {
    const PER_BYTE: usize = 2;

    #[inline(always)]
    fn float_dot<S: Simd>(simd: S, acc: S::F, codes: &[u8; 64], x: &[[f32; 16]], _: S::F) -> S::F {
        chain!(simd, acc, codes, x, nibble, 0 1 2 3 4 5 6 7)
    }
}

impl WholeFormat for Nibbles {
    type Sum<S: Simd> = S::I;

    #[inline(always)]
    fn none<S: Simd>(simd: S) -> S::I {
        simd.int_splat(0)
    }

    #[inline(always)]
    fn dot<S: Simd>(simd: S, sum: S::I, codes: &[u8; 64], x: &[[i8; 64]]) -> S::I {
        let x = simd.nibble_x(x.first_chunk().expect("four vectors for 64 bytes"));
        simd.int_add(sum, simd.nibble_products(simd.nibbles(simd.load_bytes(codes)), x))
    }

    #[inline(always)]
    fn quad_sums<S: Simd>(simd: S, of: [S::I; 4]) -> S::I {
        simd.int_quad_sums(of)
    }
}

impl TileFormat for Nibbles {
    const PASSES: bool = true;

    type Kept = [i32; 4];
    type X<S: Simd> = S::NibbleX;
    type Codes<S: Simd> = S::Nibbles;
    type Sum<S: Simd> = S::NibbleSum;

    #[inline(always)]
    fn tokens<S: Simd>() -> usize {
        S::NIBBLE_TILE_TOKENS
    }

    #[inline(always)]
    fn kept<const T: usize>(words: &[i32]) -> &[[[i32; 4]; T]] {
        words.as_chunks().0.as_chunks().0
    }

    #[inline(always)]
    fn repeat<S: Simd>(simd: S, kept: &[i32; 4]) -> S::NibbleX {
        simd.repeat_eight(kept)
    }

    #[inline(always)]
    fn codes<S: Simd>(simd: S, bytes: &[u8; 64]) -> S::Nibbles {
        simd.nibbles(simd.load_bytes(bytes))
    }

    #[inline(always)]
    fn none<S: Simd>(simd: S) -> S::NibbleSum {
        simd.no_nibble_sum()
    }

    #[inline(always)]
    fn dot<S: Simd>(simd: S, sum: S::NibbleSum, codes: S::Nibbles, x: S::NibbleX) -> S::NibbleSum {
        simd.add_nibble_products(sum, codes, x)
    }

    #[inline(always)]
    fn end<S: Simd>(simd: S, sum: S::NibbleSum) -> S::I {
        simd.end_nibble_sum(sum)
    }
}

impl Format for Bytes {
    const PER_BYTE: usize = 1;

    #[inline(always)]
    fn float_dot<S: Simd>(simd: S, acc: S::F, codes: &[u8; 64], x: &[[f32; 16]], _: S::F) -> S::F {
        chain!(simd, acc, codes, x, byte, 0 1 2 3)
    }
}

impl WholeFormat for Bytes {
    type Sum<S: Simd> = S::Sum;

    #[inline(always)]
    fn none<S: Simd>(simd: S) -> S::Sum {
        simd.no_sum()
    }

    #[inline(always)]
    fn dot<S: Simd>(simd: S, sum: S::Sum, codes: &[u8; 64], x: &[[i8; 64]]) -> S::Sum {
        simd.add_products(sum, simd.load_bytes(codes), simd.arranged(&x[0], &x[1]))
    }

    #[inline(always)]
    fn quad_sums<S: Simd>(simd: S, of: [S::Sum; 4]) -> S::I {
        simd.end_quad_sums(of)
    }
}

impl TileFormat for Bytes {
    const PASSES: bool = false;

    type Kept = [i32; 2];
    type X<S: Simd> = S::Quad;
    type Codes<S: Simd> = S::Wide;
    type Sum<S: Simd> = S::WideSum;

    #[inline(always)]
    fn tokens<S: Simd>() -> usize {
        S::TILE_TOKENS
    }

    #[inline(always)]
    fn kept<const T: usize>(words: &[i32]) -> &[[[i32; 2]; T]] {
        words.as_chunks().0.as_chunks().0
    }

    #[inline(always)]
    fn repeat<S: Simd>(simd: S, kept: &[i32; 2]) -> S::Quad {
        simd.repeat(kept)
    }

    #[inline(always)]
    fn codes<S: Simd>(simd: S, bytes: &[u8; 64]) -> S::Wide {
        simd.widen(simd.load_bytes(bytes))
    }

    #[inline(always)]
    fn none<S: Simd>(simd: S) -> S::WideSum {
        simd.no_wide_sum()
    }

    #[inline(always)]
    fn dot<S: Simd>(simd: S, sum: S::WideSum, codes: S::Wide, x: S::Quad) -> S::WideSum {
        simd.add_wide_products(sum, codes, x)
    }

    #[inline(always)]
    fn end<S: Simd>(simd: S, sum: S::WideSum) -> S::I {
        simd.end_wide_sum(sum)
    }
}

impl Format for Signed {
    const PER_BYTE: usize = 1;

    #[inline(always)]
    fn float_dot<S: Simd>(simd: S, acc: S::F, codes: &[u8; 64], x: &[[f32; 16]], _: S::F) -> S::F {
        chain!(simd, acc, codes, x, signed_byte, 0 1 2 3)
    }
}

impl WholeFormat for Signed {
    type Sum<S: Simd> = S::Sum;

    #[inline(always)]
    fn none<S: Simd>(simd: S) -> S::Sum {
        simd.no_sum()
    }

    #[inline(always)]
    fn dot<S: Simd>(simd: S, sum: S::Sum, codes: &[u8; 64], x: &[[i8; 64]]) -> S::Sum {
        // 128 too much for each code; the scaling takes it off by the sum of the activations.
        simd.add_products(sum, simd.flip_sign(simd.load_bytes(codes)), simd.arranged(&x[0], &x[1]))
    }

    #[inline(always)]
    fn quad_sums<S: Simd>(simd: S, of: [S::Sum; 4]) -> S::I {
        simd.end_quad_sums(of)
    }
}

impl Format for Rounded {
    const PER_BYTE: usize = 1;
    const SCALED: bool = true;

    #[inline(always)]
    fn float_dot<S: Simd>(simd: S, acc: S::F, codes: &[u8; 64], x: &[[f32; 16]], factor: S::F) -> S::F {
        let words = simd.words(simd.load_bytes(codes));
        let acc = simd.fma(rounded(simd, simd.signed_byte::<0>(words), factor), simd.load(&x[0]), acc);
        let acc = simd.fma(rounded(simd, simd.signed_byte::<1>(words), factor), simd.load(&x[1]), acc);
        let acc = simd.fma(rounded(simd, simd.signed_byte::<2>(words), factor), simd.load(&x[2]), acc);
        simd.fma(rounded(simd, simd.signed_byte::<3>(words), factor), simd.load(&x[3]), acc)
    }
}

/// The weights that codes stand for.
#[inline(always)]
fn rounded<S: Simd>(simd: S, codes: S::F, factor: S::F) -> S::F {
    simd.round_to_f16(simd.mul(codes, factor))
}
