//! Symmetric INT8 with absmax scales for Core ML's constexpr operators: `w = scale * q`, q from -127 to 127, one scale per
//! row (channel) or per block of a row.

use crate::FloatType;

/// Largest magnitude of a code; -128 is not used.
pub const LARGEST: i8 = 127;

/// Quantizes rows of `row_len` elements; `bytes` are little-endian elements of type `float`. Each `block` consecutive
/// elements of a row (`row_len` for one scale per row) share a scale, which is rounded to its storage type `scale_type`
/// before the codes are computed.
///
/// Writes codes `q` [rows, row_len] and `scales` [rows, row_len / block].
///
/// ```
/// use q35_quant::{FloatType, symmetric};
/// let mut bytes = Vec::new();
/// FloatType::F32.narrow(&[1.0, -2.0, 0.5, 0.0], &mut bytes);
/// let (mut q, mut scales) = ([0; 4], [0.0; 2]);
/// symmetric::quantize_rows(FloatType::F32, &bytes, 4, 2, FloatType::F32, &mut q, &mut scales);
/// assert_eq!(q, [64, -127, 127, 0]);
/// assert_eq!(scales, [2.0 / 127.0, 0.5 / 127.0]);
/// ```
///
/// # Panics
/// If the lengths are inconsistent or `block` does not divide `row_len`.
pub fn quantize_rows(
    float: FloatType,
    bytes: &[u8],
    row_len: usize,
    block: usize,
    scale_type: FloatType,
    q: &mut [i8],
    scales: &mut [f32],
) {
    assert!(row_len.is_multiple_of(block), "blocks of {block} in rows of {row_len}");
    assert_eq!(bytes.len(), q.len() * float.size(), "bytes for {} elements of {float:?}", q.len());
    assert_eq!(scales.len() * block, q.len(), "scales for {} elements in blocks of {block}", q.len());
    let mut row = vec![0.0; row_len];
    let row_bytes = bytes.chunks_exact(row_len * float.size());
    let rows = q.chunks_exact_mut(row_len).zip(scales.chunks_exact_mut(row_len / block));
    for (bytes, (q, scales)) in row_bytes.zip(rows) {
        float.widen(bytes, &mut row);
        for ((values, q), scale) in row.chunks_exact(block).zip(q.chunks_exact_mut(block)).zip(scales) {
            *scale = scale_of(values, scale_type);
            quantize_block(values, *scale, q);
        }
    }
}

fn scale_of(values: &[f32], scale_type: FloatType) -> f32 {
    // Independent lanes, so that the compiler vectorises the maximum.
    let mut lanes = [0.0f32; 16];
    let (whole, rest) = values.as_chunks::<16>();
    for chunk in whole {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            let magnitude = value.abs();
            *lane = if magnitude > *lane { magnitude } else { *lane };
        }
    }
    let largest = lanes.iter().chain(rest).fold(0.0f32, |largest, value| largest.max(value.abs()));
    let scale = scale_type.round(largest / f32::from(LARGEST));
    // A block whose scale underflows in the storage type is all zeros; any finite positive scale represents it.
    if scale < f32::MIN_POSITIVE { 1.0 } else { scale }
}

fn quantize_block(values: &[f32], scale: f32, q: &mut [i8]) {
    /// Adding and subtracting 1.5 * 2^23 rounds to the nearest integer, ties to even, and vectorises.
    const ROUNDER: f32 = 12_582_912.0;
    let (inverse, limit) = (1.0 / scale, f32::from(LARGEST));
    for (value, q) in values.iter().zip(q) {
        let rounded = (value * inverse + ROUNDER) - ROUNDER;
        *q = rounded.clamp(-limit, limit) as i8;
    }
}

/// Dequantizes codes `q` with one scale per `block` elements.
///
/// # Panics
/// If the lengths are inconsistent.
pub fn dequantize(q: &[i8], scales: &[f32], block: usize, out: &mut [f32]) {
    assert_eq!(q.len(), out.len(), "one output per code");
    assert_eq!(scales.len() * block, q.len(), "scales for {} elements in blocks of {block}", q.len());
    for ((q, scale), out) in q.chunks_exact(block).zip(scales).zip(out.chunks_exact_mut(block)) {
        for (q, out) in q.iter().zip(out) {
            *out = scale * f32::from(*q);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(values: &[f32], row_len: usize, block: usize, scale_type: FloatType) -> (Vec<i8>, Vec<f32>) {
        let mut bytes = Vec::new();
        FloatType::F32.narrow(values, &mut bytes);
        let mut q = vec![0; values.len()];
        let mut scales = vec![0.0; values.len() / block];
        quantize_rows(FloatType::F32, &bytes, row_len, block, scale_type, &mut q, &mut scales);
        (q, scales)
    }

    #[test]
    fn ties_go_to_even_and_the_largest_to_127() {
        let (q, scales) = run(&[127.0, 0.5, 1.5, -2.5, -127.0, 126.4], 6, 6, FloatType::F32);
        assert_eq!((q, scales), (vec![127, 0, 2, -2, -127, 126], vec![1.0]));
    }

    #[test]
    fn every_block_has_its_scale() {
        let values: Vec<f32> = (0..64).map(|i| if i < 32 { 1.0 } else { 1000.0 }).collect();
        let (q, scales) = run(&values, 64, 32, FloatType::F32);
        assert!(q.iter().all(|&q| q == 127));
        assert_eq!(scales, [1.0 / 127.0, 1000.0 / 127.0]);
    }

    #[test]
    fn rounded_scales_are_what_the_numbers_were_divided_by() {
        let values: Vec<f32> = (0..256).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.003).collect();
        let (q, scales) = run(&values, 64, 64, FloatType::F16);
        let mut back = vec![0.0; 256];
        dequantize(&q, &scales, 64, &mut back);
        for (row, scale) in scales.iter().enumerate() {
            assert_eq!(*scale, FloatType::F16.round(*scale));
            for i in row * 64..(row + 1) * 64 {
                // Half a step, and what the rounding of the scale may cut off at the ends.
                assert!((values[i] - back[i]).abs() <= scale * 0.57, "{} {}", values[i], back[i]);
            }
        }
    }

    #[test]
    fn zeros_and_vanishing_rows_stay_zero() {
        let (q, scales) = run(&[0.0, -0.0, 1e-9, -1e-9], 2, 2, FloatType::F16);
        assert_eq!((q, scales), (vec![0; 4], vec![1.0, 1.0]));
    }
}
