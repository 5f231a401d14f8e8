//! Softmax attention of one key/value head over its cache.
//!
//! Keys are taken in spans of [`SPAN`] positions counted from the start of the sequence. Each span gives weights, their
//! largest score and their sum; once those of all spans are known, each gives a sum of its values. The sums are added two
//! neighbours at a time, again and again. So an output does not depend on how tokens were cut into pieces, and in decode
//! runs of spans may go to different threads, each of which adds up its own while they are in its caches.
//!
//! The exact cache keeps f32. The fast one keeps keys and values in eight bits with one scale for each position:
//! queries and softmax weights get fifteen, so the cache's own rounding is all that is lost. The lower four bits of
//! values lie apart from the upper ones and are read only where a weight is large enough for them to matter: a long
//! context costs three eighths of the memory traffic of a half-float cache, or half where attention is sharp everywhere.

use std::cell::RefCell;
use std::ops::Range;

use crate::elementwise::{exp, largest, largest_magnitude, load_part, padded, store_part};
use crate::halves::split;
use crate::head_cache::{Blocks, ExactBlock, FastBlock, HeadCache, SPAN};
use crate::simd::{Isa, Kernel, Simd};

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
            prepare_queries(simd, queries, width, scratch);
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
                    fast_scores(simd, block, next, width, count, scratch);
                    soften(simd, count, &mut scratch.scores, weights);
                    prepare_weights(simd, block, count, &mut scratch.scores, weights);
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
                    fast_values(simd, (&all[span], own), next, width, count, sum);
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
fn fast_scores<S: Simd>(
    simd: S,
    block: &FastBlock,
    next: &[u8],
    width: usize,
    count: usize,
    scratch: &mut Scratch,
) {
    let Scratch { scores, queries, query_scales, .. } = scratch;
    let (mut head, heads) = (0, query_scales.len());
    while head < heads {
        let queries = Queries { codes: &queries[head..], heads, scales: &query_scales[head..] };
        let out = &mut scores[head * SPAN..];
        let together = heads_together::<S>(heads - head);
        match together {
            4 => scores_of::<S, 4>(simd, block, next, width, count, queries, out),
            2 => scores_of::<S, 2>(simd, block, next, width, count, queries, out),
            _ => scores_of::<S, 1>(simd, block, next, width, count, queries, out),
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
/// `next` is needed after the block's keys.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn scores_of<S: Simd, const HEADS: usize>(
    simd: S,
    block: &FastBlock,
    next: &[u8],
    width: usize,
    count: usize,
    queries: Queries<'_>,
    out: &mut [f32],
) {
    let fours = width.div_ceil(4);
    for pair in 0..count.div_ceil(32) {
        let (keys, rest) = block.keys[64 * 2 * fours * pair..].split_at(64 * 2 * fours);
        let next = if rest.is_empty() { next } else { rest };
        let mut sums = no_sums::<S, HEADS>(simd);
        for from in (0..fours).step_by(FOURS) {
            let count = FOURS.min(fours - from);
            let keys = both(keys, fours, from).map(|keys| &keys.as_chunks().0[..count]);
            let codes = &queries.codes[from * 4 / SPAN * queries.heads..];
            let codes = codes.first_chunk().expect("codes for each head");
            sums = pair_sums(simd, keys, codes, both(next, fours, from), sums);
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

/// Codes of the weights `scores` [heads, SPAN], each times the scale of its value.
#[inline(always)]
fn prepare_weights<S: Simd>(
    simd: S,
    block: &FastBlock,
    count: usize,
    scores: &mut [f32],
    weights: &mut SpanWeights,
) {
    weights.codes.resize(scores.len() / SPAN, NO_CODES);
    weights.scales.clear();
    for (scores, codes) in scores.chunks_exact_mut(SPAN).zip(&mut weights.codes) {
        let scores = &mut scores[..count.next_multiple_of(16)];
        for (score, scale) in scores.iter_mut().zip(&block.value_scales) {
            *score *= scale;
        }
        let (scale, inverse) = steps_of(largest(simd, scores));
        weights.scales.push((scale, fill(simd, scores, inverse, codes)));
    }
}

impl SpanWeights {
    /// Whether a position counts for so much that its value is needed in all eight bits. Where none does, those of the
    /// upper four bits are off by up to half of their steps, sixteen times as much as eight bits are; but with weights
    /// p of at most 1 / 256 the root mean square of their sum's error is sqrt(sum p^2) <= 1 / 16 of one value's, and so no
    /// more than what eight bits lose where one position has all the weight.
    fn needs_whole_values(&self) -> bool {
        self.share.iter().any(|&share| share > 1.0 / 256.0)
    }
}

/// Weighted sums of a span's `count` values for all heads, to `out` [heads, width]; `next` comes after it.
#[inline(always)]
fn fast_values<S: Simd>(
    simd: S,
    (block, weights): (&FastBlock, &SpanWeights),
    next: Option<(&FastBlock, &SpanWeights)>,
    width: usize,
    count: usize,
    out: &mut [f32],
) {
    let values = Values::new(block, weights);
    let next = next.map(|(block, weights)| Values::new(block, weights));
    if values.lower.is_empty() {
        values_of_heads::<S, false>(simd, values, next, width, count, weights, out);
    } else {
        values_of_heads::<S, true>(simd, values, next, width, count, weights, out);
    }
}

/// Values of a span, as [`FastBlock`] has them.
#[derive(Clone, Copy)]
struct Values<'a> {
    upper: &'a [u8],
    /// Empty where the upper bits are enough.
    lower: &'a [u8],
}

impl<'a> Values<'a> {
    fn new(block: &'a FastBlock, weights: &SpanWeights) -> Self {
        let lower = if weights.needs_whole_values() { &block.lower_values[..] } else { &[] };
        Self { upper: &block.upper_values, lower }
    }
}

#[inline(always)]
fn values_of_heads<S: Simd, const WHOLE: bool>(
    simd: S,
    values: Values<'_>,
    next: Option<Values<'_>>,
    width: usize,
    count: usize,
    weights: &SpanWeights,
    out: &mut [f32],
) {
    let (mut head, all) = (0, weights.share.len());
    while head < all {
        let heads = heads_together::<S>(all - head);
        let out = &mut out[head * width..][..heads * width];
        match heads {
            4 => values_of::<S, 4, WHOLE>(simd, values, next, width, count, weights, head, out),
            2 => values_of::<S, 2, WHOLE>(simd, values, next, width, count, weights, head, out),
            _ => values_of::<S, 1, WHOLE>(simd, values, next, width, count, weights, head, out),
        }
        head += heads;
    }
}

/// How many runs of lines before their use values are asked for: as many lines as of keys.
const PAIRS_AHEAD: usize = 2;

/// Weighted sums of `count` values for `HEADS` query heads from `head` on, to `out` [HEADS, width]. `next` are needed after
/// them.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn values_of<S: Simd, const HEADS: usize, const WHOLE: bool>(
    simd: S,
    values: Values<'_>,
    next: Option<Values<'_>>,
    width: usize,
    count: usize,
    weights: &SpanWeights,
    head: usize,
    out: &mut [f32],
) {
    let codes = weights.codes[head..].first_chunk::<HEADS>().expect("weights for each head");
    let pairs = width.div_ceil(32);
    for pair in 0..pairs {
        let (ahead, at) = match next {
            Some(next) if pair + PAIRS_AHEAD >= pairs => (next, (pair + PAIRS_AHEAD - pairs).min(pairs - 1)),
            _ => (values, pair + PAIRS_AHEAD),
        };
        let ahead =
            [ahead.upper, ahead.lower].map(|values| values.get(64 * FOURS * at..).unwrap_or_default());
        let upper = &values.upper.as_chunks::<64>().0[FOURS * pair..][..count.div_ceil(4)];
        let lower =
            if WHOLE { &values.lower.as_chunks::<64>().0[FOURS * pair..][..upper.len()] } else { upper };
        let sums = nibble_sums::<S, HEADS, WHOLE>(simd, upper, lower, codes, ahead);
        let of_heads = weights.scales[head..].iter().zip(&weights.share[head..]);
        for ((sums, (&(scale, code_sum), share)), out) in
            sums.into_iter().zip(of_heads).zip(out.chunks_exact_mut(width))
        {
            // In the middle of the sixteen codes that a value's upper bits may stand for.
            let middle = simd.splat(if WHOLE { 0.0 } else { 7.5 * code_sum as f32 });
            for (sum, out) in sums.into_iter().zip(out[32 * pair..].chunks_mut(16)) {
                let sum = simd.add(simd.float(without_offset(simd, sum, code_sum)), middle);
                store_part(simd, simd.mul(sum, simd.splat(scale * share)), out);
            }
        }
    }
}

/// Sums of products of two vectors of codes a line with the factors of `HEADS` query heads. `lower` is used where the
/// codes are wanted `WHOLE`; else their lower bits are zeros. As many lines of each part of `ahead` that there is are
/// asked for.
#[inline(always)]
fn nibble_sums<S: Simd, const HEADS: usize, const WHOLE: bool>(
    simd: S,
    upper: &[[u8; 64]],
    lower: &[[u8; 64]],
    factors: &[Codes; HEADS],
    ahead: [&[u8]; 2],
) -> [[S::Sum; 2]; HEADS] {
    let mut sums = no_sums::<S, HEADS>(simd);
    let count = upper.len();
    assert!(lower.len() == count && count <= FOURS, "runs of {count} vectors");
    let high_bits = simd.int_splat(0xf0f0_f0f0_u32 as i32);
    for four in 0..count {
        simd.prefetch(ahead[0], 64 * four);
        if !ahead[1].is_empty() {
            simd.prefetch(ahead[1], 64 * four);
        }
        let both = simd.load_bytes(&upper[four]);
        let mut a = simd.int_shl::<4>(simd.words(simd.low_nibbles(both)));
        let mut b = simd.int_and(simd.words(both), high_bits);
        if WHOLE {
            let both = simd.load_bytes(&lower[four]);
            a = simd.int_add(a, simd.words(simd.low_nibbles(both)));
            b = simd.int_add(b, simd.words(simd.high_nibbles(both)));
        }
        let (a, b) = (simd.bytes(a), simd.bytes(b));
        for (sums, factors) in sums.iter_mut().zip(factors) {
            let [first, second] = factors;
            let factor = simd.repeat_arranged(first[four], second[four]);
            sums[0] = simd.add_products(sums[0], a, factor);
            sums[1] = simd.add_products(sums[1], b, factor);
        }
    }
    sums
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
