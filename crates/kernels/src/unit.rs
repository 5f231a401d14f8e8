//! Sixteen tokens times two tiles of rows on the matrix unit: prefill in the fast mode where there is one.
//!
//! The unit multiplies the halves of activations with a group's codes, which lie as [`crate::tile`] takes them apart:
//! lanes are rows here too. Its sums are whole numbers, so that scaling them and adding them up as there gives the
//! same results.

use crate::columns::ColumnBlock;
use crate::elementwise::store_part;
use crate::input::{Form, Group, Prepared, TREE};
use crate::simd::{Kernel, Session, Simd, UNIT_TOKENS, UnitSums};
use crate::tile::{Tile, scaled};

/// Work space of a thread's products.
pub(crate) struct UnitSpace<S: Simd> {
    /// While one group's sums are scaled, the unit makes the next one's.
    dots: [UnitSums; 2],
    /// Partial sums of the two tiles' tokens: level l holds a sum of 2^l slots.
    trees: [[[S::F; UNIT_TOKENS]; 5]; 2],
}

impl<S: Simd> UnitSpace<S> {
    #[inline(always)]
    pub(crate) fn new(simd: S) -> Self {
        Self { dots: [UnitSums::ZERO; 2], trees: [[[simd.splat(0.0); UNIT_TOKENS]; 5]; 2] }
    }
}

/// Writes the products of two tiles, rows `from..` of `out`, with all tokens. The second may be the first again where
/// there are no more rows.
#[inline(always)]
pub(crate) fn products<S: Simd>(
    simd: S,
    session: &Session,
    tiles: [&Tile<'_>; 2],
    x: &Prepared,
    from: usize,
    out: &mut ColumnBlock<'_, f32>,
    space: &mut UnitSpace<S>,
) {
    let groups = tiles[0].groups;
    let UnitSpace { dots: [dots, next_dots], trees } = space;
    for first in (0..out.rows()).step_by(UNIT_TOKENS) {
        let tokens = (out.rows() - first).min(UNIT_TOKENS);
        let base = first / UNIT_TOKENS * groups;
        // Groups in the order in which they are scaled.
        let mut coming = TREE.iter().flat_map(|&slot| (slot..groups).step_by(16));
        if let Some(g) = coming.next() {
            multiply_group(session, tiles, x, base, g, dots);
        }
        for (rank, &slot) in TREE.iter().enumerate() {
            let mut sums = [[simd.splat(0.0); UNIT_TOKENS]; 2];
            for g in (slot..groups).step_by(16) {
                if let Some(next) = coming.next() {
                    multiply_group(session, tiles, x, base, next, next_dots);
                }
                add_scaled(simd, tiles, x, base + g, g, tokens, dots, &mut sums);
                std::mem::swap(dots, next_dots);
            }
            for (tree, sums) in trees.iter_mut().zip(&sums) {
                match rank.trailing_ones() {
                    0 => climb::<S, 0>(simd, tree, sums, tokens),
                    1 => climb::<S, 1>(simd, tree, sums, tokens),
                    2 => climb::<S, 2>(simd, tree, sums, tokens),
                    3 => climb::<S, 3>(simd, tree, sums, tokens),
                    _ => climb::<S, 4>(simd, tree, sums, tokens),
                }
            }
        }
        for (tile, tree) in trees.iter().enumerate() {
            for (token, &sum) in tree[4].iter().enumerate().take(tokens) {
                if let Some(out) = out.row(first + token).get_mut(from + 16 * tile..) {
                    store_part(simd, sum, out);
                }
            }
        }
    }
}

/// As `count_up` in [`crate::tile`], token by token: so many sums have no place in registers.
#[inline(always)]
fn climb<S: Simd, const LEVEL: usize>(
    simd: S,
    tree: &mut [[S::F; UNIT_TOKENS]; 5],
    leaf: &[S::F; UNIT_TOKENS],
    tokens: usize,
) {
    for t in 0..tokens.min(UNIT_TOKENS) {
        let mut sum = leaf[t];
        for held in &tree[..LEVEL] {
            sum = simd.add(held[t], sum);
        }
        tree[LEVEL][t] = sum;
    }
}

/// The unscaled products of group `g` of sixteen tokens, whose groups begin at `base`.
#[inline(always)]
fn multiply_group(
    session: &Session,
    tiles: [&Tile<'_>; 2],
    x: &Prepared,
    base: usize,
    g: usize,
    dots: &mut UnitSums,
) {
    let group = x.form.group;
    let codes = tiles.map(|tile| &tile.codes[g * group / 4..][..group / 4]);
    let lines = 2 * UNIT_TOKENS * group / 64;
    session.products(codes, &x.codes[(base + g) * lines..][..lines], dots);
}

/// Adds `dots` of group `g`, scaled, to `sums` [tiles][tokens]; `at` is where the group's activations are.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn add_scaled<S: Simd>(
    simd: S,
    tiles: [&Tile<'_>; 2],
    x: &Prepared,
    at: usize,
    g: usize,
    tokens: usize,
    dots: &UnitSums,
    sums: &mut [[S::F; UNIT_TOKENS]; 2],
) {
    let x_scales = &x.scales[at * UNIT_TOKENS..][..tokens];
    let x_sums = &x.sums[at * UNIT_TOKENS..][..tokens];
    for ((tile, [upper, lower]), sums) in tiles.iter().zip(&dots.0).zip(sums) {
        let scale = simd.load(&tile.scales[g]);
        let bias = tile.biases.get(g);
        let x = x_scales.iter().zip(x_sums);
        for (((upper, lower), (&x_scale, &x_sum)), sum) in upper.iter().zip(lower).zip(x).zip(sums) {
            *sum = scaled(simd, joined(simd, upper, lower), scale, bias, (x_scale, x_sum), *sum);
        }
    }
}

/// 256 * upper + lower.
#[inline(always)]
fn joined<S: Simd>(simd: S, upper: &[i32; 16], lower: &[i32; 16]) -> S::I {
    simd.int_add(simd.int_shl::<8>(simd.int_load(upper)), simd.int_load(lower))
}

/// Activations of up to sixteen tokens, as the unit reads them.
pub(crate) struct UnitTokens<'a> {
    pub form: Form,
    pub columns: usize,
    pub x: &'a [f32],
    /// [groups][halves][tokens][group]
    pub codes: &'a mut [[i8; 64]],
    /// [groups][tokens]
    pub scales: &'a mut [f32],
    /// [groups][tokens]
    pub sums: &'a mut [f32],
}

impl Kernel for &mut UnitTokens<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let UnitTokens { form, columns, x, codes, scales, sums } = self;
        let group = form.group;
        let codes = codes.as_flattened_mut();
        let (mut room, mut halves) = ([0.0; 128], [[0; 128]; 2]);
        for (t, x) in x.chunks_exact(*columns).enumerate() {
            for (g, start) in (0..x.len()).step_by(group).enumerate() {
                let at = g * UNIT_TOKENS + t;
                let numbers = Group::read(x, start, group, &mut room);
                (scales[at], sums[at]) = numbers.quantize(simd, form.nibbles, &mut halves);
                for (half, from) in halves.iter().enumerate() {
                    let to = &mut codes[((2 * g + half) * UNIT_TOKENS + t) * group..][..group];
                    for (to, &from) in to.as_chunks_mut::<8>().0.iter_mut().zip(from.as_chunks().0) {
                        *to = form.taken_apart(from);
                    }
                }
            }
        }
    }
}
