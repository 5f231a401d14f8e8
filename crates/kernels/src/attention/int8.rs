//! Attention over the INT8 cache, whose keys and values have one scale per position.
//!
//! Queries and softmax weights are quantized to 15 bits, so the rounding of the cache dominates the error. The low four bits
//! of the values are stored apart from the high ones and read only where a weight is large enough for them to matter: a long
//! context costs three eighths of the memory traffic of an f16 cache, or half where attention is sharp everywhere.

use crate::elementwise::{max_magnitude, max_value, store_partial, zero_padded};
use crate::int16_split::split_i16;
use crate::kv_cache::{Int8Block, KV_BLOCK};
use crate::simd::Simd;

use super::{BlockWeights, Scratch};

/// Largest magnitude of a code: sums over 512 columns, or twice [`KV_BLOCK`] positions, fit 32 bits.
const MAX_CODE: f32 = 127.0 * 128.0;

/// 15-bit codes in two halves, packed for [`Simd::broadcast_activations`] four at a time.
pub(super) type Codes = [[[i8; 4]; KV_BLOCK / 4]; 2];

const ZERO_CODES: Codes = [[[0; 4]; KV_BLOCK / 4]; 2];

/// Scale of 15-bit codes for magnitudes up to `largest`, and its inverse.
fn code_scale(largest: f32) -> (f32, f32) {
    if largest > 1e-30 { (largest / MAX_CODE, MAX_CODE / largest) } else { (0.0, 0.0) }
}

/// Quantizes at most [`KV_BLOCK`] numbers and packs their codes; returns the sum of the codes.
#[inline(always)]
fn quantize<S: Simd>(simd: S, numbers: &[f32], inverse: f32, codes: &mut Codes) -> i32 {
    let [upper, lower] = codes;
    let (upper, lower) =
        (upper.as_flattened_mut().as_chunks_mut().0, lower.as_flattened_mut().as_chunks_mut().0);
    let (vectors, rest) = numbers.as_chunks();
    let mut sums = split_i16(simd, false, vectors, inverse, upper, lower);
    if !rest.is_empty() {
        let (upper, lower) = (&mut upper[vectors.len()..], &mut lower[vectors.len()..]);
        sums = simd.int_add(sums, split_i16(simd, false, &[zero_padded(rest)], inverse, upper, lower));
    }
    let (upper, lower) =
        (upper.as_flattened_mut().as_chunks_mut().0, lower.as_flattened_mut().as_chunks_mut().0);
    for (upper, lower) in upper.iter_mut().zip(lower).take(numbers.len().div_ceil(64)) {
        simd.pack_activations(upper, lower);
    }
    total(simd, sums)
}

/// Quantizes the queries [heads, width] to `scratch`.
#[inline(always)]
pub(super) fn quantize_queries<S: Simd>(simd: S, queries: &[f32], width: usize, scratch: &mut Scratch) {
    let heads = queries.len() / width;
    scratch.queries.resize(width.div_ceil(KV_BLOCK) * heads, ZERO_CODES);
    scratch.query_scales.clear();
    for (head, query) in queries.chunks_exact(width).enumerate() {
        let largest = max_magnitude(simd, query);
        let (scale, inverse) = code_scale(largest);
        let mut code_sum = 0;
        for (part, numbers) in query.chunks(KV_BLOCK).enumerate() {
            code_sum += quantize(simd, numbers, inverse, &mut scratch.queries[part * heads + head]);
        }
        scratch.query_scales.push((scale / (width as f32).sqrt(), code_sum));
    }
}

/// Number of the next query heads, of `left`, that pass over the cache together.
#[inline(always)]
fn heads_per_pass<S: Simd>(left: usize) -> usize {
    match left.min(S::QUERY_HEADS_PER_PASS) {
        4.. => 4,
        2.. => 2,
        _ => 1,
    }
}

/// Scores of the first `count` positions of a block for all heads, to `scratch.scores` [heads, KV_BLOCK]. `next` is read
/// after the block's keys and prefetched.
#[inline(always)]
pub(super) fn scores<S: Simd>(
    simd: S,
    block: &Int8Block,
    next: &[u8],
    width: usize,
    count: usize,
    scratch: &mut Scratch,
) {
    let Scratch { scores, queries, query_scales, .. } = scratch;
    let (mut head, heads) = (0, query_scales.len());
    while head < heads {
        let queries = Queries { codes: &queries[head..], heads, scales: &query_scales[head..] };
        let out = &mut scores[head * KV_BLOCK..];
        let pass = heads_per_pass::<S>(heads - head);
        match pass {
            4 => score_heads::<S, 4>(simd, block, next, width, count, queries, out),
            2 => score_heads::<S, 2>(simd, block, next, width, count, queries, out),
            _ => score_heads::<S, 1>(simd, block, next, width, count, queries, out),
        }
        head += pass;
    }
}

/// Quantized queries from some head on.
#[derive(Clone, Copy)]
struct Queries<'a> {
    /// [chunks of KV_BLOCK columns][heads]
    codes: &'a [Codes],
    heads: usize,
    /// Scale and sum of the codes of each head.
    scales: &'a [(f32, i32)],
}

/// [`scores`] of the first `HEADS` queries, to `out` [HEADS, KV_BLOCK]; `count` is rounded up to pairs of vectors.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn score_heads<S: Simd, const HEADS: usize>(
    simd: S,
    block: &Int8Block,
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
        let mut sums = zero_sums::<S, HEADS>(simd);
        for from in (0..fours).step_by(VECTORS_PER_CALL) {
            let count = VECTORS_PER_CALL.min(fours - from);
            let keys = two_streams(keys, fours, from).map(|keys| &keys.as_chunks().0[..count]);
            let codes = &queries.codes[from * 4 / KV_BLOCK * queries.heads..];
            let codes = codes.first_chunk().expect("codes for each head");
            sums = pair_sums(simd, keys, codes, two_streams(next, fours, from), sums);
        }
        for (head, (sums, &(scale, code_sum))) in sums.into_iter().zip(queries.scales).enumerate() {
            for (side, sum) in sums.into_iter().enumerate() {
                let at = 32 * pair + 16 * side;
                let key_scales = simd.load(block.key_scales[at..].first_chunk().expect("sixteen positions"));
                let out = out[head * KV_BLOCK + at..].first_chunk_mut().expect("scores of a whole block");
                let sum = simd.to_f32(without_offset(simd, sum, code_sum));
                simd.store(simd.mul(simd.mul(sum, key_scales), simd.splat(scale)), out);
            }
        }
    }
}

/// Products of cache codes, to which 128 was added, with codes whose sum is `code_sum`, less those of the 128.
#[inline(always)]
fn without_offset<S: Simd>(simd: S, sum: S::Dot, code_sum: i32) -> S::I32 {
    simd.int_sub(simd.dot_to_i32(sum), simd.int_splat((128 - S::CODE_OFFSET) * code_sum))
}

#[inline(always)]
fn zero_sums<S: Simd, const HEADS: usize>(simd: S) -> [[S::Dot; 2]; HEADS] {
    [[simd.zero_dot(); 2]; HEADS]
}

/// Code vectors per call of the inner loops: the positions of a KV block, four per vector, or as many quads of columns.
const VECTORS_PER_CALL: usize = KV_BLOCK / 4;

/// Adds to `sums` the products of two code vectors with word `four` of the factors of `HEADS` query heads. Each vector is
/// loaded once for all heads, each factor is broadcast once for both vectors, and no accumulator depends on its predecessor.
#[inline(always)]
fn add_pair<S: Simd, const HEADS: usize>(
    simd: S,
    [a, b]: [S::U8; 2],
    factors: &[Codes; HEADS],
    four: usize,
    sums: &mut [[S::Dot; 2]; HEADS],
) {
    for (sums, [first, second]) in sums.iter_mut().zip(factors) {
        let factor = simd.broadcast_activations(first[four], second[four]);
        sums[0] = simd.add_dot(sums[0], a, factor);
        sums[1] = simd.add_dot(sums[1], b, factor);
    }
}

/// Adds to `sums` the products of two streams of at most [`VECTORS_PER_CALL`] code vectors with the factors of `HEADS` query
/// heads, and prefetches as many cache lines of both streams of `ahead`.
#[inline(always)]
fn pair_sums<S: Simd, const HEADS: usize>(
    simd: S,
    [left, right]: [&[[u8; 64]]; 2],
    factors: &[Codes; HEADS],
    ahead: [&[u8]; 2],
    sums: [[S::Dot; 2]; HEADS],
) -> [[S::Dot; 2]; HEADS] {
    let mut sums = sums;
    let count = left.len();
    assert!(right.len() == count && count <= VECTORS_PER_CALL, "two streams of {count} vectors");
    for four in 0..count {
        simd.prefetch_l2(ahead[0], 64 * four);
        simd.prefetch_l2(ahead[1], 64 * four);
        let (a, b) = (simd.load_bytes(&left[four]), simd.load_bytes(&right[four]));
        add_pair(simd, [a, b], factors, four, &mut sums);
    }
    sums
}

/// Splits `codes` into its first two streams of `stride` vectors and skips the first `from` of each.
#[inline(always)]
fn two_streams(codes: &[u8], stride: usize, from: usize) -> [&[u8]; 2] {
    [codes.get(64 * from..), codes.get(64 * (stride + from)..)].map(Option::unwrap_or_default)
}

/// Quantizes the weights in `scores` [heads, KV_BLOCK], each times the scale of its value.
#[inline(always)]
pub(super) fn quantize_weights<S: Simd>(
    simd: S,
    block: &Int8Block,
    count: usize,
    scores: &mut [f32],
    weights: &mut BlockWeights,
) {
    weights.codes.resize(scores.len() / KV_BLOCK, ZERO_CODES);
    weights.scales.clear();
    for (scores, codes) in scores.chunks_exact_mut(KV_BLOCK).zip(&mut weights.codes) {
        let scores = &mut scores[..count.next_multiple_of(16)];
        for (score, scale) in scores.iter_mut().zip(&block.value_scales) {
            *score *= scale;
        }
        let (scale, inverse) = code_scale(max_value(simd, scores));
        weights.scales.push((scale, quantize(simd, scores, inverse, codes)));
    }
}

impl BlockWeights {
    /// True if a position has so much weight that its value is needed in all eight bits. If not, values of four bits are off
    /// by up to half of their steps, sixteen times as much as with eight; but for probabilities p of at most 1 / 256 the root
    /// mean square error of the weighted sum is sqrt(sum p^2) <= 1 / 16 of one value's, no more than the error of eight bits
    /// where one position has all the weight.
    fn needs_low_nibbles(&self) -> bool {
        self.max_probability.iter().any(|&p| p > 1.0 / 256.0)
    }
}

/// Weighted sums of a block's first `count` values for all heads, to `out` [heads, width]; the values of `next` are
/// prefetched.
#[inline(always)]
pub(super) fn values<S: Simd>(
    simd: S,
    (block, weights): (&Int8Block, &BlockWeights),
    next: Option<(&Int8Block, &BlockWeights)>,
    width: usize,
    count: usize,
    out: &mut [f32],
) {
    let values = Values::new(block, weights);
    let next = next.map(|(block, weights)| Values::new(block, weights));
    if values.lower.is_empty() {
        accumulate_passes::<S, false>(simd, values, next, width, count, weights, out);
    } else {
        accumulate_passes::<S, true>(simd, values, next, width, count, weights, out);
    }
}

/// Values of a block in the layout of [`Int8Block`].
#[derive(Clone, Copy)]
struct Values<'a> {
    upper: &'a [u8],
    /// Empty if the upper nibbles suffice.
    lower: &'a [u8],
}

impl<'a> Values<'a> {
    fn new(block: &'a Int8Block, weights: &BlockWeights) -> Self {
        let lower = if weights.needs_low_nibbles() { &block.lower_values[..] } else { &[] };
        Self { upper: &block.upper_values, lower }
    }
}

#[inline(always)]
fn accumulate_passes<S: Simd, const WHOLE: bool>(
    simd: S,
    values: Values<'_>,
    next: Option<Values<'_>>,
    width: usize,
    count: usize,
    weights: &BlockWeights,
    out: &mut [f32],
) {
    let (mut head, all) = (0, weights.max_probability.len());
    while head < all {
        let heads = heads_per_pass::<S>(all - head);
        let out = &mut out[head * width..][..heads * width];
        match heads {
            4 => accumulate_heads::<S, 4, WHOLE>(simd, values, next, width, count, weights, head, out),
            2 => accumulate_heads::<S, 2, WHOLE>(simd, values, next, width, count, weights, head, out),
            _ => accumulate_heads::<S, 1, WHOLE>(simd, values, next, width, count, weights, head, out),
        }
        head += heads;
    }
}

/// Prefetch distance of the values, in pairs of vectors; same number of cache lines as for keys.
const PREFETCH_PAIRS: usize = 2;

/// [`values`] for `HEADS` query heads from `head` on, to `out` [HEADS, width].
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn accumulate_heads<S: Simd, const HEADS: usize, const WHOLE: bool>(
    simd: S,
    values: Values<'_>,
    next: Option<Values<'_>>,
    width: usize,
    count: usize,
    weights: &BlockWeights,
    head: usize,
    out: &mut [f32],
) {
    let codes = weights.codes[head..].first_chunk::<HEADS>().expect("weights for each head");
    let pairs = width.div_ceil(32);
    for pair in 0..pairs {
        let (ahead, at) = match next {
            Some(next) if pair + PREFETCH_PAIRS >= pairs => {
                (next, (pair + PREFETCH_PAIRS - pairs).min(pairs - 1))
            }
            _ => (values, pair + PREFETCH_PAIRS),
        };
        let ahead = [ahead.upper, ahead.lower]
            .map(|values| values.get(64 * VECTORS_PER_CALL * at..).unwrap_or_default());
        let upper = &values.upper.as_chunks::<64>().0[VECTORS_PER_CALL * pair..][..count.div_ceil(4)];
        let lower = if WHOLE {
            &values.lower.as_chunks::<64>().0[VECTORS_PER_CALL * pair..][..upper.len()]
        } else {
            upper
        };
        let sums = nibble_sums::<S, HEADS, WHOLE>(simd, upper, lower, codes, ahead);
        let of_heads = weights.scales[head..].iter().zip(&weights.max_probability[head..]);
        for ((sums, (&(scale, code_sum), probability)), out) in
            sums.into_iter().zip(of_heads).zip(out.chunks_exact_mut(width))
        {
            // Midpoint of the dropped 4 low bits (7.5 of 0..=15).
            let middle = simd.splat(if WHOLE { 0.0 } else { 7.5 * code_sum as f32 });
            for (sum, out) in sums.into_iter().zip(out[32 * pair..].chunks_mut(16)) {
                let sum = simd.add(simd.to_f32(without_offset(simd, sum, code_sum)), middle);
                store_partial(simd, simd.mul(sum, simd.splat(scale * probability)), out);
            }
        }
    }
}

/// Sums of products of the two code vectors per cache line with the factors of `HEADS` query heads. `lower` is read only if
/// `WHOLE`; otherwise the low nibbles are zero. Prefetches as many lines of both streams of `ahead`, as far as they exist.
#[inline(always)]
fn nibble_sums<S: Simd, const HEADS: usize, const WHOLE: bool>(
    simd: S,
    upper: &[[u8; 64]],
    lower: &[[u8; 64]],
    factors: &[Codes; HEADS],
    ahead: [&[u8]; 2],
) -> [[S::Dot; 2]; HEADS] {
    let mut sums = zero_sums::<S, HEADS>(simd);
    let count = upper.len();
    assert!(lower.len() == count && count <= VECTORS_PER_CALL, "streams of {count} vectors");
    let high_bits = simd.int_splat(0xf0f0_f0f0_u32 as i32);
    for four in 0..count {
        simd.prefetch_l2(ahead[0], 64 * four);
        if !ahead[1].is_empty() {
            simd.prefetch_l2(ahead[1], 64 * four);
        }
        let both = simd.load_bytes(&upper[four]);
        let mut a = simd.int_shl::<4>(simd.as_words(simd.low_nibbles(both)));
        let mut b = simd.int_and(simd.as_words(both), high_bits);
        if WHOLE {
            let both = simd.load_bytes(&lower[four]);
            a = simd.int_add(a, simd.as_words(simd.low_nibbles(both)));
            b = simd.int_add(b, simd.as_words(simd.high_nibbles(both)));
        }
        let (a, b) = (simd.as_bytes(a), simd.as_bytes(b));
        add_pair(simd, [a, b], factors, four, &mut sums);
    }
    sums
}

/// Sum of all lanes.
#[inline(always)]
fn total<S: Simd>(simd: S, sums: S::I32) -> i32 {
    let mut lanes = [0; 16];
    simd.int_store(sums, &mut lanes);
    lanes.iter().sum()
}
