//! Products: all instruction sets agree with the portable form bit for bit, gemm with gemv, and both with f64 arithmetic
//! within bounds.

use proptest::prelude::*;
use q35_kernels::{FloatType, Floats, Isa, Matrix, Mode, PackedActivations, Pool, Product, multiply};

/// Owned parts of a matrix, at unaligned addresses.
#[derive(Clone, Debug)]
struct Parts {
    rows: usize,
    columns: usize,
    kind: Kind,
    dtype: FloatType,
    codes: Vec<u8>,
    scales: Vec<u8>,
    biases: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Affine { bits: usize, group: usize },
    Symmetric { group: Option<usize>, round_to_f16: bool },
    Float,
}

impl Parts {
    fn random(rows: usize, columns: usize, kind: Kind, dtype: FloatType, seed: u64) -> Self {
        let mut random = Random(seed);
        let mut floats = |count: usize, scale: f32, offset: f32| -> Vec<u8> {
            let mut bytes = vec![0];
            for _ in 0..count {
                let value = random.signed() * scale + offset;
                match dtype {
                    FloatType::F32 => bytes.extend(value.to_le_bytes()),
                    FloatType::F16 => bytes.extend(half::f16::from_f32(value).to_le_bytes()),
                    FloatType::Bf16 => bytes.extend(half::bf16::from_f32(value).to_le_bytes()),
                }
            }
            bytes
        };
        let (scales, biases, code_bytes) = match kind {
            Kind::Affine { bits, group } => {
                let count = rows * columns / group;
                (floats(count, 0.01, 0.02), floats(count, 0.1, 0.0), rows * columns * bits / 8)
            }
            Kind::Symmetric { group, .. } => {
                let count = rows * group.map_or(1, |group| columns / group);
                (floats(count, 0.001, 0.002), vec![0], rows * columns)
            }
            Kind::Float => (floats(rows * columns, 1.0, 0.0), vec![0], 0),
        };
        let codes = (0..=code_bytes).map(|_| random.next() as u8).collect();
        Self { rows, columns, kind, dtype, codes, scales, biases }
    }

    fn matrix(&self) -> Matrix<'_> {
        let floats = |bytes| Floats::new(self.dtype, bytes);
        let (codes, scales, biases) =
            (&self.codes[1..], floats(&self.scales[1..]), floats(&self.biases[1..]));
        match self.kind {
            Kind::Affine { bits, group } => {
                Matrix::affine(self.rows, self.columns, bits, group, codes, scales, biases)
            }
            Kind::Symmetric { group, round_to_f16: false } => {
                Matrix::symmetric(self.rows, self.columns, group, codes, scales)
            }
            Kind::Symmetric { group, round_to_f16: true } => {
                Matrix::symmetric_f16(self.rows, self.columns, group, codes, scales)
            }
            Kind::Float => Matrix::float(self.rows, self.columns, scales),
        }
        .unwrap()
    }
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn signed(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

fn kinds() -> impl Strategy<Value = (Kind, usize)> {
    let group = prop_oneof![Just(32usize), Just(64), Just(128)];
    prop_oneof![
        4 => (prop_oneof![Just(4usize), Just(4), Just(8), 2usize..7], group.clone(), 1usize..20)
            .prop_map(|(bits, group, groups)| (Kind::Affine { bits, group }, group * groups)),
        2 => (group, 1usize..20, any::<bool>())
            .prop_map(|(group, groups, round_to_f16)| (Kind::Symmetric { group: Some(group), round_to_f16 }, group * groups)),
        2 => (1usize..1200, any::<bool>())
            .prop_map(|(columns, round_to_f16)| (Kind::Symmetric { group: None, round_to_f16 }, columns)),
        1 => (1usize..300).prop_map(|columns| (Kind::Float, columns)),
    ]
}

fn run(isa: Isa, pool: &Pool, mode: Mode, x: &[f32], parts: &Parts) -> Vec<f32> {
    let matrix = parts.matrix();
    let mut out = vec![f32::NAN; x.len() / parts.columns * parts.rows];
    let mut activations = PackedActivations::default();
    // Buffers that held wider activations before must not change results.
    let wider = Parts::random(1, 2 * parts.columns, parts.kind, parts.dtype, 7);
    let before = vec![0.7; x.len() / parts.columns * wider.columns];
    activations.pack(isa, pool, mode, &before, wider.columns, [&wider.matrix()]);
    activations.pack(isa, pool, mode, x, parts.columns, [&matrix]);
    multiply(isa, pool, mode, &activations, &mut [Product { matrix: &matrix, out: &mut out }]);
    out
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn products_agree(
        (kind, columns) in kinds(),
        dtype in prop_oneof![Just(FloatType::F32), Just(FloatType::F16), Just(FloatType::Bf16)],
        rows in 1usize..80,
        tokens in 2usize..40,
        fast in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let mode = if fast { Mode::Fast } else { Mode::Exact };
        let parts = Parts::random(rows, columns, kind, dtype, seed);
        let mut random = Random(!seed);
        let x: Vec<f32> = (0..tokens * columns).map(|_| random.signed()).collect();
        let one_thread = Pool::new(1);
        let portable = run(Isa::portable(), &one_thread, mode, &x, &parts);

        // Reference in f64 on the dequantized rows.
        let mut row_values = vec![0.0; columns];
        let matrix = parts.matrix();
        for row in 0..rows {
            matrix.row(row, &mut row_values);
            for token in 0..tokens {
                let x = &x[token * columns..][..columns];
                let pairs = || x.iter().zip(&row_values).map(|(&x, &w)| f64::from(x) * f64::from(w));
                let (expected, size) = (pairs().sum::<f64>(), pairs().map(f64::abs).sum::<f64>());
                let magnitude = match kind {
                    Kind::Affine { .. } => size + 5.0 * columns as f64 * 0.1,
                    _ => size,
                };
                // The quantization step of a group depends on its largest activation and affects all of its products.
                let largest = x.iter().fold(0.0f64, |largest, &x| largest.max(f64::from(x).abs()));
                let steps = row_values.iter().map(|&w| f64::from(w).abs()).sum::<f64>() * largest;
                let magnitude = if fast { magnitude + steps } else { magnitude };
                let error = (f64::from(portable[token * rows + row]) - expected).abs();
                // Half a quantization step of activations (1,904 or 32,512 steps), and rounding of f32 sums.
                let bound = match kind {
                    Kind::Affine { bits: 4, .. } if fast => 2.7e-4,
                    Kind::Float => 2e-6,
                    _ if fast => 2e-5,
                    _ => 2e-6,
                };
                prop_assert!(
                    error <= bound * (magnitude + 1e-3),
                    "row {row}, token {token}: {} for {expected}, sum of sizes {size}", portable[token * rows + row]
                );
            }
        }
        let two_threads = Pool::new(2);
        for isa in Isa::available() {
            let many = run(isa, &two_threads, mode, &x, &parts);
            prop_assert_eq!(bits(&many), bits(&portable), "{} for several tokens", isa.name());
            for token in 0..2 {
                let one = run(isa, &two_threads, mode, &x[token * columns..][..columns], &parts);
                prop_assert_eq!(bits(&one), bits(&many[token * rows..][..rows]), "{} for one token", isa.name());
            }
        }
    }
}

#[test]
fn largest_codes_and_activations_do_not_overflow() {
    let two_threads = Pool::new(2);
    for (code_bits, group) in [(4, 32), (4, 64), (4, 128), (8, 32), (8, 64), (8, 128)] {
        let (rows, columns, tokens) = (40, 512, 9);
        let mut parts =
            Parts::random(rows, columns, Kind::Affine { bits: code_bits, group }, FloatType::Bf16, 3);
        parts.codes.fill(0xff);
        for sign in [1.0, -1.0] {
            let x = vec![sign; tokens * columns];
            let expected = run(Isa::portable(), &two_threads, Mode::Fast, &x, &parts);
            let mut row_values = vec![0.0; columns];
            parts.matrix().row(0, &mut row_values);
            let sum = row_values.iter().sum::<f32>() * sign;
            assert!((expected[0] - sum).abs() < 1e-3 * sum.abs(), "{} for {sum}", expected[0]);
            for isa in Isa::available() {
                let many = run(isa, &two_threads, Mode::Fast, &x, &parts);
                assert_eq!(bits(&many), bits(&expected), "{} for several tokens", isa.name());
                let one = run(isa, &two_threads, Mode::Fast, &x[..columns], &parts);
                assert_eq!(bits(&one), bits(&expected[..rows]), "{} for one token", isa.name());
            }
        }
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}
