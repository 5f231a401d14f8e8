//! Cost of a short parallel region in [`q35_kernels::Pool`] and in rayon, on the same number of threads:
//! `cargo bench -p q35-kernels --bench thread_pool`.
//!
//! A region has as many items as threads times eight, as a matrix product does, and each item spins for a fixed number of steps.
//! `sequential` is the same work on one thread. Between regions the caller works alone for some microseconds, as a decode step
//! does in norms and packing: a pool whose workers fall asleep in that gap pays for waking them.

use divan::{Bencher, black_box};
use q35_kernels::Pool;
use rayon::prelude::*;

fn main() {
    divan::main();
}

/// Regions per sample: those of one decode step.
const REGIONS: usize = 100;
const ITEMS_PER_THREAD: usize = 8;
/// Dependent steps between regions, about five microseconds.
const GAP: u64 = 5_000;

fn threads() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from)
}

fn spin(steps: u64) -> u64 {
    (0..steps).fold(black_box(1), |x, i| x.rotate_left(5) ^ i)
}

fn items() -> Vec<u64> {
    vec![0; threads() * ITEMS_PER_THREAD]
}

fn step(items: &mut [u64], mut region: impl FnMut(&mut [u64])) {
    for _ in 0..REGIONS {
        black_box(spin(GAP));
        region(items);
    }
}

/// Steps per item: nothing, about half a microsecond, about five.
const STEPS: [u64; 3] = [0, 500, 5_000];

#[divan::bench(args = STEPS)]
fn sequential(bencher: Bencher<'_, '_>, steps: u64) {
    let mut items = items();
    bencher.bench_local(|| {
        step(&mut items, |items| items.iter_mut().for_each(|item| *item = spin(steps)));
    });
}

#[divan::bench(args = STEPS)]
fn pool(bencher: Bencher<'_, '_>, steps: u64) {
    let (pool, mut items) = (Pool::new(threads()), items());
    bencher.bench_local(|| step(&mut items, |items| pool.for_each(items, |item| *item = spin(steps))));
}

/// The caller is a thread of the rayon pool, its best case.
#[divan::bench(args = STEPS)]
fn rayon_par_iter(bencher: Bencher<'_, '_>, steps: u64) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads()).build().expect("a rayon pool");
    let mut items = items();
    bencher.bench_local(|| {
        pool.install(|| {
            step(&mut items, |items| {
                items.par_iter_mut().with_max_len(1).for_each(|item| *item = spin(steps))
            });
        });
    });
}

#[divan::bench(args = STEPS)]
fn rayon_scope(bencher: Bencher<'_, '_>, steps: u64) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads()).build().expect("a rayon pool");
    let mut items = items();
    bencher.bench_local(|| {
        pool.install(|| {
            step(&mut items, |items| {
                rayon::scope(|scope| {
                    for item in items {
                        scope.spawn(move |_| *item = spin(steps));
                    }
                });
            });
        });
    });
}
