//! How 64 bytes of codes meet one token's activations, in integers and in floats.

use crate::simd::Simd;

/// How codes are taken out of 64 bytes.
pub(crate) trait Format {
    /// Codes in a byte.
    const PER_BYTE: usize;
    /// Vectors of activations that 64 bytes of codes meet: of codes, and of floats.
    const CODES: usize = 2 * Self::PER_BYTE;
    const FLOATS: usize = 4 * Self::PER_BYTE;

    /// acc + their products. `factor` is what the lanes' codes are scaled by, where sums cannot be scaled instead.
    fn float_dot<S: Simd>(simd: S, acc: S::F, codes: &[u8; 64], x: &[[f32; 16]], factor: S::F) -> S::F;
}

/// Formats whose sums may be integers.
pub(crate) trait WholeFormat: Format {
    /// Codes are below 128.
    const SMALL: bool;

    /// sum + the products of the codes in 64 bytes, less [`Simd::OFFSET`] each if they are not small.
    fn dot<S: Simd>(simd: S, sum: S::Sum, codes: &[u8; 64], x: &[[i8; 64]]) -> S::Sum;

    /// [`Simd::end_quad_sums`] of sums of [`WholeFormat::dot`].
    #[inline(always)]
    fn quad_sums<S: Simd>(simd: S, of: [S::Sum; 4]) -> S::I {
        simd.end_quad_sums(of)
    }
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
    const SMALL: bool = true;

    #[inline(always)]
    fn dot<S: Simd>(simd: S, sum: S::Sum, codes: &[u8; 64], x: &[[i8; 64]]) -> S::Sum {
        let bytes = simd.load_bytes(codes);
        let sum = simd.add_small_products(sum, simd.low_nibbles(bytes), simd.arranged(&x[0], &x[1]));
        simd.add_small_products(sum, simd.high_nibbles(bytes), simd.arranged(&x[2], &x[3]))
    }

    #[inline(always)]
    fn quad_sums<S: Simd>(simd: S, of: [S::Sum; 4]) -> S::I {
        simd.nibble_quad_sums(of)
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
    const SMALL: bool = false;

    #[inline(always)]
    fn dot<S: Simd>(simd: S, sum: S::Sum, codes: &[u8; 64], x: &[[i8; 64]]) -> S::Sum {
        simd.add_products(sum, simd.load_bytes(codes), simd.arranged(&x[0], &x[1]))
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
    const SMALL: bool = false;

    #[inline(always)]
    fn dot<S: Simd>(simd: S, sum: S::Sum, codes: &[u8; 64], x: &[[i8; 64]]) -> S::Sum {
        // 128 too much for each code; the scaling takes it off by the sum of the activations.
        simd.add_products(sum, simd.flip_sign(simd.load_bytes(codes)), simd.arranged(&x[0], &x[1]))
    }
}

impl Format for Rounded {
    const PER_BYTE: usize = 1;

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
