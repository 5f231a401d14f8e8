//! Softmax attention of one key/value head over its cache.
//!
//! Keys are taken in spans of [`SPAN`] positions counted from the start of the sequence. Each span gives a largest
//! score, a sum and a weighted sum of values; spans are joined in order. So an output does not depend on how tokens
//! were cut into pieces, and in decode spans may run on different threads.
//!
//! The exact cache keeps f32. The fast one keeps keys and values in eight bits with one scale for each position:
//! queries and softmax weights get fifteen, so the cache's own rounding is all that is lost, and a long context costs
//! half of the memory traffic of a half-float cache.

use std::cell::RefCell;

use crate::aligned::Aligned;
use crate::elementwise::{exp, largest, load_part, padded, store_part};
use crate::halves::{STEPS, split};
use crate::input::Mode;
use crate::simd::{Isa, Kernel, Simd};

/// Positions in one span.
pub const SPAN: usize = 256;

/// Positions in one block of a cache.
pub const BLOCK: usize = 64;

/// Keys and values of one head, in blocks that are added as the sequence grows.
#[derive(Clone, Debug)]
pub struct HeadCache {
    width: usize,
    blocks: Blocks,
}

#[derive(Clone, Debug)]
enum Blocks {
    Exact(Vec<ExactBlock>),
    Fast(Vec<FastBlock>),
}

#[derive(Clone, Debug)]
struct ExactBlock {
    /// [BLOCK, width]
    keys: Aligned<f32>,
    /// [BLOCK, width]
    values: Aligned<f32>,
}

#[derive(Clone, Debug)]
struct FastBlock {
    /// [BLOCK, width rounded up to 64], 128 added.
    keys: Aligned<u8>,
    /// [width rounded up to 16, in vectors][BLOCK / 4][16][4]: four positions of sixteen columns in a vector, 128 added.
    values: Aligned<u8>,
    key_scales: [f32; BLOCK],
    value_scales: [f32; BLOCK],
}

/// Codes of zeros, 128 added.
fn zero_codes(count: usize) -> Aligned<u8> {
    let mut codes = Aligned::zeros(count);
    codes.fill(128);
    codes
}

impl HeadCache {
    /// An empty cache for heads of `width`.
    pub fn new(mode: Mode, width: usize) -> Self {
        let blocks = match mode {
            Mode::Exact => Blocks::Exact(Vec::new()),
            Mode::Fast => Blocks::Fast(Vec::new()),
        };
        Self { width, blocks }
    }

    /// Bytes of one block.
    fn block_bytes(&self) -> usize {
        match self.blocks {
            Blocks::Exact(_) => 8 * BLOCK * self.width,
            Blocks::Fast(_) => {
                BLOCK * (self.width.next_multiple_of(64) + self.width.next_multiple_of(16) + 8)
            }
        }
    }

    /// Bytes held.
    pub fn size_bytes(&self) -> usize {
        let count = match &self.blocks {
            Blocks::Exact(blocks) => blocks.len(),
            Blocks::Fast(blocks) => blocks.len(),
        };
        count * self.block_bytes()
    }

    /// Makes room for positions below `positions`.
    pub fn reserve(&mut self, positions: usize) {
        let (count, width) = (positions.div_ceil(BLOCK), self.width);
        match &mut self.blocks {
            Blocks::Exact(blocks) => {
                while blocks.len() < count {
                    let zeros = || Aligned::zeros(BLOCK * width);
                    blocks.push(ExactBlock { keys: zeros(), values: zeros() });
                }
            }
            Blocks::Fast(blocks) => {
                while blocks.len() < count {
                    blocks.push(FastBlock {
                        keys: zero_codes(BLOCK * width.next_multiple_of(64)),
                        values: zero_codes(BLOCK * width.next_multiple_of(16)),
                        key_scales: [0.0; BLOCK],
                        value_scales: [0.0; BLOCK],
                    });
                }
            }
        }
    }

    /// Forgets all positions; memory is kept.
    pub fn clear(&mut self) {
        self.clear_from(0);
    }

    fn clear_from(&mut self, block: usize) {
        match &mut self.blocks {
            Blocks::Exact(blocks) => {
                for block in blocks.iter_mut().skip(block) {
                    block.keys.fill(0.0);
                    block.values.fill(0.0);
                }
            }
            Blocks::Fast(blocks) => {
                for block in blocks.iter_mut().skip(block) {
                    block.keys.fill(128);
                    block.values.fill(128);
                    block.key_scales.fill(0.0);
                    block.value_scales.fill(0.0);
                }
            }
        }
    }

    /// Writes one position, for which there is room.
    ///
    /// # Panics
    /// If there is no room, or a vector has another width.
    pub fn write(&mut self, position: usize, key: &[f32], value: &[f32]) {
        let width = self.width;
        assert!(key.len() == width && value.len() == width, "width of keys and values");
        let (block, at) = (position / BLOCK, position % BLOCK);
        match &mut self.blocks {
            Blocks::Exact(blocks) => {
                blocks[block].keys[at * width..][..width].copy_from_slice(key);
                blocks[block].values[at * width..][..width].copy_from_slice(value);
            }
            Blocks::Fast(blocks) => {
                let block = &mut blocks[block];
                let row = &mut block.keys[at * width.next_multiple_of(64)..][..width];
                let (scale, inverse) = scales_of(key);
                block.key_scales[at] = scale;
                for (code, x) in row.iter_mut().zip(key) {
                    *code = (x * inverse).round_ties_even() as i8 as u8 ^ 128;
                }
                let (scale, inverse) = scales_of(value);
                block.value_scales[at] = scale;
                for (column, x) in value.iter().enumerate() {
                    let place = column / 16 * 16 * BLOCK + at / 4 * 64 + column % 16 * 4 + at % 4;
                    block.values[place] = (x * inverse).round_ties_even() as i8 as u8 ^ 128;
                }
            }
        }
    }

    /// Appends the first `positions` positions, as whole blocks of bytes, to `out`.
    pub fn save(&self, positions: usize, out: &mut Vec<u8>) {
        let count = positions.div_ceil(BLOCK);
        match &self.blocks {
            Blocks::Exact(blocks) => {
                for block in &blocks[..count] {
                    out.extend(bytemuck::cast_slice(&block.keys));
                    out.extend(bytemuck::cast_slice(&block.values));
                }
            }
            Blocks::Fast(blocks) => {
                for block in &blocks[..count] {
                    out.extend_from_slice(&block.keys);
                    out.extend_from_slice(&block.values);
                    out.extend(bytemuck::cast_slice(&block.key_scales));
                    out.extend(bytemuck::cast_slice(&block.value_scales));
                }
            }
        }
    }

    /// Bytes that [`HeadCache::save`] appends for as many positions.
    pub fn saved_bytes(&self, positions: usize) -> usize {
        positions.div_ceil(BLOCK) * self.block_bytes()
    }

    /// Takes back what [`HeadCache::save`] wrote for `positions` positions, and forgets all others.
    ///
    /// # Panics
    /// If there are not [`HeadCache::saved_bytes`] bytes.
    pub fn load(&mut self, positions: usize, saved: &[u8]) {
        assert_eq!(saved.len(), self.saved_bytes(positions), "bytes of a saved cache");
        self.reserve(positions);
        self.clear_from(positions.div_ceil(BLOCK));
        let bytes = self.block_bytes();
        match &mut self.blocks {
            Blocks::Exact(blocks) => {
                for (block, saved) in blocks.iter_mut().zip(saved.chunks_exact(bytes)) {
                    let (keys, values) = saved.split_at(bytes / 2);
                    bytemuck::cast_slice_mut(&mut block.keys).copy_from_slice(keys);
                    bytemuck::cast_slice_mut(&mut block.values).copy_from_slice(values);
                }
            }
            Blocks::Fast(blocks) => {
                for (block, saved) in blocks.iter_mut().zip(saved.chunks_exact(bytes)) {
                    let (keys, saved) = saved.split_at(block.keys.len());
                    let (values, saved) = saved.split_at(block.values.len());
                    let (key_scales, value_scales) = saved.split_at(4 * BLOCK);
                    block.keys.copy_from_slice(keys);
                    block.values.copy_from_slice(values);
                    bytemuck::cast_slice_mut(&mut block.key_scales).copy_from_slice(key_scales);
                    bytemuck::cast_slice_mut(&mut block.value_scales).copy_from_slice(value_scales);
                }
            }
        }
    }
}

/// The scale of eight-bit codes for `x`, and its inverse.
fn scales_of(x: &[f32]) -> (f32, f32) {
    let largest = x.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    if largest > 1e-35 { (largest / 127.0, 127.0 / largest) } else { (0.0, 0.0) }
}

/// What one span gives for some query heads.
#[derive(Clone, Debug, Default)]
pub struct SpanResult {
    /// Largest score of each head.
    largest: Vec<f32>,
    /// Sum of e^(score - largest) of each head.
    sum: Vec<f32>,
    /// Values weighted by them [heads, width].
    values: Vec<f32>,
}

impl SpanResult {
    /// Joins the result of the next span.
    fn join(&mut self, next: &Self, width: usize) {
        for (head, values) in self.values.chunks_exact_mut(width).enumerate() {
            let top = self.largest[head].max(next.largest[head]);
            let (old, new) = ((self.largest[head] - top).exp(), (next.largest[head] - top).exp());
            self.largest[head] = top;
            self.sum[head] = self.sum[head] * old + next.sum[head] * new;
            for (value, next) in values.iter_mut().zip(&next.values[head * width..]) {
                *value = *value * old + next * new;
            }
        }
    }
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Work space of a thread.
#[derive(Default)]
struct Scratch {
    /// Scores, then weights [heads, SPAN].
    scores: Vec<f32>,
    /// Upper and lower halves of a query's codes [heads][2][width rounded up to 64].
    queries: Vec<i8>,
    /// Scale of each head's query times that of attention, and sum of its codes.
    query_scales: Vec<(f32, i32)>,
    /// Upper and lower halves of weights' codes [heads][2][SPAN].
    weights: Vec<i8>,
    /// Scale of each head's weights, and sum of their codes.
    weight_scales: Vec<(f32, i32)>,
    result: SpanResult,
}

/// Attends from `queries` [heads, width], normed and rotated, to the first `positions` of `cache`, for query heads
/// that share it: `out` [heads, width] = softmax(q k / sqrt(width)) v.
///
/// # Panics
/// If the cache holds fewer positions, or the sizes do not fit.
pub fn attend(isa: Isa, cache: &HeadCache, positions: usize, queries: &[f32], out: &mut [f32]) {
    let mut results = vec![SpanResult::default(); positions.div_ceil(SPAN)];
    for (span, result) in results.iter_mut().enumerate() {
        attend_span(isa, cache, positions, span, queries, result);
    }
    join_spans(&results, cache.width, out);
}

/// One span of [`attend`]; its spans are `0..positions.div_ceil(SPAN)`.
///
/// # Panics
/// As [`attend`].
pub fn attend_span(
    isa: Isa,
    cache: &HeadCache,
    positions: usize,
    span: usize,
    queries: &[f32],
    result: &mut SpanResult,
) {
    assert!(queries.len().is_multiple_of(cache.width), "[heads, width] queries");
    let first = span * SPAN;
    let count = (positions - first).min(SPAN);
    SCRATCH.with_borrow_mut(|scratch| {
        isa.run(Span { cache, first, count, queries, scratch });
        result.clone_from(&scratch.result);
    });
}

/// Joins the results of all spans, in order, to [`attend`]'s output.
///
/// # Panics
/// If there is none, or `out` has another size.
pub fn join_spans(results: &[SpanResult], width: usize, out: &mut [f32]) {
    let mut all = results[0].clone();
    for next in &results[1..] {
        all.join(next, width);
    }
    assert_eq!(out.len(), all.values.len(), "[heads, width] outputs");
    for ((out, values), sum) in out.chunks_exact_mut(width).zip(all.values.chunks_exact(width)).zip(&all.sum)
    {
        for (out, value) in out.iter_mut().zip(values) {
            *out = value / sum;
        }
    }
}

struct Span<'a> {
    cache: &'a HeadCache,
    first: usize,
    count: usize,
    queries: &'a [f32],
    scratch: &'a mut Scratch,
}

impl Kernel for Span<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { cache, first, count, queries, scratch } = self;
        let width = cache.width;
        let heads = queries.len() / width;
        let blocks = first / BLOCK..(first + count).div_ceil(BLOCK);
        scratch.scores.resize(heads * SPAN, 0.0);
        match &cache.blocks {
            Blocks::Exact(all) => {
                exact_scores(simd, &all[blocks.clone()], width, count, queries, &mut scratch.scores)
            }
            Blocks::Fast(all) => {
                prepare_queries(simd, queries, width, scratch);
                fast_scores(simd, &all[blocks.clone()], width, scratch);
            }
        }
        let Scratch { scores, result, .. } = scratch;
        result.largest.clear();
        result.sum.clear();
        for scores in scores.chunks_exact_mut(SPAN) {
            scores[count..].fill(0.0);
            let top = largest(simd, &scores[..count]);
            let splat = simd.splat(top);
            for vector in scores.as_chunks_mut::<16>().0 {
                simd.store(exp(simd, simd.sub(simd.load(vector), splat)), vector);
            }
            scores[count..].fill(0.0);
            let mut sum = simd.splat(0.0);
            for vector in scores.as_chunks::<16>().0 {
                sum = simd.add(sum, simd.load(vector));
            }
            result.largest.push(top);
            result.sum.push(simd.sum(sum));
        }
        result.values.resize(heads * width, 0.0);
        match &cache.blocks {
            Blocks::Exact(all) => {
                exact_values(simd, &all[blocks], width, count, &scratch.scores, &mut scratch.result.values);
            }
            Blocks::Fast(all) => fast_values(simd, &all[blocks], width, scratch),
        }
    }
}

#[inline(always)]
fn exact_scores<S: Simd>(
    simd: S,
    blocks: &[ExactBlock],
    width: usize,
    count: usize,
    queries: &[f32],
    scores: &mut [f32],
) {
    let scale = 1.0 / (width as f32).sqrt();
    for (at, key) in blocks.iter().flat_map(|block| block.keys.chunks_exact(width)).take(count).enumerate() {
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
    blocks: &[ExactBlock],
    width: usize,
    count: usize,
    weights: &[f32],
    out: &mut [f32],
) {
    for (weights, out) in weights.chunks_exact(SPAN).zip(out.chunks_exact_mut(width)) {
        for (column, out) in out.chunks_mut(64).enumerate() {
            let mut sums = [simd.splat(0.0); 4];
            let rows = blocks.iter().flat_map(|block| block.values.chunks_exact(width));
            for (row, &weight) in rows.zip(&weights[..count]) {
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
}

/// Codes of the queries, their scales and their sums.
#[inline(always)]
fn prepare_queries<S: Simd>(simd: S, queries: &[f32], width: usize, scratch: &mut Scratch) {
    let stride = width.next_multiple_of(64);
    scratch.queries.clear();
    scratch.queries.resize(queries.len() / width * 2 * stride, 0);
    scratch.query_scales.clear();
    for (query, codes) in queries.chunks_exact(width).zip(scratch.queries.chunks_exact_mut(2 * stride)) {
        let largest = query.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
        let inverse = if largest > 1e-30 { STEPS / largest } else { 0.0 };
        let (upper, lower) = codes.split_at_mut(stride);
        let (upper, lower) = (upper.as_chunks_mut().0, lower.as_chunks_mut().0);
        let (vectors, rest) = query.as_chunks();
        let whole = split(simd, vectors, inverse, upper, lower);
        let (upper, lower) = (&mut upper[vectors.len()..], &mut lower[vectors.len()..]);
        let last = split(simd, &[padded(rest)], inverse, upper, lower);
        let scale = if inverse > 0.0 { largest / STEPS } else { 0.0 };
        scratch.query_scales.push((scale / (width as f32).sqrt(), total(simd, simd.int_add(whole, last))));
    }
}

#[inline(always)]
fn fast_scores<S: Simd>(simd: S, blocks: &[FastBlock], width: usize, scratch: &mut Scratch) {
    match width.div_ceil(64) {
        1 => scores_of::<S, 1>(simd, blocks, width, scratch),
        2 => scores_of::<S, 2>(simd, blocks, width, scratch),
        4 => scores_of::<S, 4>(simd, blocks, width, scratch),
        _ => scores_of::<S, 0>(simd, blocks, width, scratch),
    }
}

/// Keys are `VECTORS` vectors of 64 long, or, if that is zero, what `width` says: a number known beforehand keeps the
/// query in registers.
#[inline(always)]
fn scores_of<S: Simd, const VECTORS: usize>(
    simd: S,
    blocks: &[FastBlock],
    width: usize,
    scratch: &mut Scratch,
) {
    let vectors = if VECTORS == 0 { width.div_ceil(64) } else { VECTORS };
    let stride = 64 * vectors;
    let Scratch { scores, queries, query_scales, .. } = scratch;
    for (b, block) in blocks.iter().enumerate() {
        let keys = block.keys.as_chunks::<64>().0;
        for sixteen in 0..BLOCK / 16 {
            let keys = &keys[16 * sixteen * vectors..][..16 * vectors];
            let scales: &[f32; 16] = block.key_scales[16 * sixteen..].first_chunk().expect("a vector");
            let scales = simd.load(scales);
            // Blocks lie apart, so that the hardware does not know what comes next.
            let following = &block.keys[64 * 16 * (sixteen + 1) * vectors..];
            let following = match blocks.get(b + 1) {
                Some(next) if following.is_empty() => &next.keys,
                _ => following,
            };
            for line in 0..16 * vectors {
                simd.prefetch(following, 64 * line);
            }
            for (head, codes) in queries.chunks_exact(2 * stride).enumerate() {
                let (upper, lower) = codes.as_chunks::<64>().0.split_at(vectors);
                let mut quads = [simd.int_splat(0); 4];
                for (quad, keys) in quads.iter_mut().zip(keys.chunks_exact(4 * vectors)) {
                    let mut four = [simd.int_splat(0); 4];
                    for (lanes, key) in four.iter_mut().zip(keys.chunks_exact(vectors)) {
                        let mut sum = simd.begin_sum(*lanes);
                        for ((key, upper), lower) in key.iter().zip(upper).zip(lower) {
                            sum = simd.add_products(sum, simd.load_bytes(key), simd.halves(upper, lower));
                        }
                        *lanes = simd.end_sum(sum);
                    }
                    *quad = simd.int_quad_sums(four);
                }
                let sums = simd.int_pair_quads(
                    simd.int_pair_quads(quads[0], quads[1]),
                    simd.int_pair_quads(quads[2], quads[3]),
                );
                // 128 was added to each code of the key.
                let (scale, code_sum) = query_scales[head];
                let sums = simd.float(simd.int_sub(sums, simd.int_splat(128 * code_sum)));
                let out = &mut scores[head * SPAN + b * BLOCK + 16 * sixteen..];
                let out = out.first_chunk_mut().expect("scores for all blocks of a span");
                simd.store(simd.mul(simd.mul(sums, scales), simd.splat(scale)), out);
            }
        }
    }
}

#[inline(always)]
fn fast_values<S: Simd>(simd: S, blocks: &[FastBlock], width: usize, scratch: &mut Scratch) {
    let Scratch { scores, weights, weight_scales, result, .. } = scratch;
    weights.resize(scores.len() * 2, 0);
    weight_scales.clear();
    for (scores, weights) in scores.chunks_exact_mut(SPAN).zip(weights.chunks_exact_mut(2 * SPAN)) {
        // Each position's own scale goes into its weight.
        for (scores, block) in scores.chunks_exact_mut(BLOCK).zip(blocks) {
            for (score, scale) in scores.iter_mut().zip(&block.value_scales) {
                *score *= scale;
            }
        }
        let scores = &scores[..BLOCK * blocks.len()];
        let top = largest(simd, scores);
        let (scale, inverse) = if top > 1e-30 { (top / STEPS, STEPS / top) } else { (0.0, 0.0) };
        let (upper, lower) = weights.split_at_mut(SPAN);
        let (upper, lower) = (upper.as_chunks_mut().0, lower.as_chunks_mut().0);
        let sums = split(simd, scores.as_chunks().0, inverse, upper, lower);
        weight_scales.push((scale, total(simd, sums)));
    }
    let mut weights = &weights[..];
    let mut scales = &weight_scales[..];
    let mut out = &mut result.values[..];
    while !scales.is_empty() {
        let heads = match scales.len() {
            4.. => 4,
            2.. => 2,
            _ => 1,
        };
        let (own, rest) = out.split_at_mut(heads * width);
        match heads {
            4 => values_of::<S, 4>(simd, blocks, width, weights, scales, own),
            2 => values_of::<S, 2>(simd, blocks, width, weights, scales, own),
            _ => values_of::<S, 1>(simd, blocks, width, weights, scales, own),
        }
        (weights, scales, out) = (&weights[heads * 2 * SPAN..], &scales[heads..], rest);
    }
}

/// The sum of all lanes.
#[inline(always)]
fn total<S: Simd>(simd: S, sums: S::I) -> i32 {
    let mut lanes = [0; 16];
    simd.int_store(sums, &mut lanes);
    lanes.iter().sum()
}

/// Weighted sums of values for `HEADS` query heads, so that each value is loaded once for all of them and no sum waits
/// for itself: `weights` [HEADS][2][SPAN], `scales` [HEADS], `out` [HEADS, width].
#[inline(always)]
fn values_of<S: Simd, const HEADS: usize>(
    simd: S,
    blocks: &[FastBlock],
    width: usize,
    weights: &[i8],
    scales: &[(f32, i32)],
    out: &mut [f32],
) {
    let halves: [_; HEADS] =
        std::array::from_fn(|head| weights[head * 2 * SPAN..][..2 * SPAN].split_at(SPAN));
    for column in 0..width.div_ceil(16) {
        let mut sums = [simd.begin_sum(simd.int_splat(0)); HEADS];
        for (b, block) in blocks.iter().enumerate() {
            let values: &[_; BLOCK / 4] =
                block.values.as_chunks().0[column * BLOCK / 4..].first_chunk().expect("a column of a block");
            // No closure: one that is not inlined spills every sum.
            let mut weights = [(fours(halves[0].0, b), fours(halves[0].1, b)); HEADS];
            for head in 1..HEADS {
                weights[head] = (fours(halves[head].0, b), fours(halves[head].1, b));
            }
            for (four, values) in values.iter().enumerate() {
                // The same positions of the next column.
                simd.prefetch(values, 64 * BLOCK / 4);
                let values = simd.load_bytes(values);
                for (sum, (upper, lower)) in sums.iter_mut().zip(&weights) {
                    *sum = simd.add_products(*sum, values, simd.repeat_halves(upper[four], lower[four]));
                }
            }
        }
        for ((sum, &(scale, code_sum)), out) in sums.into_iter().zip(scales).zip(out.chunks_exact_mut(width))
        {
            // 128 was added to each code of a value.
            let sum = simd.float(simd.int_sub(simd.end_sum(sum), simd.int_splat(128 * code_sum)));
            store_part(simd, simd.mul(sum, simd.splat(scale)), &mut out[16 * column..]);
        }
    }
}

/// The weights of block `b`, four positions at a time.
fn fours(weights: &[i8], b: usize) -> &[[i8; 4]; BLOCK / 4] {
    weights[b * BLOCK..].as_chunks().0.first_chunk().expect("weights for all blocks of a span")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, seed: f32) -> Vec<f32> {
        (0..count).map(|i| ((i as f32 + 1.0) * seed).sin() * 2.0).collect()
    }

    fn filled(mode: Mode, width: usize, positions: usize) -> HeadCache {
        let mut cache = HeadCache::new(mode, width);
        cache.reserve(positions);
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
        for (width, heads) in [(64, 2), (16, 1), (40, 3), (256, 4)] {
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
    fn a_saved_cache_is_the_same_cache() {
        for mode in [Mode::Exact, Mode::Fast] {
            let cache = filled(mode, 24, 130);
            let mut saved = Vec::new();
            cache.save(130, &mut saved);
            let mut loaded = HeadCache::new(mode, 24);
            loaded.load(130, &saved);
            let queries = numbers(24, 0.2);
            let (mut before, mut after) = (vec![0.0; 24], vec![0.0; 24]);
            attend(Isa::detect(), &cache, 130, &queries, &mut before);
            attend(Isa::detect(), &loaded, 130, &queries, &mut after);
            assert_eq!(before, after);
            assert_eq!(loaded.size_bytes(), saved.len());
        }
    }
}
