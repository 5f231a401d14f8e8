//! Softmax attention of one key/value head over its cache.
//!
//! Keys are taken in spans of [`SPAN`] positions counted from the start of the sequence. Each span gives a largest
//! score, a sum and a weighted sum of values; these are joined two neighbours at a time, again and again. So an output
//! does not depend on how tokens were cut into pieces, and in decode runs of spans may go to different threads, each of
//! which joins its own while they are in its caches.
//!
//! The exact cache keeps f32. The fast one keeps keys and values in eight bits with one scale for each position:
//! queries and softmax weights get fifteen, so the cache's own rounding is all that is lost, and a long context costs
//! half of the memory traffic of a half-float cache.

use std::cell::RefCell;
use std::ops::Range;

use crate::elementwise::{exp, largest, largest_magnitude, load_part, padded, store_part};
use crate::halves::split;
use crate::head_cache::{Blocks, ExactBlock, FastBlock, HeadCache, SPAN};
use crate::simd::{Isa, Kernel, Simd};

/// The most spans that [`attend_spans`] takes at a time.
pub const RUN: usize = 8;

/// What some spans give for some query heads.
#[derive(Clone, Debug, Default)]
pub struct SpanResult {
    /// Largest score of each head.
    largest: Vec<f32>,
    /// Sum of e^(score - largest) of each head.
    sum: Vec<f32>,
    /// Values weighted by them [heads, width].
    values: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
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
    /// Codes of the weights [heads].
    weights: Vec<Codes>,
    /// Scale of each head's weights, and sum of their codes.
    weight_scales: Vec<(f32, i32)>,
    /// Of each span of a run.
    results: [SpanResult; RUN],
}

/// Attends from `queries` [heads, width], normed and rotated, to the first `positions` of `cache`, for query heads
/// that share it: `out` [heads, width] = softmax(q k / sqrt(width)) v.
///
/// # Panics
/// If the cache holds fewer positions, or the sizes do not fit.
pub fn attend(isa: Isa, cache: &HeadCache, positions: usize, queries: &[f32], out: &mut [f32]) {
    let count = positions.div_ceil(SPAN);
    let mut results = vec![SpanResult::default(); count.div_ceil(RUN)];
    for (run, result) in results.iter_mut().enumerate() {
        let spans = run * RUN..count.min((run + 1) * RUN);
        attend_spans(isa, cache, positions, queries, spans, result);
    }
    join_spans(isa, &mut results, cache.width, out);
}

/// Some of the `positions.div_ceil(SPAN)` spans that [`attend`] has. For the same sums as its own, as many begin the
/// run as a multiple of its length, which is a power of two, and only the last run is shorter.
///
/// # Panics
/// As [`attend`], and if there is no span or more than [`RUN`].
pub fn attend_spans(
    isa: Isa,
    cache: &HeadCache,
    positions: usize,
    queries: &[f32],
    spans: Range<usize>,
    result: &mut SpanResult,
) {
    assert!(queries.len().is_multiple_of(cache.width), "[heads, width] queries");
    SCRATCH.with_borrow_mut(|scratch| isa.run(Spans { cache, positions, queries, spans, result, scratch }));
}

/// Joins the results of all runs, in order, to [`attend`]'s output. The results are used up.
///
/// # Panics
/// If there is none, or `out` has another size.
pub fn join_spans(isa: Isa, results: &mut [SpanResult], width: usize, out: &mut [f32]) {
    assert_eq!(out.len(), results[0].values.len(), "[heads, width] outputs");
    isa.run(Join { results, width, out });
}

struct Join<'a> {
    results: &'a mut [SpanResult],
    width: usize,
    out: &'a mut [f32],
}

impl Kernel for Join<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { results, width, out } = self;
        join_neighbours(simd, results, width);
        let SpanResult { sum, values, .. } = &results[0];
        for ((out, values), sum) in out.chunks_exact_mut(width).zip(values.chunks_exact(width)).zip(sum) {
            for (out, value) in out.iter_mut().zip(values) {
                *out = value / sum;
            }
        }
    }
}

/// Joins `results` to the first of them: every second one to the one before it, then every fourth to the second before
/// it, and so on. A run of a power of two by itself gives what it gives among others.
#[inline(always)]
fn join_neighbours<S: Simd>(simd: S, results: &mut [SpanResult], width: usize) {
    let mut apart = 1;
    while apart < results.len() {
        for pair in results.chunks_mut(2 * apart) {
            if let Some((left, [right, ..])) = pair.split_at_mut_checked(apart) {
                join_pair(simd, &mut left[0], right, width);
            }
        }
        apart *= 2;
    }
}

/// Adds `right` to `left`, both brought to the larger of their largest scores.
#[inline(always)]
fn join_pair<S: Simd>(simd: S, left: &mut SpanResult, right: &SpanResult, width: usize) {
    let values = left.values.chunks_exact_mut(width).zip(right.values.chunks_exact(width));
    for (head, (to, from)) in values.enumerate() {
        let (own, other) = (left.largest[head], right.largest[head]);
        let top = own.max(other);
        let (own, other) = ((own - top).exp(), (other - top).exp());
        left.largest[head] = top;
        left.sum[head] = left.sum[head] * own + right.sum[head] * other;
        let (own, other) = (simd.splat(own), simd.splat(other));
        for (to, from) in to.chunks_mut(16).zip(from.chunks(16)) {
            let scaled = simd.mul(load_part(simd, to), own);
            store_part(simd, simd.fma(load_part(simd, from), other, scaled), to);
        }
    }
}

struct Spans<'a> {
    cache: &'a HeadCache,
    positions: usize,
    queries: &'a [f32],
    spans: Range<usize>,
    result: &'a mut SpanResult,
    scratch: &'a mut Scratch,
}

impl Kernel for Spans<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { cache, positions, queries, spans, result: joined, scratch } = self;
        let width = cache.width;
        let heads = queries.len() / width;
        scratch.scores.resize(heads * SPAN, 0.0);
        if let Blocks::Fast(_) = cache.blocks {
            prepare_queries(simd, queries, width, scratch);
        }
        let mut all = std::mem::take(&mut scratch.results);
        let results = &mut all[..spans.len()];
        for (span, result) in spans.zip(&mut *results) {
            let count = (positions - span * SPAN).min(SPAN);
            match &cache.blocks {
                Blocks::Exact(all) => {
                    exact_scores(simd, &all[span], width, count, queries, &mut scratch.scores);
                }
                Blocks::Fast(all) => fast_scores(simd, &all[span], width, count, scratch),
            }
            soften(simd, count, &mut scratch.scores, result);
            result.values.resize(heads * width, 0.0);
            match &cache.blocks {
                Blocks::Exact(all) => {
                    exact_values(simd, &all[span], width, count, &scratch.scores, &mut result.values);
                }
                Blocks::Fast(all) => {
                    let (block, next) = (&all[span], all.get(span + 1));
                    fast_values(simd, block, next, width, count, scratch, &mut result.values);
                }
            }
        }
        join_neighbours(simd, results, width);
        std::mem::swap(joined, &mut results[0]);
        scratch.results = all;
    }
}

/// Turns the first `count` scores of each head [heads, SPAN] into e^(score - largest), and the rest of the last vector
/// of them into zeros.
#[inline(always)]
fn soften<S: Simd>(simd: S, count: usize, scores: &mut [f32], result: &mut SpanResult) {
    result.largest.clear();
    result.sum.clear();
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
        result.largest.push(top);
        result.sum.push(simd.sum(sum));
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
    weights: &[f32],
    out: &mut [f32],
) {
    for (weights, out) in weights.chunks_exact(SPAN).zip(out.chunks_exact_mut(width)) {
        weighted_rows(simd, block.values.chunks_exact(width), &weights[..count], out);
    }
}

/// The sum of `rows`, each as long as `out`, times their weights.
#[inline(always)]
fn weighted_rows<'a, S: Simd>(
    simd: S,
    rows: impl Iterator<Item = &'a [f32]> + Clone,
    weights: &[f32],
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
            store_part(simd, sum, out);
        }
    }
}

/// The largest code: sums over 512 columns, or twice [`SPAN`] positions, fit 32 bits.
const STEPS: f32 = 127.0 * 128.0;

/// Codes of fifteen bits as [`Simd::repeat_arranged`] takes them, four at a time.
type Codes = [[[i8; 4]; SPAN / 4]; 2];

const NO_CODES: Codes = [[[0; 4]; SPAN / 4]; 2];

/// The scale of fifteen-bit codes for numbers up to `largest`, and its inverse.
fn steps_of(largest: f32) -> (f32, f32) {
    if largest > 1e-30 { (largest / STEPS, STEPS / largest) } else { (0.0, 0.0) }
}

/// Codes of at most [`SPAN`] numbers; returns the codes' sum.
#[inline(always)]
fn fill<S: Simd>(simd: S, numbers: &[f32], inverse: f32, codes: &mut Codes) -> i32 {
    let [upper, lower] = codes;
    let (upper, lower) =
        (upper.as_flattened_mut().as_chunks_mut().0, lower.as_flattened_mut().as_chunks_mut().0);
    let (vectors, rest) = numbers.as_chunks();
    let mut sums = split(simd, false, vectors, inverse, upper, lower);
    if !rest.is_empty() {
        let (upper, lower) = (&mut upper[vectors.len()..], &mut lower[vectors.len()..]);
        sums = simd.int_add(sums, split(simd, false, &[padded(rest)], inverse, upper, lower));
    }
    let (upper, lower) =
        (upper.as_flattened_mut().as_chunks_mut().0, lower.as_flattened_mut().as_chunks_mut().0);
    for (upper, lower) in upper.iter_mut().zip(lower).take(numbers.len().div_ceil(64)) {
        simd.arrange(upper, lower);
    }
    total(simd, sums)
}

/// Codes of the queries, their scales and their sums.
#[inline(always)]
fn prepare_queries<S: Simd>(simd: S, queries: &[f32], width: usize, scratch: &mut Scratch) {
    let heads = queries.len() / width;
    scratch.queries.resize(width.div_ceil(SPAN) * heads, NO_CODES);
    scratch.query_scales.clear();
    for (head, query) in queries.chunks_exact(width).enumerate() {
        let largest = largest_magnitude(simd, query);
        let (scale, inverse) = steps_of(largest);
        let mut code_sum = 0;
        for (part, numbers) in query.chunks(SPAN).enumerate() {
            code_sum += fill(simd, numbers, inverse, &mut scratch.queries[part * heads + head]);
        }
        scratch.query_scales.push((scale / (width as f32).sqrt(), code_sum));
    }
}

/// How many of `left` query heads pass over the cache together.
#[inline(always)]
fn heads_together<S: Simd>(left: usize) -> usize {
    match left.min(S::HEADS) {
        4.. => 4,
        2.. => 2,
        _ => 1,
    }
}

#[inline(always)]
fn fast_scores<S: Simd>(simd: S, block: &FastBlock, width: usize, count: usize, scratch: &mut Scratch) {
    let Scratch { scores, queries, query_scales, .. } = scratch;
    let (mut head, heads) = (0, query_scales.len());
    while head < heads {
        let queries = Queries { codes: &queries[head..], heads, scales: &query_scales[head..] };
        let out = &mut scores[head * SPAN..];
        let together = heads_together::<S>(heads - head);
        match together {
            4 => scores_of::<S, 4>(simd, block, width, count, queries, out),
            2 => scores_of::<S, 2>(simd, block, width, count, queries, out),
            _ => scores_of::<S, 1>(simd, block, width, count, queries, out),
        }
        head += together;
    }
}

/// Queries from some head on.
#[derive(Clone, Copy)]
struct Queries<'a> {
    /// Each [`SPAN`] columns are `heads` further on.
    codes: &'a [Codes],
    heads: usize,
    /// Of each head.
    scales: &'a [(f32, i32)],
}

/// Scores of the first `HEADS` queries with `count` positions, rounded up to pairs of vectors, to `out` [HEADS, SPAN].
#[inline(always)]
fn scores_of<S: Simd, const HEADS: usize>(
    simd: S,
    block: &FastBlock,
    width: usize,
    count: usize,
    queries: Queries<'_>,
    out: &mut [f32],
) {
    let fours = width.div_ceil(4);
    for pair in 0..count.div_ceil(32) {
        let (keys, rest) = block.keys[64 * 2 * fours * pair..].split_at(64 * 2 * fours);
        let (next, stride) = if rest.is_empty() { (&block.values[..], FOURS) } else { (rest, fours) };
        let mut sums = no_sums::<S, HEADS>(simd);
        for from in (0..fours).step_by(FOURS) {
            let count = FOURS.min(fours - from);
            let keys = both(keys, fours, from).map(|keys| &keys.as_chunks().0[..count]);
            let codes = &queries.codes[from * 4 / SPAN * queries.heads..];
            let codes = codes.first_chunk().expect("codes for each head");
            sums = pair_sums(simd, keys, codes, both(next, stride, from), sums);
        }
        for (head, (sums, &(scale, code_sum))) in sums.into_iter().zip(queries.scales).enumerate() {
            for (side, sum) in sums.into_iter().enumerate() {
                let at = 32 * pair + 16 * side;
                let key_scales = simd.load(block.key_scales[at..].first_chunk().expect("sixteen positions"));
                let out = out[head * SPAN + at..].first_chunk_mut().expect("scores for a whole span");
                let sum = simd.float(without_offset(simd, sum, code_sum));
                simd.store(simd.mul(simd.mul(sum, key_scales), simd.splat(scale)), out);
            }
        }
    }
}

/// A sum of products of codes of a cache, to which 128 was added, with others whose sum is `code_sum`.
#[inline(always)]
fn without_offset<S: Simd>(simd: S, sum: S::Sum, code_sum: i32) -> S::I {
    simd.int_sub(simd.end_sum(sum), simd.int_splat((128 - S::OFFSET) * code_sum))
}

#[inline(always)]
fn no_sums<S: Simd, const HEADS: usize>(simd: S) -> [[S::Sum; 2]; HEADS] {
    [[simd.no_sum(); 2]; HEADS]
}

/// Vectors of codes that are taken at a time: a span's positions, four in a vector, or as many fours of columns.
const FOURS: usize = SPAN / 4;

/// Adds to `sums` the products of two runs of at most [`FOURS`] vectors of codes with the factors of `HEADS` query heads:
/// each vector is loaded once for all of them, each factor once for both runs, and no sum waits for itself. As many lines
/// of each part of `ahead` are asked for.
#[inline(always)]
fn pair_sums<S: Simd, const HEADS: usize>(
    simd: S,
    [left, right]: [&[[u8; 64]]; 2],
    factors: &[Codes; HEADS],
    ahead: [&[u8]; 2],
    sums: [[S::Sum; 2]; HEADS],
) -> [[S::Sum; 2]; HEADS] {
    let mut sums = sums;
    let count = left.len();
    assert!(right.len() == count && count <= FOURS, "two runs of {count} vectors");
    for four in 0..count {
        simd.prefetch(ahead[0], 64 * four);
        simd.prefetch(ahead[1], 64 * four);
        let (a, b) = (simd.load_bytes(&left[four]), simd.load_bytes(&right[four]));
        for (sums, factors) in sums.iter_mut().zip(factors) {
            let [first, second] = factors;
            let factor = simd.repeat_arranged(first[four], second[four]);
            sums[0] = simd.add_products(sums[0], a, factor);
            sums[1] = simd.add_products(sums[1], b, factor);
        }
    }
    sums
}

/// Of two runs of `stride` vectors that begin `codes`, what is from vector `from` on.
#[inline(always)]
fn both(codes: &[u8], stride: usize, from: usize) -> [&[u8]; 2] {
    [codes.get(64 * from..), codes.get(64 * (stride + from)..)].map(Option::unwrap_or_default)
}

#[inline(always)]
fn fast_values<S: Simd>(
    simd: S,
    block: &FastBlock,
    next: Option<&FastBlock>,
    width: usize,
    count: usize,
    scratch: &mut Scratch,
    out: &mut [f32],
) {
    let Scratch { scores, weights, weight_scales, .. } = scratch;
    weights.resize(scores.len() / SPAN, NO_CODES);
    weight_scales.clear();
    for (scores, weights) in scores.chunks_exact_mut(SPAN).zip(&mut *weights) {
        let scores = &mut scores[..count.next_multiple_of(16)];
        // Each position's own scale goes into its weight.
        for (score, scale) in scores.iter_mut().zip(&block.value_scales) {
            *score *= scale;
        }
        let (scale, inverse) = steps_of(largest(simd, scores));
        weight_scales.push((scale, fill(simd, scores, inverse, weights)));
    }
    let (mut weights, mut scales, mut out) = (&weights[..], &weight_scales[..], out);
    while !scales.is_empty() {
        let heads = heads_together::<S>(scales.len());
        let (own, rest) = out.split_at_mut(heads * width);
        match heads {
            4 => values_of::<S, 4>(simd, block, next, width, count, weights, scales, own),
            2 => values_of::<S, 2>(simd, block, next, width, count, weights, scales, own),
            _ => values_of::<S, 1>(simd, block, next, width, count, weights, scales, own),
        }
        (weights, scales, out) = (&weights[heads..], &scales[heads..], rest);
    }
}

/// Weighted sums of `count` values for `HEADS` query heads: `weights` and `scales` [HEADS], `out` [HEADS, width]. `next` is
/// the block after this one, whose keys are needed soon.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn values_of<S: Simd, const HEADS: usize>(
    simd: S,
    block: &FastBlock,
    next: Option<&FastBlock>,
    width: usize,
    count: usize,
    weights: &[Codes],
    scales: &[(f32, i32)],
    out: &mut [f32],
) {
    let weights = weights.first_chunk::<HEADS>().expect("weights for each head");
    for pair in 0..width.div_ceil(32) {
        let (values, rest) = block.values[64 * 2 * FOURS * pair..].split_at(64 * 2 * FOURS);
        let values = both(values, FOURS, 0).map(|values| &values.as_chunks().0[..count.div_ceil(4)]);
        let ahead = match next {
            Some(next) if rest.is_empty() => both(&next.keys, width.div_ceil(4), 0),
            _ => both(rest, FOURS, 0),
        };
        let sums = pair_sums(simd, values, weights, ahead, no_sums::<S, HEADS>(simd));
        let out = out.chunks_exact_mut(width);
        for ((sums, &(scale, code_sum)), out) in sums.into_iter().zip(scales).zip(out) {
            for (sum, out) in sums.into_iter().zip(out[32 * pair..].chunks_mut(16)) {
                let sum = simd.float(without_offset(simd, sum, code_sum));
                store_part(simd, simd.mul(sum, simd.splat(scale)), out);
            }
        }
    }
}

/// The sum of all lanes.
#[inline(always)]
fn total<S: Simd>(simd: S, sums: S::I) -> i32 {
    let mut lanes = [0; 16];
    simd.int_store(sums, &mut lanes);
    lanes.iter().sum()
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
    fn later_positions_and_instruction_sets_change_no_bit() {
        let (width, heads) = (48, 3);
        let queries = numbers(heads * width, 0.53);
        for mode in [Mode::Exact, Mode::Fast] {
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
            for together in [1, 2, 4, 8] {
                let mut results = vec![SpanResult::default(); 11_usize.div_ceil(together)];
                for (run, result) in results.iter_mut().enumerate().rev() {
                    let spans = run * together..11.min((run + 1) * together);
                    attend_spans(isa, &cache, positions, &queries, spans, result);
                }
                join_spans(isa, &mut results, width, &mut got);
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
