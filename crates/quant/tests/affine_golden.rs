//! Every supported pair of bits and group size against mlx's own output, bit for bit. The files are made by
//! `python scripts/goldens/affine.py crates/quant/tests/golden`.

use q35_quant::FloatType;
use q35_quant::affine::{AffineSpec, PackedView, dequantize_rows_rounded, quantize_rows};
use safetensors::SafeTensors;

const COLS: usize = 256;

fn golden(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/golden/affine-{name}.safetensors", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The first byte at which the two differ, and both of them.
fn first_difference(ours: &[u8], theirs: &[u8]) -> Option<(usize, u8, u8)> {
    assert_eq!(ours.len(), theirs.len());
    ours.iter().zip(theirs).enumerate().find(|(_, (a, b))| a != b).map(|(i, (a, b))| (i, *a, *b))
}

fn check(name: &str, float: FloatType) {
    let bytes = golden(name);
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let source = file.tensor("source").unwrap();
    for bits in AffineSpec::BITS {
        for group_size in AffineSpec::GROUP_SIZES {
            let theirs = |part: &str| file.tensor(&format!("{bits}.{group_size}.{part}")).unwrap();
            let spec = AffineSpec::new(bits, group_size).unwrap();
            let packed = quantize_rows(spec, float, source.data(), COLS).unwrap();
            let case = format!("{name}, {bits} bits, groups of {group_size}");
            assert_eq!(theirs("weight").shape(), [packed.rows, spec.words_per_row(COLS)], "{case}");
            assert_eq!(first_difference(&packed.scales, theirs("scales").data()), None, "scales, {case}");
            assert_eq!(first_difference(&packed.biases, theirs("biases").data()), None, "biases, {case}");
            assert_eq!(first_difference(&packed.words, theirs("weight").data()), None, "words, {case}");
            check_dequantized(&packed.view(), theirs("dequantized").data(), &case);
        }
    }
}

/// The golden holds, per row, the sum over columns of `bits(value) * (2 column + 1) * 2654435761`, modulo 2^32.
fn check_dequantized(packed: &PackedView<'_>, sums: &[u8], case: &str) {
    let mut values = vec![0.0; packed.rows * COLS];
    dequantize_rows_rounded(packed, 0..packed.rows, &mut values);
    for (row, (values, sum)) in values.chunks(COLS).zip(sums.chunks(4)).enumerate() {
        let mut stored = Vec::new();
        packed.float.narrow(values, &mut stored);
        let ours = stored.chunks(packed.float.size()).enumerate().fold(0u32, |total, (column, value)| {
            let mut bits = [0; 4];
            bits[..value.len()].copy_from_slice(value);
            let weight = (2 * column as u32 + 1).wrapping_mul(2_654_435_761);
            total.wrapping_add(u32::from_le_bytes(bits).wrapping_mul(weight))
        });
        assert_eq!(ours.to_le_bytes(), sum, "dequantized row {row}, {case}");
    }
}

#[test]
fn bf16_equals_mlx() {
    check("bf16", FloatType::Bf16);
}

#[test]
fn f16_equals_mlx() {
    check("f16", FloatType::F16);
}

#[test]
fn f32_equals_mlx() {
    check("f32", FloatType::F32);
}
