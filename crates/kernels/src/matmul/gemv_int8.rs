//! Product of rows of INT8 codes with one token.
//!
//! Unlike [`super::gemv_int4`] the loop has short identical steps of four code vectors, whose sums over quads of lanes are
//! stored until the row ends, and scales are read in place. From memory that is faster for INT8 than sixteen groups at a
//! time with a table of scales; for INT4 the table is as fast or faster, depending on the instruction set.

use super::floats::Floats;
use super::format::{CodeFormat, I8, I8RoundedToF16, IntegerFormat, U8};
use super::layout::Mode;
use super::matrix::Scaling;
use super::rows::{
    ActivationVectors, PREFETCH_L2_BYTES, ROWS_PER_BLOCK, RowBlock, RowScratch, pad_rows, reduce_rows,
};
use crate::simd::Simd;

#[inline(always)]
pub(crate) fn multiply_u8<S: Simd>(simd: S, block: RowBlock<'_>, scratch: &mut RowScratch, out: &mut [f32]) {
    in_mode::<S, U8>(simd, block, scratch, out);
}

#[inline(always)]
pub(crate) fn multiply_i8<S: Simd>(simd: S, block: RowBlock<'_>, scratch: &mut RowScratch, out: &mut [f32]) {
    in_mode::<S, I8>(simd, block, scratch, out);
}

#[inline(always)]
fn in_mode<S: Simd, F: IntegerFormat>(
    simd: S,
    block: RowBlock<'_>,
    scratch: &mut RowScratch,
    out: &mut [f32],
) {
    // Quads of lanes per group if one vector holds it, and vectors per group.
    match (block.x.layout.mode, block.x.layout.group / 16) {
        (Mode::Fast, 2) => rows::<S, F, Integer, 2, 1>(simd, block, scratch, out),
        (Mode::Fast, 4) => rows::<S, F, Integer, 4, 1>(simd, block, scratch, out),
        (Mode::Fast, _) => rows::<S, F, Integer, 4, 2>(simd, block, scratch, out),
        (Mode::Exact, _) => exact::<S, F>(simd, block, scratch, out),
    }
}

#[inline(always)]
pub(crate) fn multiply_i8_rounded_to_f16<S: Simd>(
    simd: S,
    block: RowBlock<'_>,
    scratch: &mut RowScratch,
    out: &mut [f32],
) {
    exact::<S, I8RoundedToF16>(simd, block, scratch, out);
}

#[inline(always)]
fn exact<S: Simd, F: CodeFormat>(simd: S, block: RowBlock<'_>, scratch: &mut RowScratch, out: &mut [f32]) {
    match block.x.layout.group / 16 {
        2 => rows::<S, F, Float, 2, 1>(simd, block, scratch, out),
        4 => rows::<S, F, Float, 4, 1>(simd, block, scratch, out),
        _ => rows::<S, F, Float, 4, 2>(simd, block, scratch, out),
    }
}

/// Arithmetic of the sums of groups: [`Integer`] or [`Float`].
trait GroupSums<F: CodeFormat> {
    /// True for integers, which are multiplied with the scales of the activations.
    const INTEGER: bool;

    /// Bits of the sums over quads of lanes of four sums of PARTS vectors each: `codes` times the activations of step
    /// `quad` of a row. `scales` are those of its groups if the format scales codes one by one.
    fn quad<S: Simd, const QUADS: usize, const PARTS: usize>(
        simd: S,
        codes: &[[u8; 64]],
        scales: &[f32; 16],
        x: ActivationVectors<'_>,
        quad: usize,
    ) -> S::I32;

    /// Sums of sixteen groups from the QUADS results of [`GroupSums::quad`]; `x_sums` are the sums of their activations.
    fn groups<S: Simd, const QUADS: usize>(simd: S, quads: &[[i32; 16]; QUADS], x_sums: S::F32) -> S::F32;
}

struct Integer;
struct Float;

impl<F: IntegerFormat> GroupSums<F> for Integer {
    const INTEGER: bool = true;

    #[inline(always)]
    fn quad<S: Simd, const QUADS: usize, const PARTS: usize>(
        simd: S,
        codes: &[[u8; 64]],
        _: &[f32; 16],
        x: ActivationVectors<'_>,
        quad: usize,
    ) -> S::I32 {
        let (codes, x) = (
            &codes[..4 * PARTS],
            &x.codes[quad * 4 * PARTS * F::INT_VECTORS..][..4 * PARTS * F::INT_VECTORS],
        );
        let mut four = [F::zero(simd); 4];
        for (i, sum) in four.iter_mut().enumerate() {
            for at in i * PARTS..(i + 1) * PARTS {
                *sum = F::dot(simd, *sum, &codes[at], &x[at * F::INT_VECTORS..][..F::INT_VECTORS]);
            }
        }
        F::quad_sums(simd, four)
    }

    #[inline(always)]
    fn groups<S: Simd, const QUADS: usize>(simd: S, quads: &[[i32; 16]; QUADS], x_sums: S::F32) -> S::F32 {
        let dots = match quads.as_slice() {
            [a, b, c, d, ..] => {
                let low = simd.int_add_quad_pairs(simd.int_load(a), simd.int_load(b));
                simd.int_add_quad_pairs(low, simd.int_add_quad_pairs(simd.int_load(c), simd.int_load(d)))
            }
            [a, b, ..] => simd.int_zip_quads(simd.int_add_quad_pairs(simd.int_load(a), simd.int_load(b))),
            _ => simd.int_splat(0),
        };
        if S::CODE_OFFSET == 0 {
            return simd.to_f32(dots);
        }
        simd.to_f32(
            simd.int_add(dots, simd.round_to_i32(simd.mul(simd.splat(S::CODE_OFFSET as f32), x_sums))),
        )
    }
}

impl<F: CodeFormat> GroupSums<F> for Float {
    const INTEGER: bool = false;

    #[inline(always)]
    fn quad<S: Simd, const QUADS: usize, const PARTS: usize>(
        simd: S,
        codes: &[[u8; 64]],
        scales: &[f32; 16],
        x: ActivationVectors<'_>,
        quad: usize,
    ) -> S::I32 {
        let (codes, x) = (
            &codes[..4 * PARTS],
            &x.values[quad * 4 * PARTS * F::FLOAT_VECTORS..][..4 * PARTS * F::FLOAT_VECTORS],
        );
        let mut four = [simd.splat(0.0); 4];
        for (i, sum) in four.iter_mut().enumerate() {
            let scale = lane_scales::<S, QUADS>(simd, scales, i);
            for at in i * PARTS..(i + 1) * PARTS {
                *sum = F::float_dot(
                    simd,
                    *sum,
                    &codes[at],
                    &x[at * F::FLOAT_VECTORS..][..F::FLOAT_VECTORS],
                    scale,
                );
            }
        }
        simd.f32_to_bits(simd.quad_sums(four))
    }

    #[inline(always)]
    fn groups<S: Simd, const QUADS: usize>(simd: S, quads: &[[i32; 16]; QUADS], _: S::F32) -> S::F32 {
        let mut sums = [simd.splat(0.0); QUADS];
        for (sum, quad) in sums.iter_mut().zip(quads) {
            *sum = simd.f32_from_bits(simd.int_load(quad));
        }
        match *sums.as_slice() {
            [a, b, c, d, ..] => simd.add_quad_pairs(simd.add_quad_pairs(a, b), simd.add_quad_pairs(c, d)),
            [a, b, ..] => simd.zip_quads(simd.add_quad_pairs(a, b)),
            _ => simd.splat(0.0),
        }
    }
}

/// Scale of each lane in vector `vector` of a step, of the group that the lane belongs to.
#[inline(always)]
fn lane_scales<S: Simd, const QUADS: usize>(simd: S, scales: &[f32; 16], vector: usize) -> S::F32 {
    if QUADS == 4 {
        return simd.splat(scales[vector]);
    }
    let mut lanes = [0.0; 16];
    for (lanes, &scale) in lanes.chunks_exact_mut(4 * QUADS).zip(&scales[vector * (4 / QUADS)..]) {
        lanes.fill(scale);
    }
    simd.load(&lanes)
}

#[inline(always)]
fn rows<S: Simd, F: CodeFormat, K: GroupSums<F>, const QUADS: usize, const PARTS: usize>(
    simd: S,
    block: RowBlock<'_>,
    scratch: &mut RowScratch,
    out: &mut [f32],
) {
    let (columns, scaling) = (block.matrix.columns, block.matrix.scaling);
    let groups = columns.div_ceil(block.x.layout.group);
    let stride = columns.next_multiple_of(64 * 4 * PARTS);
    let RowScratch { padded, quads } = scratch;
    let codes = if stride == columns {
        block.codes
    } else {
        pad_rows(&block.codes[..out.len() * columns], columns, stride, padded)
    };
    let row_quads = stride / (64 * 4 * PARTS);
    quads.resize(16 * row_quads.next_multiple_of(QUADS));
    let quads = quads.as_chunks_mut::<16>().0;
    // Steps beyond the end of the row.
    quads[row_quads..].fill([0; 16]);
    let x = ActivationVectors::of(block.x);
    let mut row_sums = [simd.splat(0.0); ROWS_PER_BLOCK];
    // Scales of the next block.
    scaling.prefetch(simd, (block.first + ROWS_PER_BLOCK) * groups, ROWS_PER_BLOCK * groups);
    for (row, codes) in codes.chunks_exact(stride).enumerate().take(out.len()) {
        let row_scales = (block.first + row, (block.first + row) * groups);
        let vectors = codes.as_chunks::<64>().0.chunks_exact(4 * PARTS);
        for (quad, (codes, sums)) in vectors.zip(&mut *quads).enumerate() {
            for line in 0..4 * PARTS {
                simd.prefetch_l2(codes.as_flattened(), PREFETCH_L2_BYTES + 64 * line);
            }
            let mut group_scales = [0.0; 16];
            if F::SCALES_CODES {
                simd.store(scales(simd, scaling, row_scales, 16 / QUADS * quad), &mut group_scales);
            }
            simd.int_store(K::quad::<S, QUADS, PARTS>(simd, codes, &group_scales, x, quad), sums);
        }
        // Lane i accumulates groups i, i + 16, i + 32, ... in sequence.
        let mut sums = simd.splat(0.0);
        for (chunk, quads) in quads.as_chunks::<QUADS>().0.iter().enumerate() {
            let (x_sums, x_scales) = (simd.load(&x.sums[chunk]), simd.load(&x.scales[chunk]));
            let scale = scales(simd, scaling, row_scales, 16 * chunk);
            // Groups beyond the row have zero sums, so their scales may be anything.
            let dots = K::groups::<S, QUADS>(simd, quads, x_sums);
            sums = match (scaling, K::INTEGER) {
                (Scaling::Affine { biases, .. }, integer) => {
                    let biases = lanes(simd, biases, row_scales.1 + 16 * chunk);
                    let value = simd.fma(scale, dots, simd.mul(biases, x_sums));
                    if integer { simd.fma(x_scales, value, sums) } else { simd.add(sums, value) }
                }
                (_, true) => {
                    // The sign flip added 128 to each code; the sums are integers.
                    let dots = simd.sub(dots, simd.mul(simd.splat(128.0), x_sums));
                    simd.fma(x_scales, simd.mul(scale, dots), sums)
                }
                (_, false) if F::SCALES_CODES => simd.add(dots, sums),
                (_, false) => simd.fma(scale, dots, sums),
            };
        }
        row_sums[row] = sums;
    }
    reduce_rows(simd, &row_sums, out);
}

/// Scales of groups `group..group + 16` of a row, arbitrary beyond the row. The row is identified by its index and the
/// index of its first group.
#[inline(always)]
fn scales<S: Simd>(simd: S, scaling: Scaling<'_>, (row, first): (usize, usize), group: usize) -> S::F32 {
    match scaling {
        Scaling::Affine { scales, .. } | Scaling::Blockwise { scales, .. } => {
            lanes(simd, scales, first + group)
        }
        Scaling::PerRow { scales } => simd.splat(scales.get(row)),
        Scaling::None => simd.splat(0.0),
    }
}

/// Elements `from..from + 16`, zero beyond the last.
#[inline(always)]
fn lanes<S: Simd>(simd: S, floats: Floats<'_>, from: usize) -> S::F32 {
    floats.lanes(simd, from, floats.len() - from)
}
