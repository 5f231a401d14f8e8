//! Attention over a cache that keeps keys and values in eight bits with one scale for each position.
//!
//! Queries and softmax weights get fifteen, so the cache's own rounding is all that is lost. The lower four bits of
//! values lie apart from the upper ones and are read only where a weight is large enough for them to matter: a long
//! context costs three eighths of the memory traffic of a half-float cache, or half where attention is sharp everywhere.

use crate::elementwise::{largest, largest_magnitude, padded, store_part};
use crate::halves::split;
use crate::head_cache::{FastBlock, SPAN};
use crate::simd::Simd;

use super::{Scratch, SpanWeights};

/// The largest code: sums over 512 columns, or twice [`SPAN`] positions, fit 32 bits.
const STEPS: f32 = 127.0 * 128.0;

/// Codes of fifteen bits as [`Simd::repeat_arranged`] takes them, four at a time.
pub(super) type Codes = [[[i8; 4]; SPAN / 4]; 2];

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
pub(super) fn prepare_queries<S: Simd>(simd: S, queries: &[f32], width: usize, scratch: &mut Scratch) {
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
pub(super) fn scores<S: Simd>(
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

/// Adds to `sums` the products of two vectors of codes with word `four` of the factors of `HEADS` query heads: each vector
/// is loaded once for all of them, each factor once for both vectors, and no sum waits for itself.
#[inline(always)]
fn add_pair<S: Simd, const HEADS: usize>(
    simd: S,
    [a, b]: [S::B; 2],
    factors: &[Codes; HEADS],
    four: usize,
    sums: &mut [[S::Sum; 2]; HEADS],
) {
    for (sums, [first, second]) in sums.iter_mut().zip(factors) {
        let factor = simd.repeat_arranged(first[four], second[four]);
        sums[0] = simd.add_products(sums[0], a, factor);
        sums[1] = simd.add_products(sums[1], b, factor);
    }
}

/// Adds to `sums` the products of two runs of at most [`FOURS`] vectors of codes with the factors of `HEADS` query heads.
/// As many lines of each part of `ahead` are asked for.
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
        add_pair(simd, [a, b], factors, four, &mut sums);
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
pub(super) fn prepare_weights<S: Simd>(
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
pub(super) fn values<S: Simd>(
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
        add_pair(simd, [a, b], factors, four, &mut sums);
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
