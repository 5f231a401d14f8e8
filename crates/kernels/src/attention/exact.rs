//! Attention over the exact cache: f32 keys and values, f32 arithmetic.

use super::BlockWeights;
use crate::elementwise::{load_partial, store_partial, zero_padded};
use crate::kv_cache::{ExactBlock, KV_BLOCK};
use crate::simd::Simd;

/// Scores of the first `count` positions of a block: `scores` [heads, KV_BLOCK] = q k^T / sqrt(width).
#[inline(always)]
pub(super) fn scores<S: Simd>(
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
        let last = simd.load(&zero_padded(rest));
        for (query, scores) in queries.chunks_exact(width).zip(scores.chunks_exact_mut(KV_BLOCK)) {
            let (query_vectors, query_rest) = query.as_chunks::<16>();
            let mut sums = [simd.splat(0.0); 2];
            sums[0] = simd.fma(simd.load(&zero_padded(query_rest)), last, sums[0]);
            for (pair, key) in query_vectors.chunks(2).zip(vectors.chunks(2)) {
                for ((sum, query), key) in sums.iter_mut().zip(pair).zip(key) {
                    *sum = simd.fma(simd.load(query), simd.load(key), *sum);
                }
            }
            scores[at] = simd.reduce_add(simd.add(sums[0], sums[1])) * scale;
        }
    }
}

/// Weighted sums of the first `count` values of a block for all heads: `out` [heads, width].
#[inline(always)]
pub(super) fn values<S: Simd>(
    simd: S,
    block: &ExactBlock,
    width: usize,
    count: usize,
    weights: &BlockWeights,
    out: &mut [f32],
) {
    let heads = weights.exact.chunks_exact(KV_BLOCK).zip(&weights.max_probability);
    for ((weights, &scale), out) in heads.zip(out.chunks_exact_mut(width)) {
        weighted_rows(simd, block.values.chunks_exact(width), &weights[..count], scale, out);
    }
}

/// `out` [width] = `scale` * sum of `rows` [positions, width] times `weights` [positions].
#[inline(always)]
fn weighted_rows<'a, S: Simd>(
    simd: S,
    rows: impl Iterator<Item = &'a [f32]> + Clone,
    weights: &[f32],
    scale: f32,
    out: &mut [f32],
) {
    for (column, out) in out.chunks_mut(64).enumerate() {
        let mut sums = [simd.splat(0.0); 4];
        for (row, &weight) in rows.clone().zip(weights) {
            let row = &row[64 * column..][..out.len()];
            let weight = simd.splat(weight);
            for (sum, values) in sums.iter_mut().zip(row.chunks(16)) {
                *sum = simd.fma(weight, load_partial(simd, values), *sum);
            }
        }
        for (sum, out) in sums.into_iter().zip(out.chunks_mut(16)) {
            store_partial(simd, simd.mul(sum, simd.splat(scale)), out);
        }
    }
}
