//! Several tokens times sixteen rows: prefill, bound by arithmetic.
//!
//! The rows' codes are taken apart once, into a tile whose vectors hold one element (or four neighbouring codes) of
//! each of the sixteen rows, and meet every token there: lanes are rows, so no sum runs across lanes and a group
//! costs three more operations than its products. The sums are added in the order in which one token's product
//! adds them across lanes ([`crate::row`]): a binary counter walks the same tree leaf by leaf.

use crate::columns::ColumnBlock;
use crate::input::{Form, Mode, Prepared, TOKENS, TREE, block_tokens};
use crate::matrix::{Codes, Floats, Matrix, Scaling};
use crate::row::{Scratch, float_dot, float_row};
use crate::simd::{Kernel, Simd};
use crate::stream::unpack;

/// Some rows, those of the columns of `out` [tokens, rows], times all tokens.
pub(crate) struct Tiles<'a, 'b> {
    pub matrix: &'a Matrix<'a>,
    pub x: &'a Prepared,
    pub out: &'a mut ColumnBlock<'b, f32>,
    pub scratch: &'a mut Scratch,
}

impl Kernel for Tiles<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { matrix, x, out, scratch } = self;
        let (first, rows, tokens) = (out.start(), out.columns(), out.rows());
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
        for from in (0..rows).step_by(16) {
            let count = (rows - from).min(16);
            let tile = Tile::decode(simd, matrix, x.form, first + from, count, scratch);
            let mut done = 0;
            while done < tokens {
                let now = block_tokens(tokens - done);
                let block = XBlock { x, tokens: now, before: done, padded: tile.groups * x.form.group };
                let mut write = |token: usize, values: &[f32; 16]| {
                    out.row(done + token)[from..from + count].copy_from_slice(&values[..count]);
                };
                match now {
                    1 => tile.times::<S, 1>(simd, block, &mut write),
                    2 => tile.times::<S, 2>(simd, block, &mut write),
                    4 => tile.times::<S, 4>(simd, block, &mut write),
                    _ => tile.times::<S, TOKENS>(simd, block, &mut write),
                }
                done += now;
            }
        }
    }
}

/// Sixteen rows, taken apart.
struct Tile<'a> {
    form: Form,
    groups: usize,
    /// Fast: [columns / 4] vectors of four codes of each row.
    codes: &'a [[u8; 64]],
    /// Exact: [columns] vectors of one code of each row, as floats.
    values: &'a [[f32; 16]],
    /// [groups] vectors.
    scales: &'a [[f32; 16]],
    /// [groups] vectors, or none for symmetric codes.
    biases: &'a [[f32; 16]],
}

/// Tokens `before..before + tokens` of prepared activations.
#[derive(Clone, Copy)]
struct XBlock<'a> {
    x: &'a Prepared,
    tokens: usize,
    before: usize,
    padded: usize,
}

impl<'a> Tile<'a> {
    #[inline(always)]
    fn decode<S: Simd>(
        simd: S,
        matrix: &Matrix<'_>,
        form: Form,
        first: usize,
        count: usize,
        scratch: &'a mut Scratch,
    ) -> Self {
        let groups = matrix.columns.div_ceil(form.group);
        let padded = groups * form.group;
        let affine = matches!(matrix.scaling, Scaling::Affine { .. });
        // Rows of codes taken out of a bit stream, then the tile's.
        let tile_bytes = 16 * padded;
        scratch.codes.resize(2 * tile_bytes, 0);
        let value_count = if form.mode == Mode::Exact { tile_bytes } else { 0 };
        let scale_count = 16 * groups;
        scratch.values.resize(value_count + 2 * scale_count, 0.0);
        let (plain, codes) = scratch.codes.split_at_mut(tile_bytes);
        let (values, floats) = scratch.values.split_at_mut(value_count);
        let (scales, biases) = floats.split_at_mut(scale_count);

        let codes = codes.as_chunks_mut::<64>().0;
        let columns = matrix.columns;
        match matrix.codes {
            Codes::Nibbles(bytes) => {
                let rows = Rows { bytes, stride: columns / 2, first, count };
                take_apart(simd, rows, Packing::Nibbles, codes);
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
                unpack(simd, bits, bytes, &mut plain[..count * columns]);
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
            // The place of an element in the tile's fast packing, in the order of exact sums.
            let mut order = [0; 128];
            for (place, element) in order.iter_mut().zip(form.exact_order()) {
                *place = form.fast_place(element);
            }
            let of_groups = values.chunks_exact_mut(form.group).zip(codes.chunks_exact(form.group / 4));
            for ((values, codes), scale) in of_groups.zip(&mut *scales) {
                let factor = simd.load(scale);
                for (value, &place) in values.iter_mut().zip(&order) {
                    let words = simd.words(simd.load_bytes(&codes[place / 4]));
                    let taken = match (signed, place % 4) {
                        (false, 0) => simd.byte::<0>(words),
                        (false, 1) => simd.byte::<1>(words),
                        (false, 2) => simd.byte::<2>(words),
                        (false, _) => simd.byte::<3>(words),
                        (true, 0) => simd.signed_byte::<0>(words),
                        (true, 1) => simd.signed_byte::<1>(words),
                        (true, 2) => simd.signed_byte::<2>(words),
                        (true, _) => simd.signed_byte::<3>(words),
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

    /// Times T tokens, which are those of `block`.
    #[inline(always)]
    fn times<S: Simd, const T: usize>(
        &self,
        simd: S,
        block: XBlock<'_>,
        write: &mut impl FnMut(usize, &[f32; 16]),
    ) {
        let (form, groups) = (self.form, self.groups);
        let x = block.x;
        let x_sums = &x.sums[block.before * groups..].as_chunks::<T>().0[..groups];
        let x_scales = match form.mode {
            Mode::Fast => &x.scales[block.before * groups..].as_chunks::<T>().0[..groups],
            Mode::Exact => x_sums,
        };
        debug_assert_eq!(block.tokens, T);
        let mut tree = [[simd.splat(0.0); T]; 5];
        for (rank, &slot) in TREE.iter().enumerate() {
            let mut sums = [simd.splat(0.0); T];
            for g in (slot..groups).step_by(16) {
                let dots = match form.mode {
                    Mode::Fast => self.integers::<S, T>(simd, block, g),
                    Mode::Exact => self.reals::<S, T>(simd, block, g),
                };
                let scale = simd.load(&self.scales[g]);
                match (self.biases.get(g), form.mode) {
                    (Some(bias), mode) => {
                        let bias = simd.load(bias);
                        for t in 0..T {
                            let value = simd.fma(scale, dots[t], simd.mul(bias, simd.splat(x_sums[g][t])));
                            sums[t] = match mode {
                                Mode::Fast => simd.fma(simd.splat(x_scales[g][t]), value, sums[t]),
                                Mode::Exact => simd.add(sums[t], value),
                            };
                        }
                    }
                    (None, Mode::Fast) => {
                        for t in 0..T {
                            let offset = simd.mul(simd.splat(128.0), simd.splat(x_sums[g][t]));
                            let value = simd.mul(scale, simd.sub(dots[t], offset));
                            sums[t] = simd.fma(simd.splat(x_scales[g][t]), value, sums[t]);
                        }
                    }
                    (None, Mode::Exact) => {
                        for t in 0..T {
                            sums[t] = simd.fma(scale, dots[t], sums[t]);
                        }
                    }
                }
            }
            count_up::<S, T>(simd, &mut tree, rank, sums);
        }
        for (token, &sum) in tree[4].iter().enumerate() {
            let mut values = [0.0; 16];
            simd.store(sum, &mut values);
            write(token, &values);
        }
    }

    #[inline(always)]
    fn integers<S: Simd, const T: usize>(&self, simd: S, block: XBlock<'_>, g: usize) -> [S::F; T] {
        let quads = self.form.group / 4;
        let x = &block.x.quads[block.before * block.padded / 4..].as_chunks::<T>().0[g * quads..][..quads];
        let mut sums = [simd.begin_sum(simd.int_splat(0)); T];
        for (codes, x) in self.codes[g * quads..][..quads].iter().zip(x) {
            let codes = simd.load_bytes(codes);
            for t in 0..T {
                let x = simd.repeat_halves(x[t][0], x[t][1]);
                sums[t] = if self.form.nibbles {
                    simd.add_small_products(sums[t], codes, x)
                } else {
                    simd.add_products(sums[t], codes, x)
                };
            }
        }
        let mut out = [simd.splat(0.0); T];
        for t in 0..T {
            out[t] = simd.float(simd.end_sum(sums[t]));
        }
        out
    }

    #[inline(always)]
    fn reals<S: Simd, const T: usize>(&self, simd: S, block: XBlock<'_>, g: usize) -> [S::F; T] {
        let group = self.form.group;
        let x = &block.x.values[block.before * block.padded..].as_chunks::<T>().0[g * group..][..group];
        let values = &self.values[g * group..][..group];
        let chain = self.form.chain();
        let mut tree = [[simd.splat(0.0); T]; 5];
        for (leaf, (values, x)) in values.chunks_exact(chain).zip(x.chunks_exact(chain)).enumerate() {
            let mut sums = [simd.splat(0.0); T];
            for (value, x) in values.iter().zip(x) {
                let value = simd.load(value);
                for t in 0..T {
                    sums[t] = simd.fma(value, simd.splat(x[t]), sums[t]);
                }
            }
            count_up::<S, T>(simd, &mut tree, leaf, sums);
        }
        tree[(group / chain).ilog2() as usize]
    }
}

/// Adds leaf number `rank` to a binary counter of partial sums: level l holds a sum of 2^l leaves.
#[inline(always)]
fn count_up<S: Simd, const T: usize>(simd: S, tree: &mut [[S::F; T]; 5], rank: usize, leaf: [S::F; T]) {
    let mut sums = leaf;
    let level = rank.trailing_ones() as usize;
    for held in &tree[..level] {
        for t in 0..T {
            sums[t] = simd.add(held[t], sums[t]);
        }
    }
    tree[level] = sums;
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
    for (block, tile) in tile.chunks_mut(16 * per_word).enumerate() {
        let mut vectors = [simd.int_splat(0); 16];
        for (row, vector) in vectors.iter_mut().enumerate().take(rows.count) {
            let row = &rows.bytes[(rows.first + row) * rows.stride..][..rows.stride];
            let bytes = row.get(64 * block..).unwrap_or_default();
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
