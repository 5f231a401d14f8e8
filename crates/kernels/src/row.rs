//! One token times rows: the decode step, bound by how fast memory gives the codes.
//!
//! A vector of 64 bytes of codes meets its activations, giving sixteen lane sums; neighbouring lanes belong to one
//! group. The lane sums of up to sixteen such vectors are added up into one vector whose lanes are sixteen groups
//! (3 operations for each vector, no reduction per group), and only then become floats and are scaled. The lane sums
//! of sixteen rows, in turn, are added up together.

use crate::aligned::Aligned;
use crate::format::{Bytes, Format, Nibbles, Rounded, Signed, WholeFormat};
use crate::input::{Mode, Prepared};
use crate::matrix::{Codes, Floats, Matrix, Scaling};
use crate::simd::{Kernel, Simd};
use crate::stream::unpack;
use crate::tile::TileSpace;

/// Rows `first..first + out.len()` of `matrix` times one token.
pub(crate) struct Rows<'a> {
    pub matrix: &'a Matrix<'a>,
    pub x: &'a Prepared,
    pub first: usize,
    pub out: &'a mut [f32],
    pub scratch: &'a mut Scratch,
}

/// Work space of a thread, kept from call to call.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// Codes, one per byte.
    pub codes: Aligned<u8>,
    /// Values or scales.
    pub values: Aligned<f32>,
    /// Sixteen rows each, taken apart.
    pub tiles: [TileSpace; 2],
    /// Rows that end within vectors, with zeros after them.
    completed: Aligned<u8>,
}

/// Rows whose sums over lanes are added up together.
const BLOCK: usize = 16;

/// Up to [`BLOCK`] rows of codes, one after another: rows `first..` of the matrix.
#[derive(Clone, Copy)]
struct Run<'a> {
    matrix: &'a Matrix<'a>,
    x: &'a Prepared,
    first: usize,
    codes: &'a [u8],
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { matrix, x, first, out, scratch } = self;
        let columns = matrix.columns;
        if let Codes::Float(floats) = matrix.codes {
            for (at, out) in out.iter_mut().enumerate() {
                float_row(simd, floats, (first + at) * columns, columns, &mut scratch.values);
                *out = float_dot(simd, &scratch.values, &x.values);
            }
            return;
        }
        let Scratch { codes: unpacked, values, completed, .. } = scratch;
        for (block, out) in out.chunks_mut(BLOCK).enumerate() {
            let first = first + BLOCK * block;
            let scales = Scales::read(simd, matrix, x.form.group, first, out.len(), values);
            match matrix.codes {
                Codes::Nibbles(codes) => {
                    let codes = &codes[first * columns / 2..];
                    by_group::<S, Nibbles>(simd, Run { matrix, x, first, codes }, scales, completed, out);
                }
                Codes::Bytes(codes) => {
                    let codes = &codes[first * columns..];
                    by_group::<S, Bytes>(simd, Run { matrix, x, first, codes }, scales, completed, out);
                }
                Codes::Signed(codes) => {
                    let codes = &codes[first * columns..];
                    by_group::<S, Signed>(simd, Run { matrix, x, first, codes }, scales, completed, out);
                }
                Codes::Rounded(codes) => {
                    let codes = &codes[first * columns..];
                    exactly::<S, Rounded>(simd, Run { matrix, x, first, codes }, scales, completed, out);
                }
                Codes::Stream { bits, bytes } => {
                    unpacked.resize(BLOCK * columns);
                    let unpacked = &mut unpacked[..out.len() * columns];
                    let row_bytes = columns * bits / 8;
                    unpack(simd, bits, &bytes[first * row_bytes..][..out.len() * row_bytes], unpacked);
                    by_group::<S, Bytes>(
                        simd,
                        Run { matrix, x, first, codes: unpacked },
                        scales,
                        completed,
                        out,
                    );
                }
                Codes::Float(_) => {}
            }
        }
    }
}

/// Scales and biases of some rows [rows, groups] in f32, readable by vectors from any group on.
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
        values.resize(2 * BLOCK * (groups + 2));
        let (scales, biases) = values.split_at_mut(length);
        let biases = &mut biases[..length];
        match matrix.scaling {
            Scaling::Affine { scales: s, biases: b, .. } => {
                read_floats(simd, s, first * groups, rows * groups, scales);
                read_floats(simd, b, first * groups, rows * groups, biases);
            }
            Scaling::Blocks { scales: s, .. } => {
                read_floats(simd, s, first * groups, rows * groups, scales);
            }
            Scaling::Rows { scales: s } => {
                for (row, scales) in scales.chunks_exact_mut(groups).take(rows).enumerate() {
                    scales.fill(s.get(first + row));
                }
            }
            Scaling::None => {}
        }
        Self { scales, biases }
    }
}

/// `count` values from `from` on, then zeros up to the next vector.
#[inline(always)]
fn read_floats<S: Simd>(simd: S, floats: Floats<'_>, from: usize, count: usize, values: &mut [f32]) {
    let vectors = values[..count.next_multiple_of(16)].as_chunks_mut::<16>().0;
    floats.read_vectors(simd, from, count, vectors);
}

/// The `columns` values from `from` on, zero-padded to vectors.
#[inline(always)]
pub(crate) fn float_row<S: Simd>(
    simd: S,
    floats: Floats<'_>,
    from: usize,
    columns: usize,
    values: &mut Aligned<f32>,
) {
    values.resize(columns.next_multiple_of(16));
    read_floats(simd, floats, from, columns, values);
}

/// The product of a row, padded to vectors, with its columns of activations: four sums of vectors in turn.
#[inline(always)]
pub(crate) fn float_dot<S: Simd>(simd: S, row: &[f32], x: &[f32]) -> f32 {
    let mut sums = [simd.splat(0.0); 4];
    let (vectors, rest) = x.as_chunks::<16>();
    let rows = row.as_chunks::<16>().0;
    for (x, row) in vectors.chunks(4).zip(rows.chunks(4)) {
        for ((sum, x), row) in sums.iter_mut().zip(x).zip(row) {
            *sum = simd.fma(simd.load(x), simd.load(row), *sum);
        }
    }
    if !rest.is_empty() {
        let mut last = [0.0; 16];
        last[..rest.len()].copy_from_slice(rest);
        sums[0] = simd.fma(simd.load(&last), simd.load(&rows[vectors.len()]), sums[0]);
    }
    simd.sum(simd.add(simd.add(sums[0], sums[1]), simd.add(sums[2], sums[3])))
}

#[inline(always)]
fn by_group<S: Simd, F: WholeFormat>(
    simd: S,
    run: Run<'_>,
    scales: Scales<'_>,
    completed: &mut Aligned<u8>,
    out: &mut [f32],
) {
    let form = run.x.form;
    // Quads of lanes to a group, if one vector holds it.
    match (form.mode, form.group / (16 * F::PER_BYTE)) {
        (Mode::Fast, 1) => rows::<S, F, Integers, 1, 1>(simd, run, scales, completed, out),
        (Mode::Fast, 2) => rows::<S, F, Integers, 2, 1>(simd, run, scales, completed, out),
        (Mode::Fast, 4) => rows::<S, F, Integers, 4, 1>(simd, run, scales, completed, out),
        (Mode::Fast, _) => rows::<S, F, Integers, 4, 2>(simd, run, scales, completed, out),
        (Mode::Exact, _) => exactly::<S, F>(simd, run, scales, completed, out),
    }
}

#[inline(always)]
fn exactly<S: Simd, F: Format>(
    simd: S,
    run: Run<'_>,
    scales: Scales<'_>,
    completed: &mut Aligned<u8>,
    out: &mut [f32],
) {
    match run.x.form.group / (16 * F::PER_BYTE) {
        1 => rows::<S, F, Reals, 1, 1>(simd, run, scales, completed, out),
        2 => rows::<S, F, Reals, 2, 1>(simd, run, scales, completed, out),
        4 => rows::<S, F, Reals, 4, 1>(simd, run, scales, completed, out),
        _ => rows::<S, F, Reals, 4, 2>(simd, run, scales, completed, out),
    }
}

/// Activations as rows read them.
#[derive(Clone, Copy)]
struct Activations<'a> {
    codes: &'a [[i8; 64]],
    values: &'a [[f32; 16]],
    sums: &'a [[f32; 16]],
    scales: &'a [[f32; 16]],
}

impl<'a> Activations<'a> {
    #[inline(always)]
    fn of(x: &'a Prepared) -> Self {
        let (values, sums, scales) = (x.values.as_chunks().0, x.sums.as_chunks().0, x.scales.as_chunks().0);
        Self { codes: &x.codes, values, sums, scales }
    }
}

/// Sums over lanes, in integers or floats.
trait Sums<F: Format> {
    /// They are integers, which the scales of activations make floats of.
    const WHOLE: bool;

    /// The sums of sixteen groups, those of `chunk`: QUADS quads of lanes and PARTS vectors each, from the first of
    /// `codes` on. If not FULL, `codes` may end after any four vectors' parts, and groups without codes get zero.
    /// `scales` are those of these groups.
    fn groups<S: Simd, const QUADS: usize, const PARTS: usize, const FULL: bool>(
        simd: S,
        codes: &[[u8; 64]],
        scales: &[f32],
        x: Activations<'_>,
        chunk: usize,
    ) -> S::F;
}

struct Integers;
struct Reals;

/// Sums over four of the vectors of sixteen groups, PARTS each.
macro_rules! four_sums {
    ($simd:ident, $F:ident, $codes:ident, $x:ident, $per:expr, $zero:ident, $dot:ident,
        $quad:literal $(, $scales:ident)?) => {{
        let mut four = [$zero; 4];
        for i in 0..4 {
            for part in 0..PARTS {
                let at = (4 * $quad + i) * PARTS + part;
                let x = &$x[at * $per..][..$per];
                four[i] = $F::$dot($simd, four[i], &$codes[at], x $(, factor::<S, QUADS, PARTS>($simd, $scales, at))?);
            }
        }
        four
    }};
}

impl<F: WholeFormat> Sums<F> for Integers {
    const WHOLE: bool = true;

    #[inline(always)]
    fn groups<S: Simd, const QUADS: usize, const PARTS: usize, const FULL: bool>(
        simd: S,
        codes: &[[u8; 64]],
        _scales: &[f32],
        x: Activations<'_>,
        chunk: usize,
    ) -> S::F {
        let codes = if FULL { &codes[..4 * QUADS * PARTS] } else { codes };
        let own = &x.codes[chunk * 4 * QUADS * PARTS * F::CODES..][..codes.len() * F::CODES];
        let (zero, none) = (simd.int_splat(0), F::none(simd));
        macro_rules! quad {
            ($quad:literal) => {
                if FULL || codes.len() > 4 * $quad * PARTS {
                    F::quad_sums(simd, four_sums!(simd, F, codes, own, F::CODES, none, dot, $quad))
                } else {
                    zero
                }
            };
        }
        let dots = match QUADS {
            1 => simd.int_transpose_quads(quad!(0)),
            2 => simd.int_zip_quads(simd.int_pair_quads(quad!(0), quad!(1))),
            _ => {
                let low = simd.int_pair_quads(quad!(0), quad!(1));
                simd.int_pair_quads(low, simd.int_pair_quads(quad!(2), quad!(3)))
            }
        };
        if F::SMALL || S::OFFSET == 0 {
            return simd.float(dots);
        }
        let offset = simd.mul(simd.splat(S::OFFSET as f32), simd.load(&x.sums[chunk]));
        simd.float(simd.int_add(dots, simd.round(offset)))
    }
}

impl<F: Format> Sums<F> for Reals {
    const WHOLE: bool = false;

    #[inline(always)]
    fn groups<S: Simd, const QUADS: usize, const PARTS: usize, const FULL: bool>(
        simd: S,
        codes: &[[u8; 64]],
        scales: &[f32],
        x: Activations<'_>,
        chunk: usize,
    ) -> S::F {
        let codes = if FULL { &codes[..4 * QUADS * PARTS] } else { codes };
        let own = &x.values[chunk * 4 * QUADS * PARTS * F::FLOATS..][..codes.len() * F::FLOATS];
        let zero = simd.splat(0.0);
        macro_rules! quad {
            ($quad:literal) => {
                if FULL || codes.len() > 4 * $quad * PARTS {
                    simd.quad_sums(four_sums!(simd, F, codes, own, F::FLOATS, zero, float_dot, $quad, scales))
                } else {
                    zero
                }
            };
        }
        match QUADS {
            1 => simd.transpose_quads(quad!(0)),
            2 => simd.zip_quads(simd.pair_quads(quad!(0), quad!(1))),
            _ => {
                let low = simd.pair_quads(quad!(0), quad!(1));
                simd.pair_quads(low, simd.pair_quads(quad!(2), quad!(3)))
            }
        }
    }
}

/// How far ahead of the products codes are asked for, in bytes, since the hardware's own prefetch stops at every page:
/// from memory, and from the second-level cache into the first.
const FAR: usize = 8192;
const NEAR: usize = 2048;

#[inline(always)]
fn rows<S: Simd, F: Format, K: Sums<F>, const QUADS: usize, const PARTS: usize>(
    simd: S,
    run: Run<'_>,
    scales: Scales<'_>,
    completed: &mut Aligned<u8>,
    out: &mut [f32],
) {
    let groups = run.matrix.columns.div_ceil(run.x.form.group);
    let vectors = 4 * QUADS * PARTS;
    let row_bytes = run.matrix.columns / F::PER_BYTE;
    let stride = row_bytes.next_multiple_of(64 * 4 * PARTS);
    let codes = if stride == row_bytes {
        run.codes
    } else {
        complete(&run.codes[..out.len() * row_bytes], row_bytes, stride, completed)
    };
    let (x, scaling) = (Activations::of(run.x), Grouping::of(run.matrix));
    let mut slots = [simd.splat(0.0); BLOCK];
    // The next block's.
    run.matrix.scaling.prefetch(simd, (run.first + BLOCK) * groups, BLOCK * groups);
    for (row, codes) in codes.chunks_exact(stride).enumerate().take(out.len()) {
        // Lane i gathers groups i, i + 16, i + 32, ... in turn.
        let mut sums = simd.splat(0.0);
        for (chunk, codes) in codes.chunks(64 * vectors).enumerate() {
            for line in 0..vectors {
                simd.prefetch(codes, FAR + 64 * line);
                // Whole bytes pass too quickly for it to help.
                if F::PER_BYTE > 1 {
                    simd.prefetch_near(codes, NEAR + 64 * line);
                }
            }
            let codes = codes.as_chunks().0;
            let at = row * groups + 16 * chunk;
            let own = &scales.scales[at..];
            let dots = if codes.len() == vectors {
                K::groups::<S, QUADS, PARTS, true>(simd, codes, own, x, chunk)
            } else {
                K::groups::<S, QUADS, PARTS, false>(simd, codes, own, x, chunk)
            };
            let (x_sums, x_scales) = (simd.load(&x.sums[chunk]), simd.load(&x.scales[chunk]));
            let scale = lanes(simd, scales.scales, at);
            // The sums of groups that a row does not have are zero, whatever their scales.
            sums = match (scaling, K::WHOLE) {
                (Grouping::Affine, whole) => {
                    let value = simd.fma(scale, dots, simd.mul(lanes(simd, scales.biases, at), x_sums));
                    if whole { simd.fma(x_scales, value, sums) } else { simd.add(sums, value) }
                }
                (Grouping::Symmetric, true) => {
                    // 128 was added to each code; the sums are whole numbers.
                    let dots = simd.sub(dots, simd.mul(simd.splat(128.0), x_sums));
                    simd.fma(x_scales, simd.mul(scale, dots), sums)
                }
                (Grouping::Symmetric, false) => simd.fma(scale, dots, sums),
                (Grouping::Scaled, _) => simd.add(dots, sums),
            };
        }
        slots[row] = sums;
    }
    // As `Simd::sum` of each row.
    let mut quads = [simd.splat(0.0); 4];
    for (quad, slots) in quads.iter_mut().zip(slots.as_chunks::<4>().0) {
        *quad = simd.quad_sums(*slots);
    }
    let sums = simd.pair_quads(simd.pair_quads(quads[0], quads[1]), simd.pair_quads(quads[2], quads[3]));
    let mut values = [0.0; BLOCK];
    simd.store(sums, &mut values);
    out.copy_from_slice(&values[..out.len()]);
}

/// `rows` of `row_bytes` each with zeros after them, up to `stride`.
fn complete<'a>(rows: &[u8], row_bytes: usize, stride: usize, completed: &'a mut Aligned<u8>) -> &'a [u8] {
    completed.resize(rows.len() / row_bytes * stride);
    for (row, completed) in rows.chunks_exact(row_bytes).zip(completed.chunks_exact_mut(stride)) {
        let (head, rest) = completed.split_at_mut(row_bytes);
        head.copy_from_slice(row);
        rest.fill(0);
    }
    completed
}

/// What makes weights of a group's codes.
#[derive(Clone, Copy)]
enum Grouping {
    /// A scale and a bias.
    Affine,
    /// A scale.
    Symmetric,
    /// A scale that the codes' products have already met.
    Scaled,
}

impl Grouping {
    fn of(matrix: &Matrix<'_>) -> Self {
        match (matrix.scaling, matrix.codes) {
            (Scaling::Affine { .. }, _) => Self::Affine,
            (_, Codes::Rounded(_)) => Self::Scaled,
            _ => Self::Symmetric,
        }
    }
}

/// The scales of the groups that lanes of vector `at` belong to.
#[inline(always)]
fn factor<S: Simd, const QUADS: usize, const PARTS: usize>(simd: S, scales: &[f32], at: usize) -> S::F {
    if QUADS == 4 {
        return simd.splat(scales[at / PARTS]);
    }
    let groups = &scales[at * (4 / QUADS)..];
    let mut lanes = [0.0; 16];
    for (lanes, &scale) in lanes.chunks_exact_mut(4 * QUADS).zip(groups) {
        lanes.fill(scale);
    }
    simd.load(&lanes)
}

/// The vector that starts at `from` in a table padded to vectors.
// Closures are no place for vectors: one that is not inlined is compiled without the instruction set.
#[inline(always)]
fn lanes<S: Simd>(simd: S, values: &[f32], from: usize) -> S::F {
    simd.load(values[from..].first_chunk().expect("padded to vectors"))
}
