//! Softmax attention of the query heads that share one key/value head, over its cache.
//!
//! This is split-KV attention as in Flash-Decoding (Dao et al. 2023): keys are scored in KV blocks of [`KV_BLOCK`] positions
//! counted from the start of the sequence, each with its own maximum and sum ([`score_blocks`]); once all blocks are scored,
//! their weights are normalized ([`normalize_blocks`]), each block's values are accumulated ([`accumulate_blocks`]), and the
//! blocks' sums are reduced pairwise ([`reduce_blocks`]). So an output does not depend on how tokens were cut into chunks, and
//! in decode consecutive blocks may be tasks of different threads, each of which reduces its own while they are in its caches.
//!
//! [`exact`] is the arithmetic of the f32 cache, [`int8`] that of the INT8 cache.

mod exact;
mod int8;

use std::cell::RefCell;
use std::ops::Range;

use crate::elementwise::{exp, load_partial, max_value, store_partial};
use crate::kv_cache::{Blocks, KV_BLOCK, KvCache};
use crate::simd::{Isa, Kernel, Simd};

use int8::Codes;

/// Largest number of KV blocks per task, i.e. per call of [`accumulate_blocks`].
pub const BLOCKS_PER_TASK: usize = 8;

/// Unnormalised softmax of one KV block, per query head.
#[derive(Clone, Debug, Default)]
pub struct BlockWeights {
    /// Maximum score [heads].
    max_score: Vec<f32>,
    /// Sum of e^(score - max_score) [heads].
    sum: Vec<f32>,
    /// Softmax probability of the position with the maximum score, over the whole sequence [heads]; set by
    /// [`normalize_blocks`].
    max_probability: Vec<f32>,
    /// e^(score - max_score) [heads, KV_BLOCK], exact cache only.
    exact: Vec<f32>,
    /// Quantized e^(score - max_score) * value scale [heads], INT8 cache only.
    codes: Vec<Codes>,
    /// Scale of the codes and sum of the codes [heads].
    scales: Vec<(f32, i32)>,
}

/// Weighted sum of the values of some KV blocks [heads, width].
pub type BlockSum = Vec<f32>;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
    static WEIGHTS: RefCell<Vec<BlockWeights>> = RefCell::default();
}

/// Scratch buffers of a thread.
#[derive(Default)]
struct Scratch {
    /// Scores, then e^(score - max_score) [heads, KV_BLOCK].
    scores: Vec<f32>,
    /// Quantized queries [width / KV_BLOCK rounded up, heads].
    queries: Vec<Codes>,
    /// Scale of the query times 1 / sqrt(width), and sum of its codes [heads].
    query_scales: Vec<(f32, i32)>,
    /// Sums of the blocks of a task.
    sums: [BlockSum; BLOCKS_PER_TASK],
}

/// Attention of `queries` [heads, width], normed and rotated, over the first `positions` of `cache`:
/// `out` [heads, width] = softmax(q k^T / sqrt(width)) v.
///
/// # Panics
/// If the cache holds fewer positions, or the sizes do not match.
pub fn attend(isa: Isa, cache: &KvCache, positions: usize, queries: &[f32], out: &mut [f32]) {
    let count = positions.div_ceil(KV_BLOCK);
    WEIGHTS.with_borrow_mut(|weights| {
        weights.resize(weights.len().max(count), BlockWeights::default());
        let weights = &mut weights[..count];
        score_blocks(isa, cache, positions, queries, 0, weights);
        normalize_blocks(weights);
        let mut sums = vec![BlockSum::new(); count.div_ceil(BLOCKS_PER_TASK)];
        for (task, sum) in sums.iter_mut().enumerate() {
            let blocks = task * BLOCKS_PER_TASK..count.min((task + 1) * BLOCKS_PER_TASK);
            accumulate_blocks(isa, cache, positions, blocks, weights, sum);
        }
        reduce_blocks(isa, &mut sums, out);
    });
}

/// First step of [`attend`]: scores KV blocks `first..first + weights.len()` of the sequence's
/// `positions.div_ceil(KV_BLOCK)`.
///
/// # Panics
/// As [`attend`].
pub fn score_blocks(
    isa: Isa,
    cache: &KvCache,
    positions: usize,
    queries: &[f32],
    first: usize,
    weights: &mut [BlockWeights],
) {
    assert!(queries.len().is_multiple_of(cache.width), "[heads, width] queries");
    SCRATCH.with_borrow_mut(|scratch| {
        isa.run(ScoreBlocks { cache, positions, queries, first, weights, scratch });
    });
}

/// Second step: sets the largest probability of each block. `weights` are those of all blocks.
pub fn normalize_blocks(weights: &mut [BlockWeights]) {
    let heads = weights.first().map_or(0, |block| block.max_score.len());
    for head in 0..heads {
        let top = weights.iter().fold(f32::NEG_INFINITY, |top, block| top.max(block.max_score[head]));
        let mut sum = 0.0;
        for block in &mut *weights {
            let factor = (block.max_score[head] - top).exp();
            sum += block.sum[head] * factor;
            block.max_probability[head] = factor;
        }
        for block in &mut *weights {
            block.max_probability[head] /= sum;
        }
    }
}

/// Third step: accumulates the weighted values of one task's KV blocks. For the same bits as [`attend`], all tasks have one
/// power of two as their length, except that the last may be shorter, and start at a multiple of it. `weights` are those of
/// all blocks.
///
/// # Panics
/// As [`attend`], and if `blocks` is empty or longer than [`BLOCKS_PER_TASK`].
pub fn accumulate_blocks(
    isa: Isa,
    cache: &KvCache,
    positions: usize,
    blocks: Range<usize>,
    weights: &[BlockWeights],
    sum: &mut BlockSum,
) {
    SCRATCH.with_borrow_mut(|scratch| {
        isa.run(AccumulateBlocks { cache, positions, blocks, weights, sum, sums: &mut scratch.sums });
    });
}

/// Last step: reduces the sums of all tasks, in order, to the output `out` [heads, width] of [`attend`]. Overwrites the sums.
///
/// # Panics
/// If `sums` is empty, or `out` has the wrong size.
pub fn reduce_blocks(isa: Isa, sums: &mut [BlockSum], out: &mut [f32]) {
    isa.run(ReduceBlocks(sums));
    out.copy_from_slice(&sums[0]);
}

struct ReduceBlocks<'a>(&'a mut [BlockSum]);

impl Kernel for ReduceBlocks<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        pairwise_reduce(simd, self.0);
    }
}

/// Reduces `sums` to the first one pairwise: each odd one is added to its predecessor, then each second of the rest, and so
/// on. So an aligned run of a power of two has the same sum alone as within a longer reduction.
#[inline(always)]
fn pairwise_reduce<S: Simd>(simd: S, sums: &mut [BlockSum]) {
    let mut distance = 1;
    while distance < sums.len() {
        for pair in sums.chunks_mut(2 * distance) {
            if let Some((left, [right, ..])) = pair.split_at_mut_checked(distance) {
                for (to, from) in left[0].chunks_mut(16).zip(right.chunks(16)) {
                    store_partial(simd, simd.add(load_partial(simd, to), load_partial(simd, from)), to);
                }
            }
        }
        distance *= 2;
    }
}

struct ScoreBlocks<'a> {
    cache: &'a KvCache,
    positions: usize,
    queries: &'a [f32],
    first: usize,
    weights: &'a mut [BlockWeights],
    scratch: &'a mut Scratch,
}

impl Kernel for ScoreBlocks<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { cache, positions, queries, first, weights, scratch } = self;
        let width = cache.width;
        scratch.scores.resize(queries.len() / width * KV_BLOCK, 0.0);
        if let Blocks::Int8(_) = cache.blocks {
            int8::quantize_queries(simd, queries, width, scratch);
        }
        for (index, weights) in weights.iter_mut().enumerate() {
            let index = first + index;
            let count = (positions - index * KV_BLOCK).min(KV_BLOCK);
            match &cache.blocks {
                Blocks::Exact(all) => {
                    exact::scores(simd, &all[index], width, count, queries, &mut scratch.scores);
                    exponentiate(simd, count, &mut scratch.scores, weights);
                    weights.exact.clone_from(&scratch.scores);
                }
                Blocks::Int8(all) => {
                    let block = &all[index];
                    let next = if (index + 1) * KV_BLOCK < positions {
                        &all[index + 1].keys
                    } else {
                        &block.upper_values
                    };
                    int8::scores(simd, block, next, width, count, scratch);
                    exponentiate(simd, count, &mut scratch.scores, weights);
                    int8::quantize_weights(simd, block, count, &mut scratch.scores, weights);
                }
            }
        }
    }
}

struct AccumulateBlocks<'a> {
    cache: &'a KvCache,
    positions: usize,
    blocks: Range<usize>,
    weights: &'a [BlockWeights],
    sum: &'a mut BlockSum,
    sums: &'a mut [BlockSum; BLOCKS_PER_TASK],
}

impl Kernel for AccumulateBlocks<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { cache, positions, blocks, weights, sum: total, sums } = self;
        let width = cache.width;
        let sums = &mut sums[..blocks.len()];
        for (index, sum) in blocks.zip(&mut *sums) {
            let count = (positions - index * KV_BLOCK).min(KV_BLOCK);
            let block_weights = &weights[index];
            sum.resize(block_weights.max_probability.len() * width, 0.0);
            match &cache.blocks {
                Blocks::Exact(all) => exact::values(simd, &all[index], width, count, block_weights, sum),
                Blocks::Int8(all) => {
                    let next = weights.get(index + 1).map(|weights| (&all[index + 1], weights));
                    int8::values(simd, (&all[index], block_weights), next, width, count, sum);
                }
            }
        }
        pairwise_reduce(simd, sums);
        std::mem::swap(total, &mut sums[0]);
    }
}

/// Replaces the first `count` scores of each head [heads, KV_BLOCK] by e^(score - max_score) and zeroes the rest of the last
/// vector.
#[inline(always)]
fn exponentiate<S: Simd>(simd: S, count: usize, scores: &mut [f32], weights: &mut BlockWeights) {
    weights.max_score.clear();
    weights.sum.clear();
    weights.max_probability.resize(scores.len() / KV_BLOCK, 0.0);
    for scores in scores.chunks_exact_mut(KV_BLOCK) {
        let top = max_value(simd, &scores[..count]);
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
        weights.max_score.push(top);
        weights.sum.push(simd.reduce_add(sum));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::huge_pages::HugePageArena;
    use crate::matmul::Mode;

    fn numbers(count: usize, seed: f32) -> Vec<f32> {
        (0..count).map(|i| ((i as f32 + 1.0) * seed).sin() * 2.0).collect()
    }

    fn filled(mode: Mode, width: usize, positions: usize) -> KvCache {
        let mut cache = KvCache::new(mode, width);
        cache.reserve(positions, &mut HugePageArena::default());
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
                let mut cache = KvCache::new(mode, width);
                cache.reserve(positions, &mut HugePageArena::default());
                let rows = keys.chunks(width).zip(values.chunks(width)).take(positions).enumerate();
                rows.for_each(|(position, (key, value))| cache.write(position, key, value));
                cache
            });
            // All positions have the same weight, or one nearly all of it.
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
        // With the smaller queries no position of the longest sequence has much weight.
        for (mode, size) in [(Mode::Exact, 1.0), (Mode::Fast, 1.0), (Mode::Fast, 0.01)] {
            let queries: Vec<f32> = numbers(heads * width, 0.53).iter().map(|x| size * x).collect();
            for positions in [1, 63, 64, 100, 300] {
                let run = |isa, cache: &KvCache| {
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
    fn blocks_may_be_computed_separately() {
        let (width, heads, positions) = (24, 3, 11 * KV_BLOCK - 40);
        let queries = numbers(heads * width, 0.53);
        let isa = Isa::detect();
        for mode in [Mode::Exact, Mode::Fast] {
            let cache = filled(mode, width, positions);
            let (mut expected, mut got) = (vec![0.0; heads * width], vec![0.0; heads * width]);
            attend(isa, &cache, positions, &queries, &mut expected);
            let mut weights = vec![BlockWeights::default(); 11];
            for (task, weights) in weights.chunks_mut(3).enumerate().rev() {
                score_blocks(isa, &cache, positions, &queries, 3 * task, weights);
            }
            normalize_blocks(&mut weights);
            for together in [1, 2, 4, 8] {
                let mut sums = vec![BlockSum::new(); 11_usize.div_ceil(together)];
                for (task, sum) in sums.iter_mut().enumerate().rev() {
                    let blocks = task * together..11.min((task + 1) * together);
                    accumulate_blocks(isa, &cache, positions, blocks, &weights, sum);
                }
                reduce_blocks(isa, &mut sums, &mut got);
                assert_eq!(got, expected, "{together} blocks per task");
            }
        }
    }

    #[test]
    fn a_saved_cache_is_the_same_cache() {
        for mode in [Mode::Exact, Mode::Fast] {
            let cache = filled(mode, 24, 130);
            let mut saved = Vec::new();
            cache.save(130, &mut saved);
            let mut loaded = KvCache::new(mode, 24);
            loaded.load(130, &saved, &mut HugePageArena::default());
            let queries = numbers(24, 0.2);
            let (mut before, mut after) = (vec![0.0; 24], vec![0.0; 24]);
            attend(Isa::detect(), &cache, 130, &queries, &mut before);
            attend(Isa::detect(), &loaded, 130, &queries, &mut after);
            assert_eq!(before, after);
            assert_eq!(loaded.size_bytes(), saved.len());
        }
    }
}
