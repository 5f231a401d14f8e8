//! Softmax attention of one key/value head over its cache.
//!
//! Keys are taken in spans of [`SPAN`] positions counted from the start of the sequence. Each span gives weights, their
//! largest score and their sum; once those of all spans are known, each gives a sum of its values. The sums are added two
//! neighbours at a time, again and again. So an output does not depend on how tokens were cut into pieces, and in decode
//! runs of spans may go to different threads, each of which adds up its own while they are in its caches.
//!
//! The exact cache keeps f32; `fast` has the arithmetic of the other one.

mod fast;

use std::cell::RefCell;
use std::ops::Range;

use crate::elementwise::{exp, largest, load_part, padded, store_part};
use crate::head_cache::{Blocks, ExactBlock, HeadCache, SPAN};
use crate::simd::{Isa, Kernel, Simd};

use fast::Codes;

/// The most spans that [`sum_spans`] takes at a time.
pub const RUN: usize = 8;

/// Of the softmax weights of some query heads, what one span has.
#[derive(Clone, Debug, Default)]
pub struct SpanWeights {
    /// Largest score of each head.
    largest: Vec<f32>,
    /// Sum of e^(score - largest) of each head.
    sum: Vec<f32>,
    /// What the span's largest weight is of the whole sequence's, of each head.
    share: Vec<f32>,
    /// e^(score - largest) [heads, SPAN], with an exact cache.
    exact: Vec<f32>,
    /// Codes of the same times the scale of each value [heads], with a fast one.
    codes: Vec<Codes>,
    /// Scale of each head's codes, and their sum.
    scales: Vec<(f32, i32)>,
}

/// Values of some spans times their weights, added up [heads, width].
pub type SpanSum = Vec<f32>;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
    static WEIGHTS: RefCell<Vec<SpanWeights>> = RefCell::default();
}

/// Work space of a thread.
#[derive(Default)]
struct Scratch {
    /// Scores, then weights [heads, SPAN].
    scores: Vec<f32>,
    /// Codes of the queries [width / SPAN rounded up, heads].
    queries: Vec<Codes>,
    /// Scale of each head's query times that of attention, and sum of its codes.
    query_scales: Vec<(f32, i32)>,
    /// Of each span of a run.
    sums: [SpanSum; RUN],
}

/// Attends from `queries` [heads, width], normed and rotated, to the first `positions` of `cache`, for query heads
/// that share it: `out` [heads, width] = softmax(q k / sqrt(width)) v.
///
/// # Panics
/// If the cache holds fewer positions, or the sizes do not fit.
pub fn attend(isa: Isa, cache: &HeadCache, positions: usize, queries: &[f32], out: &mut [f32]) {
    let count = positions.div_ceil(SPAN);
    WEIGHTS.with_borrow_mut(|weights| {
        weights.resize(weights.len().max(count), SpanWeights::default());
        let weights = &mut weights[..count];
        weigh_spans(isa, cache, positions, queries, 0, weights);
        settle_spans(weights);
        let mut sums = vec![SpanSum::new(); count.div_ceil(RUN)];
        for (run, sum) in sums.iter_mut().enumerate() {
            sum_spans(isa, cache, positions, run * RUN..count.min((run + 1) * RUN), weights, sum);
        }
        join_spans(isa, &mut sums, out);
    });
}

/// First part of [`attend`]: weights of the spans from `first` on of the `positions.div_ceil(SPAN)` that there are.
///
/// # Panics
/// As [`attend`].
pub fn weigh_spans(
    isa: Isa,
    cache: &HeadCache,
    positions: usize,
    queries: &[f32],
    first: usize,
    weights: &mut [SpanWeights],
) {
    assert!(queries.len().is_multiple_of(cache.width), "[heads, width] queries");
    SCRATCH.with_borrow_mut(|scratch| {
        isa.run(Weigh { cache, positions, queries, first, weights, scratch });
    });
}

/// Second part: what the weights of each span are of the whole. `weights` are those of all spans.
pub fn settle_spans(weights: &mut [SpanWeights]) {
    let heads = weights.first().map_or(0, |span| span.largest.len());
    for head in 0..heads {
        let top = weights.iter().fold(f32::NEG_INFINITY, |top, span| top.max(span.largest[head]));
        let mut sum = 0.0;
        for span in &mut *weights {
            let factor = (span.largest[head] - top).exp();
            sum += span.sum[head] * factor;
            span.share[head] = factor;
        }
        for span in &mut *weights {
            span.share[head] /= sum;
        }
    }
}

/// Third part: values of a run of spans times their weights. For the same sums as [`attend`]'s own, as many begin the run
/// as a multiple of its length, which is a power of two, and only the last run is shorter. `weights` are those of all
/// spans.
///
/// # Panics
/// As [`attend`], and if there is no span or more than [`RUN`].
pub fn sum_spans(
    isa: Isa,
    cache: &HeadCache,
    positions: usize,
    spans: Range<usize>,
    weights: &[SpanWeights],
    sum: &mut SpanSum,
) {
    SCRATCH.with_borrow_mut(|scratch| {
        isa.run(Sum { cache, positions, spans, weights, sum, sums: &mut scratch.sums });
    });
}

/// Last part: adds up the sums of all runs, in order, to [`attend`]'s output. The sums are used up.
///
/// # Panics
/// If there is none, or `out` has another size.
pub fn join_spans(isa: Isa, sums: &mut [SpanSum], out: &mut [f32]) {
    isa.run(Join(sums));
    out.copy_from_slice(&sums[0]);
}

struct Join<'a>(&'a mut [SpanSum]);

impl Kernel for Join<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        add_neighbours(simd, self.0);
    }
}

/// Adds up `sums` in the first of them: every second one to the one before it, then every fourth to the second before
/// it, and so on. A run of a power of two by itself gives what it gives among others.
#[inline(always)]
fn add_neighbours<S: Simd>(simd: S, sums: &mut [SpanSum]) {
    let mut apart = 1;
    while apart < sums.len() {
        for pair in sums.chunks_mut(2 * apart) {
            if let Some((left, [right, ..])) = pair.split_at_mut_checked(apart) {
                for (to, from) in left[0].chunks_mut(16).zip(right.chunks(16)) {
                    store_part(simd, simd.add(load_part(simd, to), load_part(simd, from)), to);
                }
            }
        }
        apart *= 2;
    }
}

struct Weigh<'a> {
    cache: &'a HeadCache,
    positions: usize,
    queries: &'a [f32],
    first: usize,
    weights: &'a mut [SpanWeights],
    scratch: &'a mut Scratch,
}

impl Kernel for Weigh<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { cache, positions, queries, first, weights, scratch } = self;
        let width = cache.width;
        scratch.scores.resize(queries.len() / width * SPAN, 0.0);
        if let Blocks::Fast(_) = cache.blocks {
            fast::prepare_queries(simd, queries, width, scratch);
        }
        for (span, weights) in weights.iter_mut().enumerate() {
            let span = first + span;
            let count = (positions - span * SPAN).min(SPAN);
            match &cache.blocks {
                Blocks::Exact(all) => {
                    exact_scores(simd, &all[span], width, count, queries, &mut scratch.scores);
                    soften(simd, count, &mut scratch.scores, weights);
                    weights.exact.clone_from(&scratch.scores);
                }
                Blocks::Fast(all) => {
                    let block = &all[span];
                    let next =
                        if (span + 1) * SPAN < positions { &all[span + 1].keys } else { &block.upper_values };
                    fast::scores(simd, block, next, width, count, scratch);
                    soften(simd, count, &mut scratch.scores, weights);
                    fast::prepare_weights(simd, block, count, &mut scratch.scores, weights);
                }
            }
        }
    }
}

struct Sum<'a> {
    cache: &'a HeadCache,
    positions: usize,
    spans: Range<usize>,
    weights: &'a [SpanWeights],
    sum: &'a mut SpanSum,
    sums: &'a mut [SpanSum; RUN],
}

impl Kernel for Sum<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { cache, positions, spans, weights, sum: joined, sums } = self;
        let width = cache.width;
        let sums = &mut sums[..spans.len()];
        for (span, sum) in spans.zip(&mut *sums) {
            let count = (positions - span * SPAN).min(SPAN);
            let own = &weights[span];
            sum.resize(own.share.len() * width, 0.0);
            match &cache.blocks {
                Blocks::Exact(all) => exact_values(simd, &all[span], width, count, own, sum),
                Blocks::Fast(all) => {
                    let next = weights.get(span + 1).map(|weights| (&all[span + 1], weights));
                    fast::values(simd, (&all[span], own), next, width, count, sum);
                }
            }
        }
        add_neighbours(simd, sums);
        std::mem::swap(joined, &mut sums[0]);
    }
}

/// Turns the first `count` scores of each head [heads, SPAN] into e^(score - largest), and the rest of the last vector
/// of them into zeros.
#[inline(always)]
fn soften<S: Simd>(simd: S, count: usize, scores: &mut [f32], weights: &mut SpanWeights) {
    weights.largest.clear();
    weights.sum.clear();
    weights.share.resize(scores.len() / SPAN, 0.0);
    for scores in scores.chunks_exact_mut(SPAN) {
        let top = largest(simd, &scores[..count]);
        let splat = simd.splat(top);
        let used = count.next_multiple_of(16);
        for vector in scores[..used].as_chunks_mut::<16>().0 {
            simd.store(exp(simd, simd.sub(simd.load(vector), splat)), vector);
        }
        scores[count..used].fill(0.0);
        let mut sum = simd.splat(0.0);
        for vector in scores[..used].as_chunks::<16>().0 {
            sum = simd.add(sum, simd.load(vector));
        }
        weights.largest.push(top);
        weights.sum.push(simd.sum(sum));
    }
}

#[inline(always)]
fn exact_scores<S: Simd>(
    simd: S,
    block: &ExactBlock,
    width: usize,
    count: usize,
    queries: &[f32],
    scores: &mut [f32],
) {
    let scale = 1.0 / (width as f32).sqrt();
    for (at, key) in block.keys.chunks_exact(width).take(count).enumerate() {
        let (vectors, rest) = key.as_chunks::<16>();
        let last = simd.load(&padded(rest));
        for (query, scores) in queries.chunks_exact(width).zip(scores.chunks_exact_mut(SPAN)) {
            let (query_vectors, query_rest) = query.as_chunks::<16>();
            let mut sums = [simd.splat(0.0); 2];
            sums[0] = simd.fma(simd.load(&padded(query_rest)), last, sums[0]);
            for (pair, key) in query_vectors.chunks(2).zip(vectors.chunks(2)) {
                for ((sum, query), key) in sums.iter_mut().zip(pair).zip(key) {
                    *sum = simd.fma(simd.load(query), simd.load(key), *sum);
                }
            }
            scores[at] = simd.sum(simd.add(sums[0], sums[1])) * scale;
        }
    }
}

#[inline(always)]
fn exact_values<S: Simd>(
    simd: S,
    block: &ExactBlock,
    width: usize,
    count: usize,
    weights: &SpanWeights,
    out: &mut [f32],
) {
    let heads = weights.exact.chunks_exact(SPAN).zip(&weights.share);
    for ((weights, &share), out) in heads.zip(out.chunks_exact_mut(width)) {
        weighted_rows(simd, block.values.chunks_exact(width), &weights[..count], share, out);
    }
}

/// The sum of `rows`, each as long as `out`, times their weights, times `share`.
#[inline(always)]
fn weighted_rows<'a, S: Simd>(
    simd: S,
    rows: impl Iterator<Item = &'a [f32]> + Clone,
    weights: &[f32],
    share: f32,
    out: &mut [f32],
) {
    for (column, out) in out.chunks_mut(64).enumerate() {
        let mut sums = [simd.splat(0.0); 4];
        for (row, &weight) in rows.clone().zip(weights) {
            let row = &row[64 * column..][..out.len()];
            let weight = simd.splat(weight);
            for (sum, values) in sums.iter_mut().zip(row.chunks(16)) {
                *sum = simd.fma(weight, load_part(simd, values), *sum);
            }
        }
        for (sum, out) in sums.into_iter().zip(out.chunks_mut(16)) {
            store_part(simd, simd.mul(sum, simd.splat(share)), out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::Mode;
    use crate::pages::Pages;

    fn numbers(count: usize, seed: f32) -> Vec<f32> {
        (0..count).map(|i| ((i as f32 + 1.0) * seed).sin() * 2.0).collect()
    }

    fn filled(mode: Mode, width: usize, positions: usize) -> HeadCache {
        let mut cache = HeadCache::new(mode, width);
        cache.reserve(positions, &mut Pages::default());
        let (keys, values) = (numbers(positions * width, 0.71), numbers(positions * width, 0.37));
        for (position, (key, value)) in keys.chunks(width).zip(values.chunks(width)).enumerate() {
            cache.write(position, key, value);
        }
        cache
    }

    fn plain(width: usize, positions: usize, queries: &[f32]) -> Vec<f64> {
        let (keys, values) = (numbers(positions * width, 0.71), numbers(positions * width, 0.37));
        let mut out = Vec::new();
        for query in queries.chunks(width) {
            let scores: Vec<f64> = keys
                .chunks(width)
                .map(|key| {
                    let dot: f64 = key.iter().zip(query).map(|(k, q)| f64::from(*k) * f64::from(*q)).sum();
                    (dot / (width as f64).sqrt()).exp()
                })
                .collect();
            let sum: f64 = scores.iter().sum();
            out.extend((0..width).map(|column| {
                scores.iter().zip(values.chunks(width)).map(|(p, v)| p * f64::from(v[column])).sum::<f64>()
                    / sum
            }));
        }
        out
    }

    #[test]
    fn attention_is_the_softmax_of_its_scores() {
        for (width, heads) in [(64, 2), (16, 1), (40, 3), (18, 5), (256, 4), (300, 6)] {
            for positions in [1, 5, 64, 255, 256, 257, 700] {
                let queries = numbers(heads * width, 0.53);
                let expected = plain(width, positions, &queries);
                for (mode, bound) in [(Mode::Exact, 1e-5), (Mode::Fast, 3e-2)] {
                    let cache = filled(mode, width, positions);
                    let mut out = vec![0.0; heads * width];
                    attend(Isa::detect(), &cache, positions, &queries, &mut out);
                    for (got, expected) in out.iter().zip(&expected) {
                        let error = (f64::from(*got) - expected).abs();
                        assert!(error < bound, "{got} for {expected}: {mode:?}, {width}, {positions}");
                    }
                }
            }
        }
    }

    #[test]
    fn values_lose_no_more_than_eight_bits_of_one() {
        let (width, most) = (96, 3000);
        let scattered =
            |i: usize| ((i as u32).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0;
        let rows: Vec<f32> = (0..2 * most * width).map(scattered).collect();
        let (keys, values) = rows.split_at(most * width);
        for positions in [1, 200, 300, 1000, most] {
            let caches = [Mode::Exact, Mode::Fast].map(|mode| {
                let mut cache = HeadCache::new(mode, width);
                cache.reserve(positions, &mut Pages::default());
                let rows = keys.chunks(width).zip(values.chunks(width)).take(positions).enumerate();
                rows.for_each(|(position, (key, value))| cache.write(position, key, value));
                cache
            });
            // All positions weigh the same, or one nearly everything.
            let sharp = keys[positions / 2 * width..][..width].iter().map(|x| 12.0 * x).collect();
            for (name, queries) in [("even", vec![0.0; width]), ("sharp", sharp)] {
                let [expected, got] = caches.each_ref().map(|cache| {
                    let mut out = vec![0.0; width];
                    attend(Isa::detect(), cache, positions, &queries, &mut out);
                    out
                });
                let square: f32 = got.iter().zip(&expected).map(|(a, b)| (a - b) * (a - b)).sum();
                let (error, eight_bits) = ((square / width as f32).sqrt(), 1.0 / 127.0 / 12.0f32.sqrt());
                assert!(error < 1.2 * eight_bits, "{error}: {positions} positions, {name}");
            }
        }
    }

    #[test]
    fn later_positions_and_instruction_sets_change_no_bit() {
        let (width, heads) = (48, 3);
        // With the smaller queries all positions of the longest weigh little.
        for (mode, size) in [(Mode::Exact, 1.0), (Mode::Fast, 1.0), (Mode::Fast, 0.01)] {
            let queries: Vec<f32> = numbers(heads * width, 0.53).iter().map(|x| size * x).collect();
            for positions in [1, 63, 64, 100, 300] {
                let run = |isa, cache: &HeadCache| {
                    let mut out = vec![0.0; heads * width];
                    attend(isa, cache, positions, &queries, &mut out);
                    out
                };
                let expected = run(Isa::portable(), &filled(mode, width, positions));
                for isa in Isa::available() {
                    assert_eq!(run(isa, &filled(mode, width, positions)), expected, "{}", isa.name());
                    assert_eq!(run(isa, &filled(mode, width, 600)), expected, "{}", isa.name());
                }
            }
        }
    }

    #[test]
    fn spans_may_be_computed_apart() {
        let (width, heads, positions) = (24, 3, 11 * SPAN - 40);
        let queries = numbers(heads * width, 0.53);
        let isa = Isa::detect();
        for mode in [Mode::Exact, Mode::Fast] {
            let cache = filled(mode, width, positions);
            let (mut expected, mut got) = (vec![0.0; heads * width], vec![0.0; heads * width]);
            attend(isa, &cache, positions, &queries, &mut expected);
            let mut weights = vec![SpanWeights::default(); 11];
            for (run, weights) in weights.chunks_mut(3).enumerate().rev() {
                weigh_spans(isa, &cache, positions, &queries, 3 * run, weights);
            }
            settle_spans(&mut weights);
            for together in [1, 2, 4, 8] {
                let mut sums = vec![SpanSum::new(); 11_usize.div_ceil(together)];
                for (run, sum) in sums.iter_mut().enumerate().rev() {
                    let spans = run * together..11.min((run + 1) * together);
                    sum_spans(isa, &cache, positions, spans, &weights, sum);
                }
                join_spans(isa, &mut sums, &mut got);
                assert_eq!(got, expected, "{together} spans at a time");
            }
        }
    }

    #[test]
    fn a_saved_cache_is_the_same_cache() {
        for mode in [Mode::Exact, Mode::Fast] {
            let cache = filled(mode, 24, 130);
            let mut saved = Vec::new();
            cache.save(130, &mut saved);
            let mut loaded = HeadCache::new(mode, 24);
            loaded.load(130, &saved, &mut Pages::default());
            let queries = numbers(24, 0.2);
            let (mut before, mut after) = (vec![0.0; 24], vec![0.0; 24]);
            attend(Isa::detect(), &cache, 130, &queries, &mut before);
            attend(Isa::detect(), &loaded, 130, &queries, &mut after);
            assert_eq!(before, after);
            assert_eq!(loaded.size_bytes(), saved.len());
        }
    }
}
