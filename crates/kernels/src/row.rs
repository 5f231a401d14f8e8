//! One token times rows: the decode step, bound by how fast memory gives the codes.
//!
//! A vector of 64 bytes of codes meets its activations, giving sixteen lane sums; neighbouring lanes belong to one
//! group. The lane sums of up to sixteen such vectors are added up into one vector whose lanes are sixteen groups
//! (3 operations for each vector, no reduction per group), and only then become floats and are scaled. The lane sums
//! of sixteen rows, in turn, are added up together. Here that is so for nibbles; [`crate::byte_row`] has whole bytes.

use crate::aligned::Aligned;
use crate::byte_row;
use crate::format::{Format, Nibbles, WholeFormat};
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
    rows: RowSpace,
}

#[derive(Debug, Default)]
pub(crate) struct RowSpace {
    /// Rows that end within vectors, with zeros after them.
    pub completed: Aligned<u8>,
    /// A row's sums over quads of lanes [quads, 16], as bits.
    pub quads: Aligned<i32>,
}

/// Rows whose sums over lanes are added up together.
pub(crate) const BLOCK: usize = 16;

/// Up to [`BLOCK`] rows of codes, one after another: rows `first..` of the matrix.
#[derive(Clone, Copy)]
pub(crate) struct Run<'a> {
    pub matrix: &'a Matrix<'a>,
    pub x: &'a Prepared,
    pub first: usize,
    pub codes: &'a [u8],
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
        let Scratch { codes: unpacked, values, rows: space, .. } = scratch;
        for (block, out) in out.chunks_mut(BLOCK).enumerate() {
            let first = first + BLOCK * block;
            match matrix.codes {
                Codes::Nibbles(codes) => {
                    let codes = &codes[first * columns / 2..];
                    let scales = Scales::read(simd, matrix, x.form.group, first, out.len(), values);
                    nibbles(simd, Run { matrix, x, first, codes }, scales, &mut space.completed, out);
                }
                Codes::Bytes(codes) => {
                    let codes = &codes[first * columns..];
                    byte_row::bytes(simd, Run { matrix, x, first, codes }, space, out);
                }
                Codes::Signed(codes) => {
                    let codes = &codes[first * columns..];
                    byte_row::signed(simd, Run { matrix, x, first, codes }, space, out);
                }
                Codes::Rounded(codes) => {
                    let codes = &codes[first * columns..];
                    byte_row::rounded(simd, Run { matrix, x, first, codes }, space, out);
                }
                Codes::Stream { bits, bytes } => {
                    unpacked.resize(BLOCK * columns);
                    let unpacked = &mut unpacked[..out.len() * columns];
                    let row_bytes = columns * bits / 8;
                    unpack(simd, bits, &bytes[first * row_bytes..][..out.len() * row_bytes], unpacked);
                    byte_row::bytes(simd, Run { matrix, x, first, codes: unpacked }, space, out);
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
        if let Scaling::Affine { scales: s, biases: b, .. } = matrix.scaling {
            read_floats(simd, s, first * groups, rows * groups, scales);
            read_floats(simd, b, first * groups, rows * groups, biases);
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
fn nibbles<S: Simd>(simd: S, run: Run<'_>, scales: Scales<'_>, completed: &mut Aligned<u8>, out: &mut [f32]) {
    let form = run.x.form;
    // Quads of lanes to a group.
    match (form.mode, form.group / 32) {
        (Mode::Fast, 1) => rows::<S, Integers, 1>(simd, run, scales, completed, out),
        (Mode::Fast, 2) => rows::<S, Integers, 2>(simd, run, scales, completed, out),
        (Mode::Fast, _) => rows::<S, Integers, 4>(simd, run, scales, completed, out),
        (Mode::Exact, 1) => rows::<S, Reals, 1>(simd, run, scales, completed, out),
        (Mode::Exact, 2) => rows::<S, Reals, 2>(simd, run, scales, completed, out),
        (Mode::Exact, _) => rows::<S, Reals, 4>(simd, run, scales, completed, out),
    }
}

/// Activations as rows read them.
#[derive(Clone, Copy)]
pub(crate) struct Activations<'a> {
    pub codes: &'a [[i8; 64]],
    pub values: &'a [[f32; 16]],
    pub sums: &'a [[f32; 16]],
    pub scales: &'a [[f32; 16]],
}

impl<'a> Activations<'a> {
    #[inline(always)]
    pub fn of(x: &'a Prepared) -> Self {
        let (values, sums, scales) = (x.values.as_chunks().0, x.sums.as_chunks().0, x.scales.as_chunks().0);
        Self { codes: &x.codes, values, sums, scales }
    }
}

/// Sums over lanes, in integers or floats.
trait Sums {
    /// They are integers, which the scales of activations make floats of.
    const WHOLE: bool;

    /// The sums of sixteen groups, those of `chunk`: QUADS quads of lanes each, from the first of `codes` on. If not FULL,
    /// `codes` may end after any four vectors, and groups without codes get zero.
    fn groups<S: Simd, const QUADS: usize, const FULL: bool>(
        simd: S,
        codes: &[[u8; 64]],
        x: Activations<'_>,
        chunk: usize,
    ) -> S::F;
}

struct Integers;
struct Reals;

/// Sums over four of the vectors of sixteen groups.
macro_rules! four_sums {
    ($simd:ident, $codes:ident, $x:ident, $per:expr, $zero:ident, $dot:ident, $quad:literal $(, $factor:ident)?) => {{
        let mut four = [$zero; 4];
        for i in 0..4 {
            let at = 4 * $quad + i;
            four[i] = Nibbles::$dot($simd, four[i], &$codes[at], &$x[at * $per..][..$per] $(, $factor)?);
        }
        four
    }};
}

impl Sums for Integers {
    const WHOLE: bool = true;

    #[inline(always)]
    fn groups<S: Simd, const QUADS: usize, const FULL: bool>(
        simd: S,
        codes: &[[u8; 64]],
        x: Activations<'_>,
        chunk: usize,
    ) -> S::F {
        let codes = if FULL { &codes[..4 * QUADS] } else { codes };
        let own = &x.codes[chunk * 4 * QUADS * Nibbles::CODES..][..codes.len() * Nibbles::CODES];
        let (zero, none) = (simd.int_splat(0), Nibbles::none(simd));
        macro_rules! quad {
            ($quad:literal) => {
                if FULL || codes.len() > 4 * $quad {
                    Nibbles::quad_sums(simd, four_sums!(simd, codes, own, Nibbles::CODES, none, dot, $quad))
                } else {
                    zero
                }
            };
        }
        simd.float(match QUADS {
            1 => simd.int_transpose_quads(quad!(0)),
            2 => simd.int_zip_quads(simd.int_pair_quads(quad!(0), quad!(1))),
            _ => {
                let low = simd.int_pair_quads(quad!(0), quad!(1));
                simd.int_pair_quads(low, simd.int_pair_quads(quad!(2), quad!(3)))
            }
        })
    }
}

impl Sums for Reals {
    const WHOLE: bool = false;

    #[inline(always)]
    fn groups<S: Simd, const QUADS: usize, const FULL: bool>(
        simd: S,
        codes: &[[u8; 64]],
        x: Activations<'_>,
        chunk: usize,
    ) -> S::F {
        let codes = if FULL { &codes[..4 * QUADS] } else { codes };
        let own = &x.values[chunk * 4 * QUADS * Nibbles::FLOATS..][..codes.len() * Nibbles::FLOATS];
        let zero = simd.splat(0.0);
        macro_rules! quad {
            ($quad:literal) => {
                if FULL || codes.len() > 4 * $quad {
                    simd.quad_sums(four_sums!(
                        simd,
                        codes,
                        own,
                        Nibbles::FLOATS,
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
pub(crate) const FAR: usize = 8192;
const NEAR: usize = 2048;

#[inline(always)]
fn rows<S: Simd, K: Sums, const QUADS: usize>(
    simd: S,
    run: Run<'_>,
    scales: Scales<'_>,
    completed: &mut Aligned<u8>,
    out: &mut [f32],
) {
    let groups = run.matrix.columns.div_ceil(run.x.form.group);
    let vectors = 4 * QUADS;
    let row_bytes = run.matrix.columns / 2;
    let stride = row_bytes.next_multiple_of(64 * 4);
    let codes = if stride == row_bytes {
        run.codes
    } else {
        complete(&run.codes[..out.len() * row_bytes], row_bytes, stride, completed)
    };
    let x = Activations::of(run.x);
    let mut slots = [simd.splat(0.0); BLOCK];
    // The next block's.
    run.matrix.scaling.prefetch(simd, (run.first + BLOCK) * groups, BLOCK * groups);
    for (row, codes) in codes.chunks_exact(stride).enumerate().take(out.len()) {
        // Lane i gathers groups i, i + 16, i + 32, ... in turn.
        let mut sums = simd.splat(0.0);
        for (chunk, codes) in codes.chunks(64 * vectors).enumerate() {
            for line in 0..vectors {
                simd.prefetch(codes, FAR + 64 * line);
                simd.prefetch_near(codes, NEAR + 64 * line);
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
            // The sums of groups that a row does not have are zero, whatever their scales.
            let value = simd.fma(scale, dots, simd.mul(lanes(simd, scales.biases, at), x_sums));
            sums = if K::WHOLE { simd.fma(x_scales, value, sums) } else { simd.add(sums, value) };
        }
        slots[row] = sums;
    }
    sum_slots(simd, &slots, out);
}

/// Writes what each row's lanes sum up to, as `Simd::sum` does.
#[inline(always)]
pub(crate) fn sum_slots<S: Simd>(simd: S, slots: &[S::F; BLOCK], out: &mut [f32]) {
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
pub(crate) fn complete<'a>(
    rows: &[u8],
    row_bytes: usize,
    stride: usize,
    completed: &'a mut Aligned<u8>,
) -> &'a [u8] {
    completed.resize(rows.len() / row_bytes * stride);
    for (row, completed) in rows.chunks_exact(row_bytes).zip(completed.chunks_exact_mut(stride)) {
        let (head, rest) = completed.split_at_mut(row_bytes);
        head.copy_from_slice(row);
        rest.fill(0);
    }
    completed
}

/// The vector that starts at `from` in a table padded to vectors.
// Closures are no place for vectors: one that is not inlined is compiled without the instruction set.
#[inline(always)]
fn lanes<S: Simd>(simd: S, values: &[f32], from: usize) -> S::F {
    simd.load(values[from..].first_chunk().expect("padded to vectors"))
}
