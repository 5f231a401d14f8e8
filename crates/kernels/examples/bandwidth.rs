//! Memory bandwidth of plain reads and of gemv, on the threads of a pool:
//! `cargo run --release -p q35-kernels --example bandwidth -- [THREADS] [MEGABYTES]`. Prints one line of JSON.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example prints its results")]

use std::hint::black_box;
use std::time::Instant;

use memmap2::MmapOptions;
use q35_kernels::{FloatType, Floats, Isa, Matrix, Mode, PackedActivations, Pool, Product, multiply};

const ROUNDS: usize = 9;

fn main() {
    let mut arguments = std::env::args().skip(1).filter_map(|argument| argument.parse::<usize>().ok());
    let threads = arguments.next().unwrap_or(2);
    let megabytes = arguments.next().unwrap_or(400);
    let pool = Pool::new(threads);
    // In huge pages where the system has them, as weights are, so that the read bandwidth is the true limit.
    let mut map = MmapOptions::new().len(megabytes * 1_000_000).map_anon().expect("memory");
    #[cfg(target_os = "linux")]
    let _ = map.advise(memmap2::Advice::HugePage);
    let words: &mut [u64] = bytemuck::cast_slice_mut(&mut map);
    words.fill(0x1234_5678_9abc_def0);
    let words = &*words;
    let read = fastest(words.len() * 8, || {
        let mut parts: Vec<(&[u64], u64)> = words.chunks(1 << 14).map(|part| (part, 0)).collect();
        pool.for_each(&mut parts, |(part, sum)| {
            let mut sums = [0u64; 32];
            for chunk in part.chunks_exact(32) {
                sums.iter_mut().zip(chunk).for_each(|(sum, word)| *sum ^= word);
            }
            *sum = sums.iter().fold(0, |all, sum| all ^ sum);
        });
        black_box(parts);
    });
    let bytes: &[u8] = bytemuck::cast_slice(words);
    let isa = Isa::detect();
    let mut report = vec![("read", read)];
    for (name, bits, mode) in [
        ("int4_fast", 4, Mode::Fast),
        ("int4_exact", 4, Mode::Exact),
        ("int8_fast", 8, Mode::Fast),
        ("int8_exact", 8, Mode::Exact),
    ] {
        let columns = 1024;
        let row_bytes = columns * bits / 8 + 4 * columns / 64;
        let rows = bytes.len() / row_bytes;
        let (codes, rest) = bytes.split_at(rows * columns * bits / 8);
        let (scales, rest) = rest.split_at(rows * columns / 32);
        let floats = |bytes| Floats::new(FloatType::Bf16, bytes);
        let biases = floats(&rest[..scales.len()]);
        let matrix =
            Matrix::affine(rows, columns, bits, 64, codes, floats(scales), biases).expect("sizes fit");
        let x: Vec<f32> = (0..columns).map(|i| (i as f32).sin()).collect();
        let (mut activations, mut out) = (PackedActivations::default(), vec![0.0; rows]);
        report.push((
            name,
            fastest(rows * row_bytes, || {
                activations.pack(isa, &pool, mode, &x, columns, [&matrix]);
                multiply(isa, &pool, mode, &activations, &mut [Product { matrix: &matrix, out: &mut out }]);
            }),
        ));
    }
    let fields: Vec<String> =
        report.iter().map(|(name, rate)| format!("\"{name}_gb_s\": {:.2}", rate / 1e9)).collect();
    println!("{{\"threads\": {threads}, \"isa\": \"{}\", {}}}", isa.name(), fields.join(", "));
}

/// Bytes per second of the fastest round.
fn fastest(bytes: usize, mut work: impl FnMut()) -> f64 {
    let times = (0..ROUNDS).map(|_| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64()
    });
    bytes as f64 / times.fold(f64::INFINITY, f64::min)
}
