//! Several tokens times sixteen rows: prefill, bound by arithmetic.
//!
//! The rows' codes are taken apart once, into a tile whose vectors hold one element (or one word of codes) of each of
//! the sixteen rows, and meet every token there: lanes are rows, so no sum runs across lanes and a group
//! costs three more operations than its products. The sums are added in the order in which one token's product
//! adds them across lanes ([`crate::row`]): a binary counter walks the same tree leaf by leaf.

use std::ops::Range;

use crate::aligned::Aligned;
use crate::columns::ColumnBlock;
use crate::elementwise::store_part;
use crate::format::{Bytes, Nibbles, TileFormat};
use crate::input::{Form, Mode, Prepared, TOKENS, TREE, block_tokens};
use crate::matrix::{Codes, Floats, Matrix, Scaling};
use crate::row::{Scratch, float_dot, float_row};
use crate::simd::{Kernel, MatrixUnit, Session, Simd};
use crate::stream::unpack;
use crate::unit::{self, UnitSpace};

/// Some rows, those of the columns of `out` [tokens, rows], times all tokens.
pub(crate) struct Tiles<'a, 'b> {
    pub matrix: &'a Matrix<'a>,
    pub x: &'a Prepared,
    pub out: &'a mut ColumnBlock<'b, f32>,
    pub scratch: &'a mut Scratch,
    pub unit: Option<MatrixUnit>,
}

impl Kernel for Tiles<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { matrix, x, out, scratch, unit } = self;
        let (first, rows) = (out.start(), out.columns());
        let columns = matrix.columns;
        if let Codes::Float(floats) = matrix.codes {
            for row in 0..rows {
                float_row(simd, floats, (first + row) * columns, columns, &mut scratch.values);
                for (token, x) in x.values.chunks_exact(columns).enumerate() {
                    out.row(token)[row] = float_dot(simd, &scratch.values, x);
                }
            }
            return;
        }
        let Scratch { codes: plain, tiles: [first_tile, second_tile], .. } = scratch;
        #[cfg_attr(
            not(all(target_arch = "x86_64", target_os = "linux")),
            expect(unreachable_code, reason = "nobody has a matrix unit there")
        )]
        let mut space = match unit {
            Some(unit) if x.form.mode == Mode::Fast => {
                Space::Unit(unit.begin(x.form.group), UnitSpace::new(simd))
            }
            _ => Space::Vectors(Trees::new(simd)),
        };
        let mut from = 0;
        while from < rows {
            let for_unit = matches!(space, Space::Unit(..));
            let next = (from + 16).min(rows);
            let tile =
                Tile::decode(simd, matrix, x.form, first + from..first + next, for_unit, plain, first_tile);
            if S::TILES == 2 && next < rows {
                let second = first + next..first + (next + 16).min(rows);
                let second = Tile::decode(simd, matrix, x.form, second, for_unit, plain, second_tile);
                space.products(simd, &[tile, second], x, from, out);
            } else {
                space.products(simd, &[tile], x, from, out);
            }
            from += 16 * S::TILES;
        }
    }
}

/// What multiplies tiles, and its work space.
#[expect(clippy::large_enum_variant, reason = "one at a time, on the stack")]
enum Space<S: Simd> {
    Unit(Session, UnitSpace<S>),
    Vectors(Trees<S>),
}

impl<S: Simd> Space<S> {
    /// Writes the products of tiles, rows `from..` of the block, with all tokens.
    #[inline(always)]
    fn products<const R: usize>(
        &mut self,
        simd: S,
        tiles: &[Tile<'_>; R],
        x: &Prepared,
        from: usize,
        out: &mut ColumnBlock<'_, f32>,
    ) {
        match self {
            Self::Unit(session, space) => {
                unit::products(simd, session, [&tiles[0], &tiles[R - 1]], x, from, out, space);
            }
            Self::Vectors(trees) => products(simd, tiles, x, from, out, trees),
        }
    }
}

/// Writes the products of tiles, rows `from..` of the block, with all tokens.
#[inline(always)]
fn products<S: Simd, const R: usize>(
    simd: S,
    tiles: &[Tile<'_>; R],
    x: &Prepared,
    from: usize,
    out: &mut ColumnBlock<'_, f32>,
    trees: &mut Trees<S>,
) {
    let form = tiles[0].form;
    let (tokens, mut done) = (out.rows(), 0);
    while done < tokens {
        let now = block_tokens(tokens - done);
        macro_rules! times {
            ($T:expr) => {{
                let block = XBlock::<$T>::of(x, done, tiles[0].groups);
                match form.mode {
                    Mode::Fast if form.nibbles => {
                        times_integers::<S, Nibbles, $T, R>(simd, tiles, block, trees)
                    }
                    Mode::Fast => times_integers::<S, Bytes, $T, R>(simd, tiles, block, trees),
                    Mode::Exact => times_reals::<S, $T, R>(simd, tiles, block, trees),
                }
            }};
        }
        match now {
            1 => times!(1),
            2 => times!(2),
            4 => times!(4),
            _ => times!(TOKENS),
        }
        for (tile, tree) in trees.slots.iter().enumerate().take(R) {
            for (token, &sum) in tree[4].iter().enumerate().take(now) {
                store_part(simd, sum, &mut out.row(done + token)[from + 16 * tile..]);
            }
        }
        done += now;
    }
}

/// Where a tile is taken apart.
#[derive(Debug, Default)]
pub(crate) struct TileSpace {
    codes: Aligned<u8>,
    /// Values if they are wanted, scales, biases.
    values: Aligned<f32>,
}

/// Sixteen rows, taken apart.
pub(crate) struct Tile<'a> {
    pub form: Form,
    pub groups: usize,
    /// Fast: [columns / 4] vectors of four bytes of each row; of nibbles [columns / 8], but for the matrix unit.
    pub codes: &'a [[u8; 64]],
    /// Exact: [columns] vectors of one code of each row, as floats.
    values: &'a [[f32; 16]],
    /// [groups] vectors.
    pub scales: &'a [[f32; 16]],
    /// [groups] vectors, or none for symmetric codes.
    pub biases: &'a [[f32; 16]],
}

/// T tokens of prepared activations.
#[derive(Clone, Copy)]
struct XBlock<'a, const T: usize> {
    /// Exact: [columns].
    values: &'a [[f32; T]],
    /// Fast: [columns / 8][T] of four words, or [columns / 4][T] of two.
    words: &'a [i32],
    /// [groups]
    sums: &'a [[f32; T]],
    /// [groups]
    scales: &'a [[f32; T]],
}

impl<'a, const T: usize> XBlock<'a, T> {
    /// Tokens `before..before + T`.
    #[inline(always)]
    fn of(x: &'a Prepared, before: usize, groups: usize) -> Self {
        let padded = groups * x.form.group;
        let (values, words): (&[f32], &[i32]) = match x.form.mode {
            Mode::Exact => (&x.values[before * padded..][..T * padded], &[]),
            Mode::Fast => (&[], &x.words[before * padded / 2..][..T * padded / 2]),
        };
        let numbers = |of: &'a [f32]| of[before * groups..][..T * groups].as_chunks().0;
        let (sums, scales) = (numbers(&x.sums), numbers(&x.scales));
        Self { values: values.as_chunks().0, words, sums, scales }
    }
}

/// $take::<$at>, where a code's place in its word is known at run time only.
macro_rules! code_at {
    ($simd:ident, $words:ident, $at:expr, $take:ident, $($j:literal)*) => {
        match $at {
            $($j => $simd.$take::<$j>($words),)*
            at => unreachable!("a code's place in a word: {at}"),
        }
    };
}

impl<'a> Tile<'a> {
    #[inline(always)]
    fn decode<S: Simd>(
        simd: S,
        matrix: &Matrix<'_>,
        form: Form,
        rows: Range<usize>,
        for_unit: bool,
        plain: &mut Aligned<u8>,
        space: &'a mut TileSpace,
    ) -> Self {
        let (first, count) = (rows.start, rows.len());
        let groups = matrix.columns.div_ceil(form.group);
        let padded = groups * form.group;
        let affine = matches!(matrix.scaling, Scaling::Affine { .. });
        let columns_of_word = if form.nibbles && !for_unit { 8 } else { 4 };
        space.codes.resize(64 * padded / columns_of_word);
        let value_count = if form.mode == Mode::Exact { 16 * padded } else { 0 };
        let scale_count = 16 * groups;
        space.values.resize(value_count + 2 * scale_count);
        let (values, floats) = space.values.split_at_mut(value_count);
        let (scales, biases) = floats.split_at_mut(scale_count);

        let codes = space.codes.as_chunks_mut::<64>().0;
        let columns = matrix.columns;
        match matrix.codes {
            Codes::Nibbles(bytes) => {
                let rows = Rows { bytes, stride: columns / 2, first, count };
                take_apart(simd, rows, if for_unit { Packing::Nibbles } else { Packing::Bytes }, codes);
            }
            Codes::Bytes(bytes) => {
                take_apart(simd, Rows { bytes, stride: columns, first, count }, Packing::Bytes, codes);
            }
            Codes::Signed(bytes) | Codes::Rounded(bytes) => {
                let packing = if form.mode == Mode::Fast { Packing::Flipped } else { Packing::Bytes };
                take_apart(simd, Rows { bytes, stride: columns, first, count }, packing, codes);
            }
            Codes::Stream { bits, bytes } => {
                let bytes = &bytes[first * columns * bits / 8..][..count * columns * bits / 8];
                plain.resize(count * columns);
                unpack(simd, bits, bytes, plain);
                take_apart(
                    simd,
                    Rows { bytes: plain, stride: columns, first: 0, count },
                    Packing::Bytes,
                    codes,
                );
            }
            Codes::Float(_) => {}
        }
        let (scales, biases) = (scales.as_chunks_mut::<16>().0, biases.as_chunks_mut::<16>().0);
        match matrix.scaling {
            Scaling::Affine { scales: s, biases: b, .. } => {
                transpose_floats(simd, s, first, count, groups, scales);
                transpose_floats(simd, b, first, count, groups, biases);
            }
            Scaling::Blocks { scales: s, .. } => transpose_floats(simd, s, first, count, groups, scales),
            Scaling::Rows { scales: s } => {
                let mut lanes = [0.0; 16];
                s.read(first, &mut lanes[..count]);
                scales.fill(lanes);
            }
            Scaling::None => {}
        }
        let values = values.as_chunks_mut::<16>().0;
        if form.mode == Mode::Exact {
            let signed = matches!(matrix.codes, Codes::Signed(_) | Codes::Rounded(_));
            let rounded = matches!(matrix.codes, Codes::Rounded(_));
            let order = form.exact_order();
            let codes = codes.chunks_exact(form.group / columns_of_word);
            let of_groups = values.chunks_exact_mut(form.group).zip(codes);
            for ((values, codes), scale) in of_groups.zip(&mut *scales) {
                let factor = simd.load(scale);
                for (value, &place) in values.iter_mut().zip(&order) {
                    let words = simd.words(simd.load_bytes(&codes[place / columns_of_word]));
                    let taken = match (form.nibbles, signed) {
                        (true, _) => code_at!(simd, words, place % 8, nibble, 0 1 2 3 4 5 6 7),
                        (_, false) => code_at!(simd, words, place % 4, byte, 0 1 2 3),
                        (_, true) => code_at!(simd, words, place % 4, signed_byte, 0 1 2 3),
                    };
                    let taken = if rounded { simd.round_to_f16(simd.mul(taken, factor)) } else { taken };
                    simd.store(taken, value);
                }
                if rounded {
                    *scale = [1.0; 16];
                }
            }
        }
        Self { form, groups, codes, values, scales, biases: if affine { biases } else { &[] } }
    }
}

/// Tiles times T tokens: the products with each row are the last level of the slots' trees.
#[inline(always)]
fn times_integers<S: Simd, F: TileFormat, const T: usize, const R: usize>(
    simd: S,
    tiles: &[Tile<'_>; R],
    block: XBlock<'_, T>,
    trees: &mut Trees<S>,
) {
    macro_rules! at_a_time {
        ($N:expr) => {
            if F::PASSES {
                times_some_integers::<S, F, T, R, $N, $N>(simd, tiles, block, trees)
            } else {
                times_some_integers::<S, F, T, R, T, $N>(simd, tiles, block, trees)
            }
        };
    }
    match F::tokens::<S>().min(T) {
        1 => at_a_time!(1),
        2 => at_a_time!(2),
        4 => at_a_time!(4),
        _ => at_a_time!(TOKENS),
    }
}

/// [`times_integers`], M tokens in a pass over the tiles, of which N at a time meet a group.
#[inline(always)]
fn times_some_integers<
    S: Simd,
    F: TileFormat,
    const T: usize,
    const R: usize,
    const M: usize,
    const N: usize,
>(
    simd: S,
    tiles: &[Tile<'_>; R],
    block: XBlock<'_, T>,
    trees: &mut Trees<S>,
) {
    for from in (0..T).step_by(M) {
        for (rank, &slot) in TREE.iter().enumerate() {
            let mut sums = [[simd.splat(0.0); M]; R];
            for g in (slot..tiles[0].groups).step_by(16) {
                for part in (0..M).step_by(N) {
                    add_integers::<S, F, T, R, M, N>(simd, tiles, block, g, from + part, part, &mut sums);
                }
            }
            for (tree, sums) in trees.slots.iter_mut().zip(sums) {
                count_up(simd, tree, rank, from, sums);
            }
        }
    }
}

/// Adds the scaled products of group `g` with N tokens from `from` on to their `sums` [tiles][tokens], from `part` on.
#[inline(always)]
fn add_integers<S: Simd, F: TileFormat, const T: usize, const R: usize, const M: usize, const N: usize>(
    simd: S,
    tiles: &[Tile<'_>; R],
    block: XBlock<'_, T>,
    g: usize,
    from: usize,
    part: usize,
    sums: &mut [[S::F; M]; R],
) {
    let group = tiles[0].form.group;
    let vectors = group / F::COLUMNS;
    let x = &F::kept::<T>(&block.words[g * group / 2 * T..])[..vectors];
    let codes = tiles.each_ref().map(|tile| &tile.codes[g * vectors..][..vectors]);
    let mut dots = [[F::none(simd); N]; R];
    for (vector, x) in x.iter().enumerate() {
        let mut taken = [F::codes(simd, &codes[0][vector]); R];
        for r in 1..R {
            taken[r] = F::codes(simd, &codes[r][vector]);
        }
        for n in 0..N {
            let x = F::repeat(simd, &x[from + n]);
            for r in 0..R {
                dots[r][n] = F::dot(simd, dots[r][n], taken[r], x);
            }
        }
    }
    // Not a loop over tiles: their sums would lie in memory, and be written there with every product.
    let x = (&block.scales[g][from..], &block.sums[g][from..]);
    add_scaled::<S, F, N>(simd, &tiles[0], g, x, dots[0], &mut sums[0][part..]);
    if R == 2 {
        add_scaled::<S, F, N>(simd, &tiles[1], g, x, dots[1], &mut sums[1][part..]);
    }
}

/// Adds the whole products `dots` of group `g`, scaled, to `sums`; `x` are the scales and the sums of the group's
/// activations.
#[inline(always)]
fn add_scaled<S: Simd, F: TileFormat, const N: usize>(
    simd: S,
    tile: &Tile<'_>,
    g: usize,
    (x_scales, x_sums): (&[f32], &[f32]),
    dots: [F::Sum<S>; N],
    sums: &mut [S::F],
) {
    let (scale, bias) = (simd.load(&tile.scales[g]), tile.biases.get(g));
    for n in 0..N {
        let mut dot = F::end(simd, dots[n]);
        if !F::SMALL && S::OFFSET != 0 {
            dot = simd.int_add(dot, simd.int_splat(S::OFFSET * x_sums[n] as i32));
        }
        sums[n] = scaled(simd, dot, scale, bias, (x_scales[n], x_sums[n]), sums[n]);
    }
}

/// `sum` plus the whole products `dot` of a group with sixteen rows, scaled; `x` are the scale and the sum of the
/// group's activations. Without biases, 128 was added to each code.
#[inline(always)]
pub(crate) fn scaled<S: Simd>(
    simd: S,
    dot: S::I,
    scale: S::F,
    bias: Option<&[f32; 16]>,
    (x_scale, x_sum): (f32, f32),
    sum: S::F,
) -> S::F {
    let (dot, x_sum) = (simd.float(dot), simd.splat(x_sum));
    let value = match bias {
        Some(bias) => simd.fma(scale, dot, simd.mul(simd.load(bias), x_sum)),
        None => simd.mul(scale, simd.sub(dot, simd.mul(simd.splat(128.0), x_sum))),
    };
    simd.fma(simd.splat(x_scale), value, sum)
}

/// [`times_integers`] of floats.
#[inline(always)]
fn times_reals<S: Simd, const T: usize, const R: usize>(
    simd: S,
    tiles: &[Tile<'_>; R],
    block: XBlock<'_, T>,
    trees: &mut Trees<S>,
) {
    for (rank, &slot) in TREE.iter().enumerate() {
        let mut sums = [[simd.splat(0.0); T]; R];
        for g in (slot..tiles[0].groups).step_by(16) {
            add_reals::<S, T, R>(simd, tiles, block, g, trees, &mut sums);
        }
        for (tree, sums) in trees.slots.iter_mut().zip(sums) {
            count_up(simd, tree, rank, 0, sums);
        }
    }
}

/// [`add_integers`] of floats, in the order of a single token's product.
#[inline(always)]
fn add_reals<S: Simd, const T: usize, const R: usize>(
    simd: S,
    tiles: &[Tile<'_>; R],
    block: XBlock<'_, T>,
    g: usize,
    trees: &mut Trees<S>,
    sums: &mut [[S::F; T]; R],
) {
    let form = tiles[0].form;
    let group = form.group;
    let x = &block.values[g * group..][..group];
    let x_sums = &block.sums[g];
    let values = tiles.each_ref().map(|tile| &tile.values[g * group..][..group]);
    let chain = form.chain();
    for (leaf, x) in x.chunks_exact(chain).enumerate() {
        let mut parts = [[simd.splat(0.0); T]; R];
        for (k, x) in x.iter().enumerate() {
            for t in 0..T {
                let x = simd.splat(x[t]);
                for r in 0..R {
                    parts[r][t] = simd.fma(simd.load(&values[r][leaf * chain + k]), x, parts[r][t]);
                }
            }
        }
        for (tree, parts) in trees.lanes.iter_mut().zip(parts) {
            count_up(simd, tree, leaf, 0, parts);
        }
    }
    for r in 0..R {
        let dots = &trees.lanes[r][(group / chain).ilog2() as usize];
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

/// Partial sums of the two tiles' tokens: level l holds a sum of 2^l leaves. Nothing is read before it was written for
/// the sum in hand, so they are made once for many sums.
struct Trees<S: Simd> {
    /// Of slots.
    slots: [[[S::F; TOKENS]; 5]; 2],
    /// Of lanes, within a group of floats.
    lanes: [[[S::F; TOKENS]; 5]; 2],
}

impl<S: Simd> Trees<S> {
    #[inline(always)]
    fn new(simd: S) -> Self {
        let zeros = [[[simd.splat(0.0); TOKENS]; 5]; 2];
        Self { slots: zeros, lanes: zeros }
    }
}

/// Adds leaf number `rank` of tokens `from..from + T` to a binary counter of partial sums.
#[inline(always)]
fn count_up<S: Simd, const T: usize>(
    simd: S,
    tree: &mut [[S::F; TOKENS]; 5],
    rank: usize,
    from: usize,
    leaf: [S::F; T],
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

/// Rows `first..first + count` of `floats` [rows, groups] to vectors of one number of each row, zeros for rows beyond.
#[inline(always)]
fn transpose_floats<S: Simd>(
    simd: S,
    floats: Floats<'_>,
    first: usize,
    count: usize,
    groups: usize,
    out: &mut [[f32; 16]],
) {
    for (chunk, out) in out.chunks_mut(16).enumerate() {
        let mut vectors = [simd.int_splat(0); 16];
        for (row, vector) in vectors.iter_mut().enumerate().take(count) {
            let lanes = floats.lanes(simd, (first + row) * groups + 16 * chunk, out.len());
            *vector = simd.float_bits(lanes);
        }
        simd.int_transpose(&mut vectors);
        for (out, vector) in out.iter_mut().zip(vectors) {
            simd.store(simd.float_of_bits(vector), out);
        }
    }
}

/// Up to sixteen rows of bytes.
#[derive(Clone, Copy)]
struct Rows<'a> {
    bytes: &'a [u8],
    /// Bytes of a row.
    stride: usize,
    first: usize,
    count: usize,
}

/// What the bytes of rows hold.
#[derive(Clone, Copy)]
enum Packing {
    /// Two codes each.
    Nibbles,
    /// One code each.
    Bytes,
    /// One signed code each, to which 128 is to be added.
    Flipped,
}

/// Words of sixteen rows to vectors of one word of each, and nibbles to bytes. Rows and bytes that do not exist
/// become zeros.
#[inline(always)]
fn take_apart<S: Simd>(simd: S, rows: Rows<'_>, packing: Packing, tile: &mut [[u8; 64]]) {
    let per_word = if matches!(packing, Packing::Nibbles) { 2 } else { 1 };
    // The same row of the tiles that come next: meanwhile these meet their tokens.
    let next = 16 * S::TILES * rows.stride;
    for (block, tile) in tile.chunks_mut(16 * per_word).enumerate() {
        let mut vectors = [simd.int_splat(0); 16];
        for (row, vector) in vectors.iter_mut().enumerate().take(rows.count) {
            let row = &rows.bytes[(rows.first + row) * rows.stride..][..rows.stride];
            let bytes = row.get(64 * block..).unwrap_or_default();
            simd.prefetch(bytes, next);
            *vector = match bytes.first_chunk() {
                Some(bytes) => simd.words(simd.load_bytes(bytes)),
                None => {
                    let mut last = [0; 64];
                    last[..bytes.len()].copy_from_slice(bytes);
                    simd.words(simd.load_bytes(&last))
                }
            };
        }
        simd.int_transpose(&mut vectors);
        match packing {
            Packing::Nibbles => {
                for (pair, vector) in tile.as_chunks_mut::<2>().0.iter_mut().zip(vectors) {
                    let bytes = simd.bytes(vector);
                    simd.store_bytes(simd.low_nibbles(bytes), &mut pair[0]);
                    simd.store_bytes(simd.high_nibbles(bytes), &mut pair[1]);
                }
            }
            Packing::Bytes => {
                for (tile, vector) in tile.iter_mut().zip(vectors) {
                    simd.store_bytes(simd.bytes(vector), tile);
                }
            }
            Packing::Flipped => {
                for (tile, vector) in tile.iter_mut().zip(vectors) {
                    simd.store_bytes(simd.flip_sign(simd.bytes(vector)), tile);
                }
            }
        }
    }
}
