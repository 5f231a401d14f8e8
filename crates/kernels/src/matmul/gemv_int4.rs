//! Product of rows of INT4 codes with one token.
//!
//! The products of 64 bytes of codes with their activations are sixteen lane sums, of which neighbouring lanes belong to one
//! group. The lane sums of up to sixteen such vectors are added to one vector whose lanes are sixteen groups: three
//! operations per vector and no reduction per group. Only then are they converted to f32 and scaled. The lanes of sixteen
//! rows are reduced together at the end.

use super::format::{CodeFormat, IntegerFormat, U4};
use super::layout::Mode;
use super::matrix::{Matrix, Scaling};
use super::rows::{
    ActivationVectors, PREFETCH_L1_BYTES, PREFETCH_L2_BYTES, ROWS_PER_BLOCK, RowBlock, pad_rows, read_floats,
    reduce_rows,
};
use crate::aligned::Aligned;
use crate::simd::Simd;

/// Writes the products of a block of rows; `values` and `padded` are scratch buffers.
#[inline(always)]
pub(crate) fn multiply<S: Simd>(
    simd: S,
    block: RowBlock<'_>,
    values: &mut Aligned<f32>,
    padded: &mut Aligned<u8>,
    out: &mut [f32],
) {
    let layout = block.x.layout;
    let scales = Scales::read(simd, block.matrix, layout.group, block.first, out.len(), values);
    // Quads of lanes per group.
    match (layout.mode, layout.group / 32) {
        (Mode::Fast, 1) => rows::<S, Integer, 1>(simd, block, scales, padded, out),
        (Mode::Fast, 2) => rows::<S, Integer, 2>(simd, block, scales, padded, out),
        (Mode::Fast, _) => rows::<S, Integer, 4>(simd, block, scales, padded, out),
        (Mode::Exact, 1) => rows::<S, Float, 1>(simd, block, scales, padded, out),
        (Mode::Exact, 2) => rows::<S, Float, 2>(simd, block, scales, padded, out),
        (Mode::Exact, _) => rows::<S, Float, 4>(simd, block, scales, padded, out),
    }
}

/// Scales and biases of some rows [rows, groups] in f32, padded so that a vector can be read from any group on.
#[derive(Clone, Copy)]
struct Scales<'a> {
    scales: &'a [f32],
    biases: &'a [f32],
}

impl<'a> Scales<'a> {
    #[inline(always)]
    fn read<S: Simd>(
        simd: S,
        matrix: &Matrix<'_>,
        group: usize,
        first: usize,
        rows: usize,
        values: &'a mut Aligned<f32>,
    ) -> Self {
        let groups = matrix.columns.div_ceil(group);
        // A vector that starts in the last row may end beyond it.
        let length = (rows * groups).next_multiple_of(16) + 16;
        values.resize(2 * ROWS_PER_BLOCK * (groups + 2));
        let (scales, biases) = values.split_at_mut(length);
        let biases = &mut biases[..length];
        if let Scaling::Affine { scales: s, biases: b, .. } = matrix.scaling {
            read_floats(simd, s, first * groups, rows * groups, scales);
            read_floats(simd, b, first * groups, rows * groups, biases);
        }
        Self { scales, biases }
    }
}

/// Arithmetic of the sums of groups: [`Integer`] or [`Float`].
trait GroupSums {
    /// True for integers, which are multiplied with the scales of the activations.
    const INTEGER: bool;

    /// Sums of the sixteen groups of `chunk`, QUADS quads of lanes each, from `codes[0]` on. If not FULL, `codes` may end
    /// after any four vectors, and the remaining groups are zero.
    fn groups<S: Simd, const QUADS: usize, const FULL: bool>(
        simd: S,
        codes: &[[u8; 64]],
        x: ActivationVectors<'_>,
        chunk: usize,
    ) -> S::F32;
}

struct Integer;
struct Float;

/// Lane sums of four of the vectors of sixteen groups.
macro_rules! four_dots {
    ($simd:ident, $codes:ident, $x:ident, $per:expr, $zero:ident, $dot:ident, $quad:literal $(, $scale:ident)?) => {{
        let mut four = [$zero; 4];
        for i in 0..4 {
            let at = 4 * $quad + i;
            four[i] = U4::$dot($simd, four[i], &$codes[at], &$x[at * $per..][..$per] $(, $scale)?);
        }
        four
    }};
}

impl GroupSums for Integer {
    const INTEGER: bool = true;

    #[inline(always)]
    fn groups<S: Simd, const QUADS: usize, const FULL: bool>(
        simd: S,
        codes: &[[u8; 64]],
        x: ActivationVectors<'_>,
        chunk: usize,
    ) -> S::F32 {
        let codes = if FULL { &codes[..4 * QUADS] } else { codes };
        let x = &x.codes[chunk * 4 * QUADS * U4::INT_VECTORS..][..codes.len() * U4::INT_VECTORS];
        let (zero, zero_dot) = (simd.int_splat(0), U4::zero(simd));
        macro_rules! quad {
            ($quad:literal) => {
                if FULL || codes.len() > 4 * $quad {
                    let dots = four_dots!(simd, codes, x, U4::INT_VECTORS, zero_dot, dot, $quad);
                    U4::quad_sums(simd, dots)
                } else {
                    zero
                }
            };
        }
        simd.to_f32(match QUADS {
            1 => simd.int_transpose_quads(quad!(0)),
            2 => simd.int_zip_quads(simd.int_add_quad_pairs(quad!(0), quad!(1))),
            _ => {
                let low = simd.int_add_quad_pairs(quad!(0), quad!(1));
                simd.int_add_quad_pairs(low, simd.int_add_quad_pairs(quad!(2), quad!(3)))
            }
        })
    }
}

impl GroupSums for Float {
    const INTEGER: bool = false;

    #[inline(always)]
    fn groups<S: Simd, const QUADS: usize, const FULL: bool>(
        simd: S,
        codes: &[[u8; 64]],
        x: ActivationVectors<'_>,
        chunk: usize,
    ) -> S::F32 {
        let codes = if FULL { &codes[..4 * QUADS] } else { codes };
        let x = &x.values[chunk * 4 * QUADS * U4::FLOAT_VECTORS..][..codes.len() * U4::FLOAT_VECTORS];
        let zero = simd.splat(0.0);
        macro_rules! quad {
            ($quad:literal) => {
                if FULL || codes.len() > 4 * $quad {
                    simd.quad_sums(four_dots!(
                        simd,
                        codes,
                        x,
                        U4::FLOAT_VECTORS,
                        zero,
                        float_dot,
                        $quad,
                        zero
                    ))
                } else {
                    zero
                }
            };
        }
        match QUADS {
            1 => simd.transpose_quads(quad!(0)),
            2 => simd.zip_quads(simd.add_quad_pairs(quad!(0), quad!(1))),
            _ => {
                let low = simd.add_quad_pairs(quad!(0), quad!(1));
                simd.add_quad_pairs(low, simd.add_quad_pairs(quad!(2), quad!(3)))
            }
        }
    }
}

#[inline(always)]
fn rows<S: Simd, K: GroupSums, const QUADS: usize>(
    simd: S,
    block: RowBlock<'_>,
    scales: Scales<'_>,
    padded: &mut Aligned<u8>,
    out: &mut [f32],
) {
    let groups = block.matrix.columns.div_ceil(block.x.layout.group);
    let vectors = 4 * QUADS;
    let row_bytes = block.matrix.columns / 2;
    let stride = row_bytes.next_multiple_of(64 * 4);
    let codes = if stride == row_bytes {
        block.codes
    } else {
        pad_rows(&block.codes[..out.len() * row_bytes], row_bytes, stride, padded)
    };
    let x = ActivationVectors::of(block.x);
    let mut row_sums = [simd.splat(0.0); ROWS_PER_BLOCK];
    // Scales of the next block.
    block.matrix.scaling.prefetch(simd, (block.first + ROWS_PER_BLOCK) * groups, ROWS_PER_BLOCK * groups);
    for (row, codes) in codes.chunks_exact(stride).enumerate().take(out.len()) {
        // Lane i accumulates groups i, i + 16, i + 32, ... in sequence.
        let mut sums = simd.splat(0.0);
        for (chunk, codes) in codes.chunks(64 * vectors).enumerate() {
            for line in 0..vectors {
                simd.prefetch_l2(codes, PREFETCH_L2_BYTES + 64 * line);
                simd.prefetch_l1(codes, PREFETCH_L1_BYTES + 64 * line);
            }
            let codes = codes.as_chunks().0;
            let at = row * groups + 16 * chunk;
            let dots = if codes.len() == vectors {
                K::groups::<S, QUADS, true>(simd, codes, x, chunk)
            } else {
                K::groups::<S, QUADS, false>(simd, codes, x, chunk)
            };
            let (x_sums, x_scales) = (simd.load(&x.sums[chunk]), simd.load(&x.scales[chunk]));
            let scale = lanes(simd, scales.scales, at);
            // Groups beyond the row have zero sums, so their scales may be anything.
            let value = simd.fma(scale, dots, simd.mul(lanes(simd, scales.biases, at), x_sums));
            sums = if K::INTEGER { simd.fma(x_scales, value, sums) } else { simd.add(sums, value) };
        }
        row_sums[row] = sums;
    }
    reduce_rows(simd, &row_sums, out);
}

/// Elements `from..from + 16` of a padded table.
// A function, not a closure: a closure that is not inlined is compiled without the instruction set's features.
#[inline(always)]
fn lanes<S: Simd>(simd: S, values: &[f32], from: usize) -> S::F32 {
    simd.load(values[from..].first_chunk().expect("padded to vectors"))
}
