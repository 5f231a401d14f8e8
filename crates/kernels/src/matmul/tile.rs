//! Tiles: sixteen rows of codes, transposed so that a vector holds one word of each row.

use std::ops::Range;

use super::floats::Floats;
use super::layout::{ActivationLayout, Mode};
use super::matrix::{Codes, Matrix, Scaling};
use super::unpack::unpack;
use crate::aligned::Aligned;
use crate::simd::Simd;

/// Scratch buffers of a tile.
#[derive(Debug, Default)]
pub(crate) struct TileScratch {
    codes: Aligned<u8>,
    /// Exact mode: dequantized values; then scales and biases.
    values: Aligned<f32>,
}

/// Sixteen rows, transposed and unpacked. Rows beyond the matrix are zero.
pub(crate) struct Tile<'a> {
    pub layout: ActivationLayout,
    pub groups: usize,
    /// Fast mode: [columns / 4] vectors of four codes of each row, one per byte; for INT4 without AMX [columns / 8] vectors
    /// of eight codes of each row, two per byte.
    pub codes: &'a [[u8; 64]],
    /// Exact mode: [columns] vectors of one code of each row as f32, the columns of a group in
    /// [`ActivationLayout::exact_order`].
    pub values: &'a [[f32; 16]],
    /// [groups] vectors of one scale of each row.
    pub scales: &'a [[f32; 16]],
    /// [groups] vectors of one bias of each row; empty for symmetric codes.
    pub biases: &'a [[f32; 16]],
}

/// `$simd.$unpack::<$at>($words)` for a place in the word that is only known at run time.
macro_rules! code_at {
    ($simd:ident, $words:ident, $at:expr, $unpack:ident, $($j:literal)*) => {
        match $at {
            $($j => $simd.$unpack::<$j>($words),)*
            at => unreachable!("place of a code in its word: {at}"),
        }
    };
}

impl<'a> Tile<'a> {
    /// Transposes and unpacks `rows` of `matrix`, at most sixteen.
    #[inline(always)]
    pub fn unpack<S: Simd>(
        simd: S,
        matrix: &Matrix<'_>,
        layout: ActivationLayout,
        rows: Range<usize>,
        for_amx: bool,
        unpacked: &mut Aligned<u8>,
        scratch: &'a mut TileScratch,
    ) -> Self {
        let (first, count) = (rows.start, rows.len());
        let groups = matrix.columns.div_ceil(layout.group);
        let padded = groups * layout.group;
        let affine = matches!(matrix.scaling, Scaling::Affine { .. });
        let word_columns = if layout.int4 && !for_amx { 8 } else { 4 };
        scratch.codes.resize(64 * padded / word_columns);
        let value_count = if layout.mode == Mode::Exact { 16 * padded } else { 0 };
        let scale_count = 16 * groups;
        scratch.values.resize(value_count + 2 * scale_count);
        let (values, floats) = scratch.values.split_at_mut(value_count);
        let (scales, biases) = floats.split_at_mut(scale_count);

        let codes = scratch.codes.as_chunks_mut::<64>().0;
        let columns = matrix.columns;
        match matrix.codes {
            Codes::U4(bytes) => {
                let rows = RowBytes { bytes, stride: columns / 2, first, count };
                transpose_and_unpack(simd, rows, if for_amx { Packing::Int4 } else { Packing::Int8 }, codes);
            }
            Codes::U8(bytes) => {
                transpose_and_unpack(
                    simd,
                    RowBytes { bytes, stride: columns, first, count },
                    Packing::Int8,
                    codes,
                );
            }
            Codes::I8(bytes) | Codes::I8RoundedToF16(bytes) => {
                let packing =
                    if layout.mode == Mode::Fast { Packing::Int8SignFlipped } else { Packing::Int8 };
                transpose_and_unpack(simd, RowBytes { bytes, stride: columns, first, count }, packing, codes);
            }
            Codes::BitPacked { bits, bytes } => {
                let bytes = &bytes[first * columns * bits / 8..][..count * columns * bits / 8];
                unpacked.resize(count * columns);
                unpack(simd, bits, bytes, unpacked);
                transpose_and_unpack(
                    simd,
                    RowBytes { bytes: unpacked, stride: columns, first: 0, count },
                    Packing::Int8,
                    codes,
                );
            }
            Codes::Float(_) => {}
        }
        let (scales, biases) = (scales.as_chunks_mut::<16>().0, biases.as_chunks_mut::<16>().0);
        match matrix.scaling {
            Scaling::Affine { scales: s, biases: b, .. } => {
                transpose_floats(simd, s, first, count, groups, scales);
                transpose_floats(simd, b, first, count, groups, biases);
            }
            Scaling::Blockwise { scales: s, .. } => transpose_floats(simd, s, first, count, groups, scales),
            Scaling::PerRow { scales: s } => {
                let mut lanes = [0.0; 16];
                s.read(first, &mut lanes[..count]);
                scales.fill(lanes);
            }
            Scaling::None => {}
        }
        let values = values.as_chunks_mut::<16>().0;
        if layout.mode == Mode::Exact {
            let signed = matches!(matrix.codes, Codes::I8(_) | Codes::I8RoundedToF16(_));
            let rounded = matches!(matrix.codes, Codes::I8RoundedToF16(_));
            let order = layout.exact_order();
            let codes = codes.chunks_exact(layout.group / word_columns);
            let groups = values.chunks_exact_mut(layout.group).zip(codes);
            for ((values, codes), scale) in groups.zip(&mut *scales) {
                let factor = simd.load(scale);
                for (to, &place) in values.iter_mut().zip(&order) {
                    let words = simd.as_words(simd.load_bytes(&codes[place / word_columns]));
                    let value = match (layout.int4, signed) {
                        (true, _) => code_at!(simd, words, place % 8, nibble_to_f32, 0 1 2 3 4 5 6 7),
                        (_, false) => code_at!(simd, words, place % 4, byte_to_f32, 0 1 2 3),
                        (_, true) => code_at!(simd, words, place % 4, signed_byte_to_f32, 0 1 2 3),
                    };
                    let value = if rounded { simd.round_to_f16(simd.mul(value, factor)) } else { value };
                    simd.store(value, to);
                }
                if rounded {
                    *scale = [1.0; 16];
                }
            }
        }
        Self { layout, groups, codes, values, scales, biases: if affine { biases } else { &[] } }
    }
}

/// `sum` + scaled integer products `dot` of one group of sixteen rows with a token. `x` are the scale and the sum of the
/// group's activation codes. Codes without bias are symmetric and had 128 added by the sign flip.
#[inline(always)]
pub(crate) fn add_scaled<S: Simd>(
    simd: S,
    dot: S::I32,
    scale: S::F32,
    bias: Option<&[f32; 16]>,
    (x_scale, x_sum): (f32, f32),
    sum: S::F32,
) -> S::F32 {
    let (dot, x_sum) = (simd.to_f32(dot), simd.splat(x_sum));
    let value = match bias {
        Some(bias) => simd.fma(scale, dot, simd.mul(simd.load(bias), x_sum)),
        None => simd.mul(scale, simd.sub(dot, simd.mul(simd.splat(128.0), x_sum))),
    };
    simd.fma(simd.splat(x_scale), value, sum)
}

/// Transposes rows `first..first + count` of `floats` [rows, groups] to vectors of one element of each row, zero-padded to
/// sixteen rows.
#[inline(always)]
fn transpose_floats<S: Simd>(
    simd: S,
    floats: Floats<'_>,
    first: usize,
    count: usize,
    groups: usize,
    out: &mut [[f32; 16]],
) {
    for (chunk, out) in out.chunks_mut(16).enumerate() {
        let mut vectors = [simd.int_splat(0); 16];
        for (row, vector) in vectors.iter_mut().enumerate().take(count) {
            let lanes = floats.lanes(simd, (first + row) * groups + 16 * chunk, out.len());
            *vector = simd.f32_to_bits(lanes);
        }
        simd.int_transpose(&mut vectors);
        for (out, vector) in out.iter_mut().zip(vectors) {
            simd.store(simd.f32_from_bits(vector), out);
        }
    }
}

/// Up to sixteen rows of codes.
#[derive(Clone, Copy)]
struct RowBytes<'a> {
    bytes: &'a [u8],
    /// Bytes per row.
    stride: usize,
    first: usize,
    count: usize,
}

/// Codes in the bytes of a row.
#[derive(Clone, Copy)]
enum Packing {
    /// Two unsigned codes per byte.
    Int4,
    /// One unsigned code per byte.
    Int8,
    /// One signed code per byte; 128 is added on unpacking.
    Int8SignFlipped,
}

/// Transposes sixteen rows to vectors of one 32-bit word of each row and unpacks INT4 codes to bytes. Rows and bytes beyond
/// the matrix become zeros.
#[inline(always)]
fn transpose_and_unpack<S: Simd>(simd: S, rows: RowBytes<'_>, packing: Packing, tile: &mut [[u8; 64]]) {
    let per_word = if matches!(packing, Packing::Int4) { 2 } else { 1 };
    // The rows of the next tiles, which arrive while this one is multiplied.
    let next = 16 * S::TILES_PER_PASS * rows.stride;
    for (block, tile) in tile.chunks_mut(16 * per_word).enumerate() {
        let mut vectors = [simd.int_splat(0); 16];
        for (row, vector) in vectors.iter_mut().enumerate().take(rows.count) {
            let row = &rows.bytes[(rows.first + row) * rows.stride..][..rows.stride];
            let bytes = row.get(64 * block..).unwrap_or_default();
            simd.prefetch_l2(bytes, next);
            *vector = match bytes.first_chunk() {
                Some(bytes) => simd.as_words(simd.load_bytes(bytes)),
                None => {
                    let mut last = [0; 64];
                    last[..bytes.len()].copy_from_slice(bytes);
                    simd.as_words(simd.load_bytes(&last))
                }
            };
        }
        simd.int_transpose(&mut vectors);
        match packing {
            Packing::Int4 => {
                for (pair, vector) in tile.as_chunks_mut::<2>().0.iter_mut().zip(vectors) {
                    let bytes = simd.as_bytes(vector);
                    simd.store_bytes(simd.low_nibbles(bytes), &mut pair[0]);
                    simd.store_bytes(simd.high_nibbles(bytes), &mut pair[1]);
                }
            }
            Packing::Int8 => {
                for (tile, vector) in tile.iter_mut().zip(vectors) {
                    simd.store_bytes(simd.as_bytes(vector), tile);
                }
            }
            Packing::Int8SignFlipped => {
                for (tile, vector) in tile.iter_mut().zip(vectors) {
                    simd.store_bytes(simd.flip_sign(simd.as_bytes(vector)), tile);
                }
            }
        }
    }
}
