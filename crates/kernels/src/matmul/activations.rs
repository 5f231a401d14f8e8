//! Activations packed into the layouts that the product kernels read.
//!
//! One token is multiplied with rows one by one (gemv) and its columns stay neighbours. Several tokens are multiplied
//! with tiles of sixteen rows (gemm), whose lanes are rows, so the tokens of a block are neighbours instead.

use super::layout::{ActivationLayout, Mode, block_tokens};
use super::matrix::Matrix;
use super::quantize::Group;
use crate::aligned::Aligned;
use crate::pool::Pool;
use crate::simd::{AMX_TOKENS, Isa, Kernel, Simd};

/// Activations of some tokens, packed for all matrices of one number of columns. Buffers are reused from call to call.
#[derive(Debug, Default)]
pub struct PackedActivations {
    pub(crate) tokens: usize,
    pub(crate) columns: usize,
    buffers: Vec<ActivationBuffer>,
    /// Number of buffers that the last [`PackedActivations::pack`] filled.
    filled: usize,
    /// Instruction set of the packing: each has its own order of bytes.
    pub(crate) isa: Option<Isa>,
}

/// Activations in one layout.
#[derive(Debug)]
pub(crate) struct ActivationBuffer {
    pub layout: ActivationLayout,
    /// Exact mode. One token: [vectors][columns per lane][16 lanes], the order of unpacked code words. Several:
    /// [block][columns][tokens], the columns of a group in [`ActivationLayout::exact_order`].
    pub values: Aligned<f32>,
    /// Fast mode, one token: per vector of codes the bytes that [`Simd::load_activations`] (INT8, two vectors) or
    /// [`Simd::load_int4_activations`] (INT4, four) reads. Several tokens for AMX: see [`PackForAmx`].
    pub codes: Aligned<[i8; 64]>,
    /// Fast mode, several tokens: [block][columns / 4][tokens] of [`Simd::pack_tile_activations`], or
    /// [block][columns / 8][tokens] of [`Simd::pack_int4_tile_activations`].
    pub words: Aligned<i32>,
    /// Fast mode, scale of each group. One token: [groups], zero-padded to 16; several: [block][groups][tokens].
    pub scales: Aligned<f32>,
    /// Sum of each group's values (exact mode) or codes (fast mode), in the layout of the scales.
    pub sums: Aligned<f32>,
}

impl PackedActivations {
    /// Packs `x` [tokens, columns] in every layout that the `matrices` [_, columns] need.
    ///
    /// # Panics
    /// If a matrix has another number of columns, or `x` is not [tokens, columns].
    pub fn pack<'m>(
        &mut self,
        isa: Isa,
        pool: &Pool,
        mode: Mode,
        x: &[f32],
        columns: usize,
        matrices: impl IntoIterator<Item = &'m Matrix<'m>>,
    ) {
        assert!(columns > 0 && x.len().is_multiple_of(columns), "{} numbers in rows of {columns}", x.len());
        self.tokens = x.len() / columns;
        self.columns = columns;
        self.filled = 0;
        self.isa = Some(isa);
        for matrix in matrices {
            assert_eq!(matrix.columns, columns, "columns of a matrix and its activations");
            let layout = ActivationLayout::of(matrix, mode);
            if self.buffers[..self.filled].iter().any(|buffer| buffer.layout == layout) {
                continue;
            }
            if self.filled == self.buffers.len() {
                self.buffers.push(ActivationBuffer::new(layout));
            }
            let buffer = &mut self.buffers[self.filled];
            buffer.layout = layout;
            buffer.fill(isa, pool, x, self.tokens, columns);
            self.filled += 1;
        }
    }

    pub(crate) fn in_layout(&self, layout: ActivationLayout) -> &ActivationBuffer {
        self.buffers[..self.filled]
            .iter()
            .find(|buffer| buffer.layout == layout)
            .expect("activations packed for this matrix")
    }

    /// Number of packed tokens.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Size of the buffers in bytes.
    pub fn size_bytes(&self) -> usize {
        let sizes = self.buffers.iter().map(|p| {
            let floats = p.values.size_bytes() + p.scales.size_bytes() + p.sums.size_bytes();
            floats + p.words.size_bytes() + p.codes.size_bytes()
        });
        sizes.sum()
    }
}

impl ActivationBuffer {
    fn new(layout: ActivationLayout) -> Self {
        Self {
            layout,
            values: Aligned::default(),
            codes: Aligned::default(),
            words: Aligned::default(),
            scales: Aligned::default(),
            sums: Aligned::default(),
        }
    }

    fn fill(&mut self, isa: Isa, pool: &Pool, x: &[f32], tokens: usize, columns: usize) {
        let layout = self.layout;
        if layout.group == 0 {
            self.values.resize(x.len());
            self.values.copy_from_slice(x);
            return;
        }
        let groups = columns.div_ceil(layout.group);
        let padded = groups * layout.group;
        if tokens == 1 {
            // The gemv kernels read sixteen groups at a time.
            let padded = groups.next_multiple_of(16) * layout.group;
            self.scales.resize(groups.next_multiple_of(16));
            self.sums.resize(groups.next_multiple_of(16));
            // Groups beyond the last are multiplied with the next row's scales, so they must be zero.
            self.scales[groups..].fill(0.0);
            self.sums[groups..].fill(0.0);
            match layout.mode {
                Mode::Exact => self.values.resize(padded),
                Mode::Fast => self.codes.resize(2 * padded / 64),
            }
            isa.run(PackOneToken { buffer: self, x });
            return;
        }
        if layout.mode == Mode::Fast && isa.amx().is_some() {
            self.fill_for_amx(isa, pool, x, columns);
            return;
        }
        self.scales.resize(groups * tokens);
        self.sums.resize(groups * tokens);
        let (mut values, mut words): (&mut [f32], &mut [i32]) = (&mut [], &mut []);
        match layout.mode {
            Mode::Exact => {
                self.values.resize(padded * tokens);
                values = &mut self.values;
            }
            Mode::Fast => {
                self.words.resize(padded / 2 * tokens);
                words = &mut self.words;
            }
        }
        let mut blocks: Vec<Block<'_>> = Vec::new();
        let (mut scales, mut sums) = (&mut self.scales[..], &mut self.sums[..]);
        let mut left = x;
        while !left.is_empty() {
            let tokens = block_tokens(left.len() / columns);
            let (x, rest) = left.split_at(tokens * columns);
            left = rest;
            let (value_count, word_count) = match layout.mode {
                Mode::Exact => (padded * tokens, 0),
                Mode::Fast => (0, padded / 2 * tokens),
            };
            blocks.push(Block {
                layout,
                columns,
                x,
                values: split_off_front(&mut values, value_count),
                words: split_off_front(&mut words, word_count),
                scales: split_off_front(&mut scales, groups * tokens),
                sums: split_off_front(&mut sums, groups * tokens),
            });
        }
        pool.for_each(&mut blocks, |block| isa.run(PackBlock { block }));
    }

    /// Packs several tokens for AMX, in blocks of sixteen whose unused tokens are not written.
    fn fill_for_amx(&mut self, isa: Isa, pool: &Pool, x: &[f32], columns: usize) {
        let layout = self.layout;
        let groups = columns.div_ceil(layout.group);
        let blocks = (x.len() / columns).div_ceil(AMX_TOKENS);
        let (numbers, lines) = (groups * AMX_TOKENS, 2 * groups * AMX_TOKENS * layout.group / 64);
        self.codes.resize(blocks * lines);
        self.scales.resize(blocks * numbers);
        self.sums.resize(blocks * numbers);
        let parts = self.scales.chunks_exact_mut(numbers).zip(self.sums.chunks_exact_mut(numbers));
        let mut blocks: Vec<_> = x
            .chunks(AMX_TOKENS * columns)
            .zip(self.codes.chunks_exact_mut(lines))
            .zip(parts)
            .map(|((x, codes), (scales, sums))| PackForAmx { layout, columns, x, codes, scales, sums })
            .collect();
        pool.for_each(&mut blocks, |block| isa.run(block));
    }
}

/// Splits `count` elements off the front.
fn split_off_front<'a, T>(from: &mut &'a mut [T], count: usize) -> &'a mut [T] {
    let (head, tail) = std::mem::take(from).split_at_mut(count);
    *from = tail;
    head
}

struct PackOneToken<'a> {
    buffer: &'a mut ActivationBuffer,
    x: &'a [f32],
}

impl Kernel for PackOneToken<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { buffer, x } = self;
        let layout = buffer.layout;
        let (group, vector_columns, width) =
            (layout.group, layout.columns_per_vector(), layout.columns_per_lane());
        match layout.mode {
            Mode::Exact => {
                // Step j of a vector: columns width * lane + j.
                for (i, vector) in buffer.values.chunks_exact_mut(vector_columns).enumerate() {
                    let x = &x[(i * vector_columns).min(x.len())..((i + 1) * vector_columns).min(x.len())];
                    vector.fill(0.0);
                    for (lane, elements) in x.chunks(width).enumerate() {
                        for (step, &value) in elements.iter().enumerate() {
                            vector[16 * step + lane] = value;
                        }
                    }
                }
            }
            Mode::Fast => buffer.codes.fill([0; 64]),
        }
        let (mut padded, mut halves) = ([0.0; 128], [[0; 128]; 2]);
        let bytes = buffer.codes.as_flattened_mut();
        for (g, start) in (0..x.len()).step_by(group).enumerate() {
            let values = Group::read(x, start, group, &mut padded);
            match layout.mode {
                Mode::Exact => buffer.sums[g] = values.sum(simd),
                Mode::Fast => {
                    (buffer.scales[g], buffer.sums[g]) = values.quantize(simd, layout.int4, &mut halves);
                    for (half, codes) in halves.iter().enumerate() {
                        let codes = &codes[..group];
                        if layout.int4 {
                            // 64 bytes of codes hold 128 columns: two vectors of the even ones, two of the odd ones.
                            let vector = 4 * (start / 128) + half;
                            let at = 64 * vector + start % 128 / 2;
                            let (even, odd) = bytes[at..at + 128 + codes.len() / 2].split_at_mut(128);
                            for ((pair, even), odd) in codes.as_chunks::<2>().0.iter().zip(even).zip(odd) {
                                (*even, *odd) = (pair[0], pair[1]);
                            }
                        } else {
                            for (i, codes) in codes.chunks(64).enumerate() {
                                let at = 64 * (2 * (start / 64 + i) + half) + start % 64;
                                bytes[at..at + codes.len()].copy_from_slice(codes);
                            }
                        }
                    }
                }
            }
        }
        if layout.int4 {
            for x in buffer.codes.as_chunks_mut().0 {
                simd.pack_int4_activations(x);
            }
        } else {
            for [upper, lower] in buffer.codes.as_chunks_mut().0 {
                simd.pack_activations(upper, lower);
            }
        }
    }
}

/// Up to [`BLOCK_TOKENS`](super::layout::BLOCK_TOKENS) tokens and the buffers that they are packed to.
struct Block<'a> {
    layout: ActivationLayout,
    columns: usize,
    x: &'a [f32],
    values: &'a mut [f32],
    words: &'a mut [i32],
    scales: &'a mut [f32],
    sums: &'a mut [f32],
}

struct PackBlock<'a, 'b> {
    block: &'a mut Block<'b>,
}

impl Kernel for PackBlock<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Block { layout, columns, x, values, words, scales, sums } = self.block;
        let (group, tokens) = (layout.group, x.len() / *columns);
        let order = layout.exact_order();
        let (mut padded, mut halves) = ([0.0; 128], [[0; 128]; 2]);
        for (t, x) in x.chunks_exact(*columns).enumerate() {
            for (g, start) in (0..x.len()).step_by(group).enumerate() {
                let numbers = Group::read(x, start, group, &mut padded);
                let at = g * tokens + t;
                match layout.mode {
                    Mode::Exact => {
                        sums[at] = numbers.sum(simd);
                        for (k, &column) in order[..group].iter().enumerate() {
                            values[(start + k) * tokens + t] = numbers.values()[column];
                        }
                    }
                    Mode::Fast => {
                        (scales[at], sums[at]) = numbers.quantize(simd, layout.int4, &mut halves);
                        let words = &mut words[start / 2 * tokens..];
                        if layout.int4 {
                            pack_words(&halves, group, t, tokens, words, S::pack_int4_tile_activations);
                        } else {
                            pack_words(&halves, group, t, tokens, words, S::pack_tile_activations);
                        }
                    }
                }
            }
        }
    }
}

/// Packs the halves of a group of token `t`, N columns at a time, by `pack` to `words` [group / N][tokens][W].
#[inline(always)]
fn pack_words<const N: usize, const W: usize>(
    [upper, lower]: &[[i8; 128]; 2],
    group: usize,
    t: usize,
    tokens: usize,
    words: &mut [i32],
    pack: impl Fn([i8; N], [i8; N]) -> [i32; W],
) {
    let halves = upper[..group].as_chunks().0.iter().zip(lower.as_chunks().0);
    let places = words.as_chunks_mut().0.iter_mut().skip(t).step_by(tokens);
    for ((&upper, &lower), place) in halves.zip(places) {
        *place = pack(upper, lower);
    }
}

/// Up to sixteen tokens and the buffers that they are packed to for AMX.
struct PackForAmx<'a> {
    layout: ActivationLayout,
    columns: usize,
    x: &'a [f32],
    /// [groups][halves][tokens][group]
    codes: &'a mut [[i8; 64]],
    /// [groups][tokens]
    scales: &'a mut [f32],
    /// [groups][tokens]
    sums: &'a mut [f32],
}

impl Kernel for &mut PackForAmx<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let PackForAmx { layout, columns, x, codes, scales, sums } = self;
        let group = layout.group;
        let codes = codes.as_flattened_mut();
        let (mut padded, mut halves) = ([0.0; 128], [[0; 128]; 2]);
        for (t, x) in x.chunks_exact(*columns).enumerate() {
            for (g, start) in (0..x.len()).step_by(group).enumerate() {
                let at = g * AMX_TOKENS + t;
                let numbers = Group::read(x, start, group, &mut padded);
                (scales[at], sums[at]) = numbers.quantize(simd, layout.int4, &mut halves);
                for (half, from) in halves.iter().enumerate() {
                    let to = &mut codes[((2 * g + half) * AMX_TOKENS + t) * group..][..group];
                    for (to, &from) in to.as_chunks_mut::<8>().0.iter_mut().zip(from.as_chunks().0) {
                        *to = layout.amx_order(from);
                    }
                }
            }
        }
    }
}
