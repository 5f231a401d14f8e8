//! Product of two tiles with sixteen tokens on AMX: prefill in the fast mode on Intel servers.
//!
//! AMX multiplies the halves of the activations with a group's codes, which are laid out as in any other [`Tile`]: lanes are
//! rows. Its sums are integers, so scaling and reducing them as [`super::gemm`] does gives the same results.

use super::activations::ActivationBuffer;
use super::layout::REDUCTION_ORDER;
use super::tile::{Tile, add_scaled};
use crate::column_block::ColumnBlock;
use crate::elementwise::store_partial;
use crate::simd::{AMX_TOKENS, AmxSession, AmxSums, Simd};

/// Scratch buffers of the products of one task.
pub(crate) struct AmxScratch<S: Simd> {
    /// Double buffer: one group's sums are scaled while AMX computes the next one's.
    dots: [AmxSums; 2],
    /// Partial sums of the pairwise reduction over lanes, [tiles][levels][tokens]: level l holds a sum of 2^l lanes.
    trees: [[[S::F32; AMX_TOKENS]; 5]; 2],
}

impl<S: Simd> AmxScratch<S> {
    #[inline(always)]
    pub(crate) fn new(simd: S) -> Self {
        Self { dots: [AmxSums::ZERO; 2], trees: [[[simd.splat(0.0); AMX_TOKENS]; 5]; 2] }
    }
}

/// Writes the products of two tiles, rows `from..` of `out`, with all tokens. At the end of the rows the second may be the
/// first again.
#[inline(always)]
pub(crate) fn multiply_tiles<S: Simd>(
    simd: S,
    session: &AmxSession,
    tiles: [&Tile<'_>; 2],
    x: &ActivationBuffer,
    from: usize,
    out: &mut ColumnBlock<'_, f32>,
    scratch: &mut AmxScratch<S>,
) {
    let groups = tiles[0].groups;
    let AmxScratch { dots: [dots, next_dots], trees } = scratch;
    for first in (0..out.rows()).step_by(AMX_TOKENS) {
        let tokens = (out.rows() - first).min(AMX_TOKENS);
        let base = first / AMX_TOKENS * groups;
        // Groups in the order in which they are scaled.
        let mut order = REDUCTION_ORDER.iter().flat_map(|&lane| (lane..groups).step_by(16));
        if let Some(g) = order.next() {
            multiply_group(session, tiles, x, base, g, dots);
        }
        for (rank, &lane) in REDUCTION_ORDER.iter().enumerate() {
            let mut sums = [[simd.splat(0.0); AMX_TOKENS]; 2];
            for g in (lane..groups).step_by(16) {
                if let Some(next) = order.next() {
                    multiply_group(session, tiles, x, base, next, next_dots);
                }
                scale_group(simd, tiles, x, base + g, g, tokens, dots, &mut sums);
                std::mem::swap(dots, next_dots);
            }
            for (tree, sums) in trees.iter_mut().zip(&sums) {
                match rank.trailing_ones() {
                    0 => pairwise_reduce::<S, 0>(simd, tree, sums, tokens),
                    1 => pairwise_reduce::<S, 1>(simd, tree, sums, tokens),
                    2 => pairwise_reduce::<S, 2>(simd, tree, sums, tokens),
                    3 => pairwise_reduce::<S, 3>(simd, tree, sums, tokens),
                    _ => pairwise_reduce::<S, 4>(simd, tree, sums, tokens),
                }
            }
        }
        for (tile, tree) in trees.iter().enumerate() {
            for (token, &sum) in tree[4].iter().enumerate().take(tokens) {
                if let Some(out) = out.row(first + token).get_mut(from + 16 * tile..) {
                    store_partial(simd, sum, out);
                }
            }
        }
    }
}

/// Adds leaf number `rank`, which has LEVEL trailing ones, to the pairwise reductions of `tokens` tokens. Token by token,
/// because the sums of sixteen do not fit registers.
#[inline(always)]
fn pairwise_reduce<S: Simd, const LEVEL: usize>(
    simd: S,
    tree: &mut [[S::F32; AMX_TOKENS]; 5],
    leaf: &[S::F32; AMX_TOKENS],
    tokens: usize,
) {
    for t in 0..tokens.min(AMX_TOKENS) {
        let mut sum = leaf[t];
        for held in &tree[..LEVEL] {
            sum = simd.add(held[t], sum);
        }
        tree[LEVEL][t] = sum;
    }
}

/// Computes the unscaled products of group `g` with sixteen tokens whose first group has index `base`.
#[inline(always)]
fn multiply_group(
    session: &AmxSession,
    tiles: [&Tile<'_>; 2],
    x: &ActivationBuffer,
    base: usize,
    g: usize,
    dots: &mut AmxSums,
) {
    let group = x.layout.group;
    let codes = tiles.map(|tile| &tile.codes[g * group / 4..][..group / 4]);
    let lines = 2 * AMX_TOKENS * group / 64;
    session.multiply(codes, &x.codes[(base + g) * lines..][..lines], dots);
}

/// Adds `dots` of group `g`, scaled, to `sums` [tiles][tokens]; `at` is the index of the group's activations.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn scale_group<S: Simd>(
    simd: S,
    tiles: [&Tile<'_>; 2],
    x: &ActivationBuffer,
    at: usize,
    g: usize,
    tokens: usize,
    dots: &AmxSums,
    sums: &mut [[S::F32; AMX_TOKENS]; 2],
) {
    let x_scales = &x.scales[at * AMX_TOKENS..][..tokens];
    let x_sums = &x.sums[at * AMX_TOKENS..][..tokens];
    for ((tile, [upper, lower]), sums) in tiles.iter().zip(&dots.0).zip(sums) {
        let scale = simd.load(&tile.scales[g]);
        let bias = tile.biases.get(g);
        let x = x_scales.iter().zip(x_sums);
        for (((upper, lower), (&x_scale, &x_sum)), sum) in upper.iter().zip(lower).zip(x).zip(sums) {
            *sum = add_scaled(simd, join_halves(simd, upper, lower), scale, bias, (x_scale, x_sum), *sum);
        }
    }
}

/// 256 * upper + lower.
#[inline(always)]
fn join_halves<S: Simd>(simd: S, upper: &[i32; 16], lower: &[i32; 16]) -> S::I32 {
    simd.int_add(simd.int_shl::<8>(simd.int_load(upper)), simd.int_load(lower))
}
