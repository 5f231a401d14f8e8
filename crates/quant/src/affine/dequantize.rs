//! Dequantization.

use std::ops::Range;

use super::pack::{for_bits, unpack};
use super::{AffineSpec, PackedView};
use crate::FloatType;

/// Computes the weights `scale * q + bias` of `rows` in f32 without further rounding, the values that MLX's quantized
/// matrix products use. `out` is [rows, cols], row-major.
///
/// # Panics
/// If `rows` is out of range or `out` has another length.
pub fn dequantize_rows(packed: &PackedView<'_>, rows: Range<usize>, out: &mut [f32]) {
    run(packed, rows, out, |scale, code, bias| scale * code + bias);
}

/// Computes the weights as `mx.dequantize` does: product and sum are each rounded to the type of the scales. See
/// [`dequantize_rows`].
///
/// # Panics
/// If `rows` is out of range or `out` has another length.
pub fn dequantize_rows_rounded(packed: &PackedView<'_>, rows: Range<usize>, out: &mut [f32]) {
    match packed.float {
        FloatType::F32 => dequantize_rows(packed, rows, out),
        float => run(packed, rows, out, |scale, code, bias| float.round(float.round(scale * code) + bias)),
    }
}

#[inline(always)]
fn run(
    packed: &PackedView<'_>,
    rows: Range<usize>,
    out: &mut [f32],
    weight: impl Fn(f32, f32, f32) -> f32 + Copy,
) {
    assert!(rows.start <= rows.end && rows.end <= packed.rows, "rows {rows:?} of {}", packed.rows);
    assert_eq!(out.len(), rows.len() * packed.cols, "room for {rows:?} of {} columns", packed.cols);
    let (word_bytes, group_bytes) = packed.row_bytes();
    for (row, out) in rows.zip(out.chunks_exact_mut(packed.cols)) {
        let words = &packed.words[row * word_bytes..][..word_bytes];
        let scales = &packed.scales[row * group_bytes..][..group_bytes];
        let biases = &packed.biases[row * group_bytes..][..group_bytes];
        one_row(packed.spec, packed.float, words, scales, biases, out, weight);
    }
}

#[inline(always)]
fn one_row(
    spec: AffineSpec,
    float: FloatType,
    words: &[u8],
    scales: &[u8],
    biases: &[u8],
    out: &mut [f32],
    weight: impl Fn(f32, f32, f32) -> f32,
) {
    const LARGEST_GROUP: usize = 128;
    let (size, group) = (float.size(), spec.group_size());
    let groups = scales.chunks_exact(size).zip(biases.chunks_exact(size));
    let packed = words.chunks_exact(group / 8 * spec.bits() as usize);
    for (((scale, bias), packed), out) in groups.zip(packed).zip(out.chunks_exact_mut(group)) {
        let mut codes = [0u8; LARGEST_GROUP];
        for_bits!(spec.bits(), unpack, (packed, &mut codes[..group]));
        let mut parameters = [[0.0]; 2];
        float.widen(scale, &mut parameters[0]);
        float.widen(bias, &mut parameters[1]);
        let [[scale], [bias]] = parameters;
        for (out, code) in out.iter_mut().zip(&codes) {
            *out = weight(scale, f32::from(*code), bias);
        }
    }
}
