//! The kernels at the sizes of Qwen3.5-0.8B, one thread: `cargo bench -p q35-kernels`.
//!
//! Weights of one-token products are larger than any cache, as a decode step reads each once.

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use q35_kernels::{
    DeltaHead, DeltaLayer, DeltaShape, FloatType, Floats, HugePageArena, Isa, KvCache, Matrix, Mode,
    PackedActivations, Pool, Product, attend, delta_head, multiply, rms_norm,
};

fn main() {
    divan::main();
}

const HIDDEN: usize = 1024;
const INTERMEDIATE: usize = 3584;
/// Copies of a matrix that are used in rotation, so that none stays in a cache.
const COPIES: usize = 64;

fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i % 977) as f32 * 0.37).sin()).collect()
}

struct Stored {
    codes: Vec<u8>,
    scales: Vec<u8>,
}

/// The MLP's projections in MLX's layout: `bits` of 4 or 8, groups of 64, bf16 scales.
fn stored(bits: usize, copies: usize) -> Stored {
    let weights = copies * INTERMEDIATE * HIDDEN;
    Stored {
        codes: (0..weights * bits / 8).map(|i| (i * 37 + i / 4096) as u8).collect(),
        scales: (0..weights / 64).flat_map(|_| [0x00, 0x3c]).collect(),
    }
}

impl Stored {
    fn copy(&self, bits: usize, [rows, columns]: [usize; 2], copy: usize) -> Matrix<'_> {
        let (codes, scales) = (INTERMEDIATE * HIDDEN * bits / 8, 2 * INTERMEDIATE * HIDDEN / 64);
        let floats = Floats::new(FloatType::Bf16, &self.scales[copy * scales..][..scales]);
        Matrix::affine(rows, columns, bits, 64, &self.codes[copy * codes..][..codes], floats, floats)
            .expect("a matrix of these sizes")
    }
}

/// Shape [rows, columns] of the up projection, and of the down projection with its wide rows.
const UP: [usize; 2] = [INTERMEDIATE, HIDDEN];
const DOWN: [usize; 2] = [HIDDEN, INTERMEDIATE];

fn product(bencher: Bencher<'_, '_>, bits: usize, shape: [usize; 2], tokens: usize, mode: Mode) {
    let copies = if tokens == 1 { COPIES } else { 1 };
    let stored = stored(bits, copies);
    let (isa, pool) = (Isa::detect(), Pool::new(1));
    let [rows, columns] = shape;
    let x = numbers(tokens * columns);
    let mut out = vec![0.0; tokens * rows];
    let mut activations = PackedActivations::default();
    let mut copy = 0;
    bencher.counter(BytesCount::new((stored.codes.len() + 2 * stored.scales.len()) / copies)).bench_local(
        || {
            copy = (copy + 1) % copies;
            let matrix = stored.copy(bits, shape, copy);
            activations.pack(isa, &pool, mode, &x, columns, [&matrix]);
            multiply(
                isa,
                &pool,
                mode,
                &activations,
                &mut [Product { matrix: &matrix, out: black_box(&mut out) }],
            );
        },
    );
}

/// One token: memory-bound.
#[divan::bench(args = [4, 8])]
fn decode_product(bencher: Bencher<'_, '_>, bits: usize) {
    product(bencher, bits, UP, 1, Mode::Fast);
}

/// One token, wide rows.
#[divan::bench(args = [4, 8])]
fn decode_product_wide(bencher: Bencher<'_, '_>, bits: usize) {
    product(bencher, bits, DOWN, 1, Mode::Fast);
}

/// One token with f32 activations.
#[divan::bench(args = [4, 8])]
fn decode_product_exact(bencher: Bencher<'_, '_>, bits: usize) {
    product(bencher, bits, UP, 1, Mode::Exact);
}

/// Sixty-four tokens: compute-bound.
#[divan::bench(args = [4, 8])]
fn prefill_product(bencher: Bencher<'_, '_>, bits: usize) {
    product(bencher, bits, UP, 64, Mode::Fast);
}

/// A key/value head of 256, four query heads, one token.
#[divan::bench(args = [128, 2048, 8192])]
fn attention(bencher: Bencher<'_, '_>, positions: usize) {
    let (isa, width, heads) = (Isa::detect(), 256, 4);
    let mut cache = KvCache::new(Mode::Fast, width);
    cache.reserve(positions, &mut HugePageArena::default());
    let row = numbers(positions + width);
    for position in 0..positions {
        cache.write(position, &row[position..][..width], &row[position / 2..][..width]);
    }
    let queries = numbers(heads * width);
    let mut out = vec![0.0; heads * width];
    bencher
        .counter(BytesCount::new(cache.size_bytes()))
        .bench_local(|| attend(isa, &cache, positions, black_box(&queries), &mut out));
}

/// Sixteen heads, one layer.
#[divan::bench(args = [1, 64])]
fn delta_rule(bencher: Bencher<'_, '_>, tokens: usize) {
    let shape = DeltaShape { key_heads: 16, value_heads: 16, key_width: 128, value_width: 128, taps: 4 };
    let isa = Isa::detect();
    let activations = numbers(tokens * shape.channels());
    let taps = numbers(shape.channels() * shape.taps);
    let heads = numbers(tokens * shape.value_heads);
    let layer = DeltaLayer {
        shape,
        taps: &taps,
        decay: &vec![-0.1; shape.value_heads],
        step_bias: &vec![0.0; shape.value_heads],
        norm: &vec![1.0; shape.value_width],
        norm_eps: 1e-6,
        qkv: &activations,
        z: &activations[..tokens * shape.value_heads * shape.value_width],
        b: &heads,
        a: &heads,
    };
    let mut convolution = vec![0.0; shape.key_heads * shape.convolution_state()];
    let mut recurrent = vec![0.0; shape.value_heads * shape.recurrent_state()];
    let mut out = vec![0.0; tokens * shape.value_heads * shape.value_width];
    bencher.bench_local(|| {
        let columns = q35_kernels::ColumnBlock::split(
            &mut out,
            shape.value_heads * shape.value_width,
            shape.value_width,
        );
        let states = convolution
            .chunks_exact_mut(shape.convolution_state())
            .zip(recurrent.chunks_exact_mut(shape.recurrent_state()));
        for (head, ((convolution, recurrent), out)) in states.zip(columns).enumerate() {
            delta_head(isa, &layer, &mut DeltaHead { head, convolution, recurrent, out });
        }
    });
}

#[divan::bench]
fn norm(bencher: Bencher<'_, '_>) {
    let (isa, x, weight) = (Isa::detect(), numbers(HIDDEN), numbers(HIDDEN));
    let mut out = vec![0.0; HIDDEN];
    bencher.bench_local(|| rms_norm(isa, black_box(&x), &weight, 1e-6, &mut out));
}
