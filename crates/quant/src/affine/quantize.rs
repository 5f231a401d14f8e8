//! Round-to-nearest quantization.

use rayon::prelude::*;

use super::pack::{for_bits, pack};
use super::{AffineError, AffineSpec, PackedMatrix};
use crate::FloatType;

/// Weights per parallel task: enough to amortise its overhead.
const WEIGHTS_PER_TASK: usize = 1 << 16;

/// Quantizes a row-major matrix [rows, cols] by round to nearest. `source` holds its little-endian elements of type
/// `float`. Rows are distributed over rayon's threads; the result does not depend on their number.
///
/// # Errors
/// [`AffineError::Columns`] if rows do not divide into groups.
///
/// # Panics
/// If `source` does not consist of whole rows.
pub fn quantize_rows(
    spec: AffineSpec,
    float: FloatType,
    source: &[u8],
    cols: usize,
) -> Result<PackedMatrix, AffineError> {
    spec.check_columns(cols)?;
    assert!(source.len().is_multiple_of(cols * float.size()), "whole rows of {cols}");
    let mut packed = PackedMatrix::zeroed(spec, float, source.len() / (cols * float.size()), cols);
    let rows = WEIGHTS_PER_TASK.div_ceil(cols);
    let word_bytes = rows * spec.words_per_row(cols) * 4;
    let group_bytes = rows * spec.groups_per_row(cols) * float.size();
    packed
        .words
        .par_chunks_mut(word_bytes)
        .zip(packed.scales.par_chunks_mut(group_bytes))
        .zip(packed.biases.par_chunks_mut(group_bytes))
        .zip(source.par_chunks(rows * cols * float.size()))
        .for_each(|(((words, scales), biases), source)| {
            quantize_into(spec, float, source, words, scales, biases);
        });
    Ok(packed)
}

/// Quantizes f32 weights like [`quantize_rows`]; scales and biases are stored as `float`.
///
/// # Errors
/// [`AffineError::Columns`] if rows do not divide into groups.
///
/// # Panics
/// If `values` does not consist of whole rows.
pub fn quantize_values(
    spec: AffineSpec,
    float: FloatType,
    values: &[f32],
    cols: usize,
) -> Result<PackedMatrix, AffineError> {
    spec.check_columns(cols)?;
    assert!(values.len().is_multiple_of(cols), "whole rows of {cols}");
    let mut packed = PackedMatrix::zeroed(spec, float, values.len() / cols, cols);
    let word_bytes = spec.words_per_row(cols) * 4;
    let group_bytes = spec.groups_per_row(cols) * float.size();
    packed
        .words
        .par_chunks_mut(word_bytes)
        .zip(packed.scales.par_chunks_mut(group_bytes))
        .zip(packed.biases.par_chunks_mut(group_bytes))
        .zip(values.par_chunks(cols))
        .for_each(|(((words, scales), biases), row)| {
            let read =
                |group: usize, out: &mut [f32]| out.copy_from_slice(&row[group * out.len()..][..out.len()]);
            run(spec, float, read, words, scales, biases);
        });
    Ok(packed)
}

/// Quantizes the groups of `source` (little-endian elements of type `float`, any number of whole groups) on this thread.
/// Writes `words`, `scales` and `biases` in the layout of [`PackedMatrix`].
///
/// # Panics
/// If the lengths are inconsistent.
pub fn quantize_into(
    spec: AffineSpec,
    float: FloatType,
    source: &[u8],
    words: &mut [u8],
    scales: &mut [u8],
    biases: &mut [u8],
) {
    let group_bytes = spec.group_size() * float.size();
    assert_eq!(source.len() / group_bytes * float.size(), scales.len());
    match float {
        FloatType::Bf16 => run(spec, float, reader::<2>(source, FloatType::Bf16), words, scales, biases),
        FloatType::F16 => run(spec, float, reader::<2>(source, FloatType::F16), words, scales, biases),
        FloatType::F32 => run(spec, float, reader::<4>(source, FloatType::F32), words, scales, biases),
    }
}

#[inline(always)]
fn reader<const SIZE: usize>(source: &[u8], float: FloatType) -> impl Fn(usize, &mut [f32]) {
    move |group, out| float.widen(&source[group * out.len() * SIZE..][..out.len() * SIZE], out)
}

#[inline(always)]
fn run<R: Fn(usize, &mut [f32])>(
    spec: AffineSpec,
    float: FloatType,
    read: R,
    words: &mut [u8],
    scales: &mut [u8],
    biases: &mut [u8],
) {
    assert_eq!(scales.len(), biases.len());
    assert_eq!(words.len(), scales.len() / float.size() * spec.group_size() / 8 * spec.bits() as usize);
    match spec.group_size() {
        32 => for_bits!(spec.bits(), groups_of_32::<R>, (float, read, words, scales, biases)),
        64 => for_bits!(spec.bits(), groups_of_64::<R>, (float, read, words, scales, biases)),
        _ => for_bits!(spec.bits(), groups_of_128::<R>, (float, read, words, scales, biases)),
    }
}

macro_rules! groups_of {
    ($name:ident, $size:literal) => {
        fn $name<R: Fn(usize, &mut [f32]), const BITS: u32>(
            float: FloatType,
            read: R,
            words: &mut [u8],
            scales: &mut [u8],
            biases: &mut [u8],
        ) {
            groups::<R, $size, BITS>(float, read, words, scales, biases);
        }
    };
}
groups_of!(groups_of_32, 32);
groups_of!(groups_of_64, 64);
groups_of!(groups_of_128, 128);

#[inline(always)]
fn groups<R: Fn(usize, &mut [f32]), const GROUP: usize, const BITS: u32>(
    float: FloatType,
    read: R,
    words: &mut [u8],
    scales: &mut [u8],
    biases: &mut [u8],
) {
    let largest = ((1u32 << BITS) - 1) as f32;
    let size = float.size();
    let stored = scales.chunks_exact_mut(size).zip(biases.chunks_exact_mut(size));
    for (group, (words, (scale_out, bias_out))) in
        words.chunks_exact_mut(GROUP / 8 * BITS as usize).zip(stored).enumerate()
    {
        let mut values = [0.0; GROUP];
        read(group, &mut values);
        let (scale, bias) = parameters(&values, largest);
        let mut codes = [0u8; GROUP];
        for (code, value) in codes.iter_mut().zip(&values) {
            *code = nearest_code((value - bias) / scale, largest);
        }
        pack::<BITS>(&codes, words);
        store(float, scale, scale_out);
        store(float, bias, bias_out);
    }
}

/// Rounds `steps` to the nearest integer, ties to even, clamped to `0..=largest`.
#[inline(always)]
fn nearest_code(steps: f32, largest: f32) -> u8 {
    // Comparisons instead of `clamp` and an addition instead of `round_ties_even` vectorise on every target. Above 2^23
    // the spacing of f32 is 1, so the sum is rounded to nearest and its low mantissa bits are the code. Clamping to
    // integers commutes with rounding.
    let low = if steps > 0.0 { steps } else { 0.0 };
    let bounded = if low < largest { low } else { largest };
    (bounded + 8_388_608.0).to_bits() as u8
}

#[inline(always)]
fn parameters(values: &[f32], largest: f32) -> (f32, f32) {
    const LANES: usize = 16;
    let mut low = [f32::INFINITY; LANES];
    let mut high = [f32::NEG_INFINITY; LANES];
    for lanes in values.as_chunks::<LANES>().0 {
        for (value, (low, high)) in lanes.iter().zip(low.iter_mut().zip(&mut high)) {
            *low = if *value < *low { *value } else { *low };
            *high = if *value > *high { *value } else { *high };
        }
    }
    let low = low.into_iter().fold(f32::INFINITY, f32::min);
    let high = high.into_iter().fold(f32::NEG_INFINITY, f32::max);
    let below = low.abs() > high.abs();
    let span = ((high - low) / largest).max(1e-7);
    let (scale, edge) = if below { (span, low) } else { (-span, high) };
    let steps = (edge / scale).round_ties_even();
    if steps == 0.0 { (scale, 0.0) } else { (edge / steps, edge) }
}

/// Returns MLX's scale and bias of one group in f32, before rounding for storage. The length of `values` must be a multiple
/// of 32.
pub fn group_parameters(spec: AffineSpec, values: &[f32]) -> (f32, f32) {
    parameters(values, f32::from(spec.largest_code()))
}

#[inline(always)]
fn store(float: FloatType, value: f32, out: &mut [u8]) {
    match float {
        FloatType::Bf16 => out.copy_from_slice(&half::bf16::from_f32(value).to_le_bytes()),
        FloatType::F16 => out.copy_from_slice(&half::f16::from_f32(value).to_le_bytes()),
        FloatType::F32 => out.copy_from_slice(&value.to_le_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::affine::dequantize_rows;
    use proptest::prelude::*;

    #[test]
    fn ties_go_to_the_even_code() {
        let cases =
            [(0.5, 0), (1.5, 2), (2.5, 2), (14.5, 14), (-3.0, 0), (15.4, 15), (99.0, 15), (f32::NAN, 0)];
        for (steps, code) in cases {
            assert_eq!(nearest_code(steps, 15.0), code, "{steps}");
        }
    }

    #[test]
    fn columns_must_divide() {
        let spec = AffineSpec::new(4, 64).unwrap();
        assert!(quantize_rows(spec, FloatType::F32, &[0; 4 * 96], 96).is_err());
        assert!(quantize_rows(spec, FloatType::F32, &[], 0).is_err());
    }

    #[test]
    fn values_and_bytes_give_the_same_on_any_number_of_threads() {
        let values: Vec<f32> = (0..256 * 257).map(|i| ((i * 37 % 1001) as f32 - 500.0) / 777.0).collect();
        let mut bytes = Vec::new();
        FloatType::F32.narrow(&values, &mut bytes);
        let spec = AffineSpec::new(5, 32).unwrap();
        let once = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| quantize_rows(spec, FloatType::F32, &bytes, 256).unwrap())
        };
        assert_eq!(once(1), once(3));
        assert_eq!(once(1), quantize_values(spec, FloatType::F32, &values, 256).unwrap());
    }

    proptest! {
        #[test]
        fn no_weight_moves_by_more_than_a_step(
            bits in prop::sample::select(AffineSpec::BITS.to_vec()),
            group_size in prop::sample::select(AffineSpec::GROUP_SIZES.to_vec()),
            values in prop::collection::vec(-2.0f32..2.0, 256),
        ) {
            let spec = AffineSpec::new(bits, group_size).unwrap();
            let packed = quantize_values(spec, FloatType::F32, &values, 256).unwrap();
            let mut back = vec![0.0; 256];
            dequantize_rows(&packed.view(), 0..1, &mut back);
            for (group, (values, back)) in values.chunks(group_size).zip(back.chunks(group_size)).enumerate() {
                let scale = f32::from_le_bytes(*packed.scales[group * 4..].first_chunk().unwrap());
                for (value, back) in values.iter().zip(back) {
                    // Stretching the scale may cut up to half a step off the far edge, besides the half of rounding.
                    prop_assert!((value - back).abs() <= scale.abs() * 1.001, "{value} became {back}, step {scale}");
                }
            }
        }
    }
}
