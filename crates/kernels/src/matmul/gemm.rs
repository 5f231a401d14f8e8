//! Product of rows with several tokens: prefill and small batches, bound by arithmetic.
//!
//! Rows are unpacked once into tiles of sixteen, whose vectors hold one element (or one word of codes) of each row, and are
//! multiplied with every token: lanes are rows, so no reduction over lanes is needed and scaling costs three operations per
//! group. Sums are reduced pairwise in the fixed order of [`Simd::reduce_add`], leaf by leaf with a binary counter, so gemm
//! and gemv agree bit for bit.

use super::activations::ActivationBuffer;
use super::amx::{self, AmxScratch};
use super::format::{TileFormat, U4, U8};
use super::layout::{BLOCK_TOKENS, Mode, REDUCTION_ORDER, block_tokens};
use super::matrix::{Codes, Matrix};
use super::rows::{float_dot, float_row};
use super::tile::{Tile, TileScratch, add_scaled};
use crate::aligned::Aligned;
use crate::column_block::ColumnBlock;
use crate::elementwise::store_partial;
use crate::simd::{AmxSession, AmxUnit, Kernel, Simd};

/// Rows `out.start()..` of `matrix`, one per column of `out` [tokens, rows], times all tokens.
pub(crate) struct Gemm<'a, 'b> {
    pub matrix: &'a Matrix<'a>,
    pub x: &'a ActivationBuffer,
    pub out: &'a mut ColumnBlock<'b, f32>,
    pub scratch: &'a mut GemmScratch,
    /// The AMX unit, if the instruction set has one.
    pub amx: Option<AmxUnit>,
}

/// Scratch buffers of a thread.
#[derive(Debug, Default)]
pub(crate) struct GemmScratch {
    /// Bit-packed codes, unpacked to bytes.
    unpacked: Aligned<u8>,
    /// An unquantized row.
    row: Aligned<f32>,
    tiles: [TileScratch; 2],
}

impl Kernel for Gemm<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { matrix, x, out, scratch, amx } = self;
        let (first, rows) = (out.start(), out.columns());
        let columns = matrix.columns;
        if let Codes::Float(floats) = matrix.codes {
            for row in 0..rows {
                float_row(simd, floats, (first + row) * columns, columns, &mut scratch.row);
                for (token, x) in x.values.chunks_exact(columns).enumerate() {
                    out.row(token)[row] = float_dot(simd, &scratch.row, x);
                }
            }
            return;
        }
        let GemmScratch { unpacked, tiles: [first_tile, second_tile], .. } = scratch;
        #[cfg_attr(
            not(all(target_arch = "x86_64", target_os = "linux")),
            expect(unreachable_code, reason = "AMX does not exist there")
        )]
        let mut engine = match amx {
            Some(unit) if x.layout.mode == Mode::Fast => {
                Engine::Amx(unit.configure(x.layout.group), AmxScratch::new(simd))
            }
            _ => Engine::Vectors(ReductionTrees::new(simd)),
        };
        let mut from = 0;
        while from < rows {
            let for_amx = matches!(engine, Engine::Amx(..));
            let next = (from + 16).min(rows);
            let tile_rows = first + from..first + next;
            let tile = Tile::unpack(simd, matrix, x.layout, tile_rows, for_amx, unpacked, first_tile);
            if S::TILES_PER_PASS == 2 && next < rows {
                let second = first + next..first + (next + 16).min(rows);
                let second = Tile::unpack(simd, matrix, x.layout, second, for_amx, unpacked, second_tile);
                engine.multiply(simd, &[tile, second], x, from, out);
            } else {
                engine.multiply(simd, &[tile], x, from, out);
            }
            from += 16 * S::TILES_PER_PASS;
        }
    }
}

/// The unit that multiplies tiles, with its scratch buffers.
#[expect(clippy::large_enum_variant, reason = "one at a time, on the stack")]
enum Engine<S: Simd> {
    Amx(AmxSession, AmxScratch<S>),
    Vectors(ReductionTrees<S>),
}

impl<S: Simd> Engine<S> {
    /// Writes the products of tiles, rows `from..` of the block, with all tokens.
    #[inline(always)]
    fn multiply<const R: usize>(
        &mut self,
        simd: S,
        tiles: &[Tile<'_>; R],
        x: &ActivationBuffer,
        from: usize,
        out: &mut ColumnBlock<'_, f32>,
    ) {
        match self {
            Self::Amx(session, scratch) => {
                amx::multiply_tiles(simd, session, [&tiles[0], &tiles[R - 1]], x, from, out, scratch);
            }
            Self::Vectors(trees) => multiply_tiles(simd, tiles, x, from, out, trees),
        }
    }
}

/// Writes the products of tiles, rows `from..` of the block, with all tokens.
#[inline(always)]
fn multiply_tiles<S: Simd, const R: usize>(
    simd: S,
    tiles: &[Tile<'_>; R],
    x: &ActivationBuffer,
    from: usize,
    out: &mut ColumnBlock<'_, f32>,
    trees: &mut ReductionTrees<S>,
) {
    let layout = tiles[0].layout;
    let (tokens, mut done) = (out.rows(), 0);
    while done < tokens {
        let now = block_tokens(tokens - done);
        macro_rules! times {
            ($T:expr) => {{
                let block = TokenBlock::<$T>::of(x, done, tiles[0].groups);
                match layout.mode {
                    Mode::Fast if layout.int4 => multiply_int::<S, U4, $T, R>(simd, tiles, block, trees),
                    Mode::Fast => multiply_int::<S, U8, $T, R>(simd, tiles, block, trees),
                    Mode::Exact => multiply_float::<S, $T, R>(simd, tiles, block, trees),
                }
            }};
        }
        match now {
            1 => times!(1),
            2 => times!(2),
            4 => times!(4),
            _ => times!(BLOCK_TOKENS),
        }
        for (tile, tree) in trees.lanes.iter().enumerate().take(R) {
            for (token, &sum) in tree[4].iter().enumerate().take(now) {
                store_partial(simd, sum, &mut out.row(done + token)[from + 16 * tile..]);
            }
        }
        done += now;
    }
}

/// Packed activations of T tokens.
#[derive(Clone, Copy)]
struct TokenBlock<'a, const T: usize> {
    /// Exact mode: [columns][T].
    values: &'a [[f32; T]],
    /// Fast mode: INT4 [columns / 8][T] of four words, INT8 [columns / 4][T] of two.
    words: &'a [i32],
    /// [groups][T]
    sums: &'a [[f32; T]],
    /// [groups][T]
    scales: &'a [[f32; T]],
}

impl<'a, const T: usize> TokenBlock<'a, T> {
    /// Tokens `before..before + T`.
    #[inline(always)]
    fn of(x: &'a ActivationBuffer, before: usize, groups: usize) -> Self {
        let padded = groups * x.layout.group;
        let (values, words): (&[f32], &[i32]) = match x.layout.mode {
            Mode::Exact => (&x.values[before * padded..][..T * padded], &[]),
            Mode::Fast => (&[], &x.words[before * padded / 2..][..T * padded / 2]),
        };
        let of_block = |all: &'a [f32]| all[before * groups..][..T * groups].as_chunks().0;
        let (sums, scales) = (of_block(&x.sums), of_block(&x.scales));
        Self { values: values.as_chunks().0, words, sums, scales }
    }
}

/// Tiles times T tokens in integers. The result is the last level of the trees over lanes.
#[inline(always)]
fn multiply_int<S: Simd, F: TileFormat, const T: usize, const R: usize>(
    simd: S,
    tiles: &[Tile<'_>; R],
    block: TokenBlock<'_, T>,
    trees: &mut ReductionTrees<S>,
) {
    macro_rules! at_a_time {
        ($N:expr) => {
            if F::TOKENS_OUTERMOST {
                multiply_int_passes::<S, F, T, R, $N, $N>(simd, tiles, block, trees)
            } else {
                multiply_int_passes::<S, F, T, R, T, $N>(simd, tiles, block, trees)
            }
        };
    }
    match F::tokens_in_registers::<S>().min(T) {
        1 => at_a_time!(1),
        2 => at_a_time!(2),
        4 => at_a_time!(4),
        _ => at_a_time!(BLOCK_TOKENS),
    }
}

/// [`multiply_int`] with M tokens per pass over the tiles, and N tokens at a time per group.
#[inline(always)]
fn multiply_int_passes<
    S: Simd,
    F: TileFormat,
    const T: usize,
    const R: usize,
    const M: usize,
    const N: usize,
>(
    simd: S,
    tiles: &[Tile<'_>; R],
    block: TokenBlock<'_, T>,
    trees: &mut ReductionTrees<S>,
) {
    for from in (0..T).step_by(M) {
        for (rank, &lane) in REDUCTION_ORDER.iter().enumerate() {
            let mut sums = [[simd.splat(0.0); M]; R];
            for g in (lane..tiles[0].groups).step_by(16) {
                for part in (0..M).step_by(N) {
                    add_int_group::<S, F, T, R, M, N>(simd, tiles, block, g, from + part, part, &mut sums);
                }
            }
            for (tree, sums) in trees.lanes.iter_mut().zip(sums) {
                pairwise_reduce(simd, tree, rank, from, sums);
            }
        }
    }
}

/// Adds the scaled products of group `g` with N tokens from `from` on to their `sums` [tiles][tokens], from `part` on.
#[inline(always)]
fn add_int_group<S: Simd, F: TileFormat, const T: usize, const R: usize, const M: usize, const N: usize>(
    simd: S,
    tiles: &[Tile<'_>; R],
    block: TokenBlock<'_, T>,
    g: usize,
    from: usize,
    part: usize,
    sums: &mut [[S::F32; M]; R],
) {
    let group = tiles[0].layout.group;
    let vectors = group / F::WORD_COLUMNS;
    let x = &F::as_packed::<T>(&block.words[g * group / 2 * T..])[..vectors];
    let codes = tiles.each_ref().map(|tile| &tile.codes[g * vectors..][..vectors]);
    let mut dots = [[F::zero(simd); N]; R];
    for (vector, x) in x.iter().enumerate() {
        let mut words = [F::load_codes(simd, &codes[0][vector]); R];
        for r in 1..R {
            words[r] = F::load_codes(simd, &codes[r][vector]);
        }
        for n in 0..N {
            let x = F::broadcast(simd, &x[from + n]);
            for r in 0..R {
                dots[r][n] = F::dot(simd, dots[r][n], words[r], x);
            }
        }
    }
    // Not a loop over tiles: LLVM would keep their accumulators in memory and store them after every product.
    let x = (&block.scales[g][from..], &block.sums[g][from..]);
    scale_group::<S, F, N>(simd, &tiles[0], g, x, dots[0], &mut sums[0][part..]);
    if R == 2 {
        scale_group::<S, F, N>(simd, &tiles[1], g, x, dots[1], &mut sums[1][part..]);
    }
}

/// Adds the integer products `dots` of group `g`, scaled, to `sums`; `x_scales` and `x_sums` are those of the group's
/// activations.
#[inline(always)]
fn scale_group<S: Simd, F: TileFormat, const N: usize>(
    simd: S,
    tile: &Tile<'_>,
    g: usize,
    (x_scales, x_sums): (&[f32], &[f32]),
    dots: [F::Dot<S>; N],
    sums: &mut [S::F32],
) {
    let (scale, bias) = (simd.load(&tile.scales[g]), tile.biases.get(g));
    for n in 0..N {
        let mut dot = F::finish(simd, dots[n]);
        if !F::BELOW_128 && S::CODE_OFFSET != 0 {
            dot = simd.int_add(dot, simd.int_splat(S::CODE_OFFSET * x_sums[n] as i32));
        }
        sums[n] = add_scaled(simd, dot, scale, bias, (x_scales[n], x_sums[n]), sums[n]);
    }
}

/// [`multiply_int`] in f32.
#[inline(always)]
fn multiply_float<S: Simd, const T: usize, const R: usize>(
    simd: S,
    tiles: &[Tile<'_>; R],
    block: TokenBlock<'_, T>,
    trees: &mut ReductionTrees<S>,
) {
    for (rank, &lane) in REDUCTION_ORDER.iter().enumerate() {
        let mut sums = [[simd.splat(0.0); T]; R];
        for g in (lane..tiles[0].groups).step_by(16) {
            add_float_group::<S, T, R>(simd, tiles, block, g, trees, &mut sums);
        }
        for (tree, sums) in trees.lanes.iter_mut().zip(sums) {
            pairwise_reduce(simd, tree, rank, 0, sums);
        }
    }
}

/// [`add_int_group`] in f32, in the order of the gemv.
#[inline(always)]
fn add_float_group<S: Simd, const T: usize, const R: usize>(
    simd: S,
    tiles: &[Tile<'_>; R],
    block: TokenBlock<'_, T>,
    g: usize,
    trees: &mut ReductionTrees<S>,
    sums: &mut [[S::F32; T]; R],
) {
    let layout = tiles[0].layout;
    let group = layout.group;
    let x = &block.values[g * group..][..group];
    let x_sums = &block.sums[g];
    let values = tiles.each_ref().map(|tile| &tile.values[g * group..][..group]);
    let leaf_columns = layout.columns_per_leaf();
    for (leaf, x) in x.chunks_exact(leaf_columns).enumerate() {
        let mut parts = [[simd.splat(0.0); T]; R];
        for (k, x) in x.iter().enumerate() {
            for t in 0..T {
                let x = simd.splat(x[t]);
                for r in 0..R {
                    parts[r][t] = simd.fma(simd.load(&values[r][leaf * leaf_columns + k]), x, parts[r][t]);
                }
            }
        }
        for (tree, parts) in trees.leaves.iter_mut().zip(parts) {
            pairwise_reduce(simd, tree, leaf, 0, parts);
        }
    }
    for r in 0..R {
        let dots = &trees.leaves[r][(group / leaf_columns).ilog2() as usize];
        let scale = simd.load(&tiles[r].scales[g]);
        let bias = tiles[r].biases.get(g);
        for t in 0..T {
            sums[r][t] = match bias {
                Some(bias) => {
                    let offset = simd.mul(simd.load(bias), simd.splat(x_sums[t]));
                    simd.add(sums[r][t], simd.fma(scale, dots[t], offset))
                }
                None => simd.fma(scale, dots[t], sums[r][t]),
            };
        }
    }
}

/// Partial sums of pairwise reductions, [tiles][levels][tokens]: level l holds a sum of 2^l leaves. Each reduction writes an
/// entry before it reads it, so the trees need no clearing.
struct ReductionTrees<S: Simd> {
    /// Over the sixteen lanes of a gemv.
    lanes: [[[S::F32; BLOCK_TOKENS]; 5]; 2],
    /// Over the leaves of one group in the exact mode.
    leaves: [[[S::F32; BLOCK_TOKENS]; 5]; 2],
}

impl<S: Simd> ReductionTrees<S> {
    #[inline(always)]
    fn new(simd: S) -> Self {
        let zeros = [[[simd.splat(0.0); BLOCK_TOKENS]; 5]; 2];
        Self { lanes: zeros, leaves: zeros }
    }
}

/// Adds leaf number `rank` of tokens `from..from + T` to a pairwise reduction, a binary counter of partial sums.
#[inline(always)]
fn pairwise_reduce<S: Simd, const T: usize>(
    simd: S,
    tree: &mut [[S::F32; BLOCK_TOKENS]; 5],
    rank: usize,
    from: usize,
    leaf: [S::F32; T],
) {
    let mut sums = leaf;
    let level = rank.trailing_ones() as usize;
    for held in &tree[..level] {
        for (sum, &held) in sums.iter_mut().zip(&held[from..from + T]) {
            *sum = simd.add(held, *sum);
        }
    }
    tree[level][from..from + T].copy_from_slice(&sums);
}
