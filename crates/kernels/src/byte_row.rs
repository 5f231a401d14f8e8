//! One token times rows whose codes are whole bytes.
//!
//! As in [`crate::row`], but in short steps, each the same: four vectors of codes at a time, whose sums over quads of
//! lanes are kept until the row ends, and scales read where they lie. From memory that is a tenth faster here than
//! sixteen groups at a time with a table of scales; nibbles are as fast or faster with those, by the instruction set.

use crate::format::{Bytes, Format, Rounded, Signed, WholeFormat};
use crate::input::Mode;
use crate::matrix::{Floats, Scaling};
use crate::row::{Activations, BLOCK, FAR, RowSpace, Run, complete, sum_slots};
use crate::simd::Simd;

#[inline(always)]
pub(crate) fn bytes<S: Simd>(simd: S, run: Run<'_>, space: &mut RowSpace, out: &mut [f32]) {
    by_group::<S, Bytes>(simd, run, space, out);
}

#[inline(always)]
pub(crate) fn signed<S: Simd>(simd: S, run: Run<'_>, space: &mut RowSpace, out: &mut [f32]) {
    by_group::<S, Signed>(simd, run, space, out);
}

#[inline(always)]
fn by_group<S: Simd, F: WholeFormat>(simd: S, run: Run<'_>, space: &mut RowSpace, out: &mut [f32]) {
    // Quads of lanes to a group, if one vector holds it.
    match (run.x.form.mode, run.x.form.group / 16) {
        (Mode::Fast, 2) => rows::<S, F, Integers, 2, 1>(simd, run, space, out),
        (Mode::Fast, 4) => rows::<S, F, Integers, 4, 1>(simd, run, space, out),
        (Mode::Fast, _) => rows::<S, F, Integers, 4, 2>(simd, run, space, out),
        (Mode::Exact, _) => exactly::<S, F>(simd, run, space, out),
    }
}

#[inline(always)]
pub(crate) fn rounded<S: Simd>(simd: S, run: Run<'_>, space: &mut RowSpace, out: &mut [f32]) {
    exactly::<S, Rounded>(simd, run, space, out);
}

#[inline(always)]
fn exactly<S: Simd, F: Format>(simd: S, run: Run<'_>, space: &mut RowSpace, out: &mut [f32]) {
    match run.x.form.group / 16 {
        2 => rows::<S, F, Reals, 2, 1>(simd, run, space, out),
        4 => rows::<S, F, Reals, 4, 1>(simd, run, space, out),
        _ => rows::<S, F, Reals, 4, 2>(simd, run, space, out),
    }
}

/// Sums over lanes, in integers or floats.
trait Sums<F: Format> {
    /// They are integers, which the scales of activations make floats of.
    const WHOLE: bool;

    /// The bits of the sums over quads of lanes of four vectors, PARTS each: of `codes` times the activations of a row's
    /// quad `quad`. `scales` are those of its groups, if their codes are scaled one by one.
    fn quad<S: Simd, const QUADS: usize, const PARTS: usize>(
        simd: S,
        codes: &[[u8; 64]],
        scales: &[f32; 16],
        x: Activations<'_>,
        quad: usize,
    ) -> S::I;

    /// The sums of sixteen groups from those of their QUADS quads. `x_sums` are those of their activations.
    fn groups<S: Simd, const QUADS: usize>(simd: S, quads: &[[i32; 16]; QUADS], x_sums: S::F) -> S::F;
}

struct Integers;
struct Reals;

impl<F: WholeFormat> Sums<F> for Integers {
    const WHOLE: bool = true;

    #[inline(always)]
    fn quad<S: Simd, const QUADS: usize, const PARTS: usize>(
        simd: S,
        codes: &[[u8; 64]],
        _: &[f32; 16],
        x: Activations<'_>,
        quad: usize,
    ) -> S::I {
        let (codes, x) =
            (&codes[..4 * PARTS], &x.codes[quad * 4 * PARTS * F::CODES..][..4 * PARTS * F::CODES]);
        let mut four = [F::none(simd); 4];
        for (i, sum) in four.iter_mut().enumerate() {
            for at in i * PARTS..(i + 1) * PARTS {
                *sum = F::dot(simd, *sum, &codes[at], &x[at * F::CODES..][..F::CODES]);
            }
        }
        F::quad_sums(simd, four)
    }

    #[inline(always)]
    fn groups<S: Simd, const QUADS: usize>(simd: S, quads: &[[i32; 16]; QUADS], x_sums: S::F) -> S::F {
        let dots = match quads.as_slice() {
            [a, b, c, d, ..] => {
                let low = simd.int_pair_quads(simd.int_load(a), simd.int_load(b));
                simd.int_pair_quads(low, simd.int_pair_quads(simd.int_load(c), simd.int_load(d)))
            }
            [a, b, ..] => simd.int_zip_quads(simd.int_pair_quads(simd.int_load(a), simd.int_load(b))),
            _ => simd.int_splat(0),
        };
        if S::OFFSET == 0 {
            return simd.float(dots);
        }
        simd.float(simd.int_add(dots, simd.round(simd.mul(simd.splat(S::OFFSET as f32), x_sums))))
    }
}

impl<F: Format> Sums<F> for Reals {
    const WHOLE: bool = false;

    #[inline(always)]
    fn quad<S: Simd, const QUADS: usize, const PARTS: usize>(
        simd: S,
        codes: &[[u8; 64]],
        scales: &[f32; 16],
        x: Activations<'_>,
        quad: usize,
    ) -> S::I {
        let (codes, x) =
            (&codes[..4 * PARTS], &x.values[quad * 4 * PARTS * F::FLOATS..][..4 * PARTS * F::FLOATS]);
        let mut four = [simd.splat(0.0); 4];
        for (i, sum) in four.iter_mut().enumerate() {
            let factor = factor::<S, QUADS>(simd, scales, i);
            for at in i * PARTS..(i + 1) * PARTS {
                *sum = F::float_dot(simd, *sum, &codes[at], &x[at * F::FLOATS..][..F::FLOATS], factor);
            }
        }
        simd.float_bits(simd.quad_sums(four))
    }

    #[inline(always)]
    fn groups<S: Simd, const QUADS: usize>(simd: S, quads: &[[i32; 16]; QUADS], _: S::F) -> S::F {
        let mut sums = [simd.splat(0.0); QUADS];
        for (sum, quad) in sums.iter_mut().zip(quads) {
            *sum = simd.float_of_bits(simd.int_load(quad));
        }
        match *sums.as_slice() {
            [a, b, c, d, ..] => simd.pair_quads(simd.pair_quads(a, b), simd.pair_quads(c, d)),
            [a, b, ..] => simd.zip_quads(simd.pair_quads(a, b)),
            _ => simd.splat(0.0),
        }
    }
}

/// The scales of the groups that lanes of a quad's vector `vector` belong to.
#[inline(always)]
fn factor<S: Simd, const QUADS: usize>(simd: S, scales: &[f32; 16], vector: usize) -> S::F {
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
fn rows<S: Simd, F: Format, K: Sums<F>, const QUADS: usize, const PARTS: usize>(
    simd: S,
    run: Run<'_>,
    space: &mut RowSpace,
    out: &mut [f32],
) {
    let (columns, scaling) = (run.matrix.columns, run.matrix.scaling);
    let groups = columns.div_ceil(run.x.form.group);
    let stride = columns.next_multiple_of(64 * 4 * PARTS);
    let RowSpace { completed, quads } = space;
    let codes = if stride == columns {
        run.codes
    } else {
        complete(&run.codes[..out.len() * columns], columns, stride, completed)
    };
    let row_quads = stride / (64 * 4 * PARTS);
    quads.resize(16 * row_quads.next_multiple_of(QUADS));
    let quads = quads.as_chunks_mut::<16>().0;
    // Groups that a row does not have.
    quads[row_quads..].fill([0; 16]);
    let x = Activations::of(run.x);
    let mut slots = [simd.splat(0.0); BLOCK];
    // The next block's.
    scaling.prefetch(simd, (run.first + BLOCK) * groups, BLOCK * groups);
    for (row, codes) in codes.chunks_exact(stride).enumerate().take(out.len()) {
        let row_scales = (run.first + row, (run.first + row) * groups);
        let vectors = codes.as_chunks::<64>().0.chunks_exact(4 * PARTS);
        for (quad, (codes, sums)) in vectors.zip(&mut *quads).enumerate() {
            for line in 0..4 * PARTS {
                simd.prefetch(codes.as_flattened(), FAR + 64 * line);
            }
            let mut own = [0.0; 16];
            if F::SCALED {
                simd.store(scales(simd, scaling, row_scales, 16 / QUADS * quad), &mut own);
            }
            simd.int_store(K::quad::<S, QUADS, PARTS>(simd, codes, &own, x, quad), sums);
        }
        // Lane i gathers groups i, i + 16, i + 32, ... in turn.
        let mut sums = simd.splat(0.0);
        for (chunk, quads) in quads.as_chunks::<QUADS>().0.iter().enumerate() {
            let (x_sums, x_scales) = (simd.load(&x.sums[chunk]), simd.load(&x.scales[chunk]));
            let scale = scales(simd, scaling, row_scales, 16 * chunk);
            // The sums of groups that a row does not have are zero, whatever their scales.
            let dots = K::groups::<S, QUADS>(simd, quads, x_sums);
            sums = match (scaling, K::WHOLE) {
                (Scaling::Affine { biases, .. }, whole) => {
                    let biases = lanes(simd, biases, row_scales.1 + 16 * chunk);
                    let value = simd.fma(scale, dots, simd.mul(biases, x_sums));
                    if whole { simd.fma(x_scales, value, sums) } else { simd.add(sums, value) }
                }
                (_, true) => {
                    // 128 was added to each code; the sums are whole numbers.
                    let dots = simd.sub(dots, simd.mul(simd.splat(128.0), x_sums));
                    simd.fma(x_scales, simd.mul(scale, dots), sums)
                }
                (_, false) if F::SCALED => simd.add(dots, sums),
                (_, false) => simd.fma(scale, dots, sums),
            };
        }
        slots[row] = sums;
    }
    sum_slots(simd, &slots, out);
}

/// Sixteen scales from a row's group `group` on; beyond the row they may be anything. The row is given by its number and
/// its first group's.
#[inline(always)]
fn scales<S: Simd>(simd: S, scaling: Scaling<'_>, (row, first): (usize, usize), group: usize) -> S::F {
    match scaling {
        Scaling::Affine { scales, .. } | Scaling::Blocks { scales, .. } => lanes(simd, scales, first + group),
        Scaling::Rows { scales } => simd.splat(scales.get(row)),
        Scaling::None => simd.splat(0.0),
    }
}

/// Sixteen of `floats` from `from` on, with zeros after the last.
#[inline(always)]
fn lanes<S: Simd>(simd: S, floats: Floats<'_>, from: usize) -> S::F {
    floats.lanes(simd, from, floats.len() - from)
}
