//! Activations in the order and form in which products read them.
//!
//! A product's arithmetic is fixed per (row, token), whatever is computed together (see [`crate::multiply`]). One
//! token meets rows one after another ([`crate::row`]) and wants its numbers beside each other; several tokens meet
//! a decoded tile of sixteen rows ([`crate::tile`]), where lanes are rows, and want the tokens beside each other.

use crate::aligned::Aligned;
use crate::elementwise::largest_magnitude;
use crate::halves::{PAIR_STEPS, STEPS, split};
use crate::matrix::{Codes, Matrix, ROW_GROUP, Scaling};
use crate::pool::Pool;
use crate::simd::{Isa, Kernel, Simd, UNIT_TOKENS};
use crate::unit::UnitTokens;

/// Whether activations keep their f32 values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// f32 activations, f32 sums.
    Exact,
    /// Activations rounded to sixteen bits, or to twelve where codes are nibbles, with one scale per group; integer sums
    /// within a group.
    Fast,
}

/// Most tokens that a tile is multiplied with at a time.
pub(crate) const TOKENS: usize = 8;

/// The number of tokens in the next block when `left` are left: powers of two, so that few kernels do for all.
pub(crate) fn block_tokens(left: usize) -> usize {
    if left >= TOKENS { TOKENS } else { 1 << left.ilog2() }
}

/// What a matrix wants of its activations; matrices of one form share them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Form {
    pub mode: Mode,
    /// Codes are nibbles: a byte holds two neighbours.
    pub nibbles: bool,
    /// Columns that share a scale; 0 for matrices of floats.
    pub group: usize,
}

impl Form {
    pub(crate) fn of(matrix: &Matrix<'_>, mode: Mode) -> Self {
        let group = match matrix.scaling {
            Scaling::Affine { group, .. } | Scaling::Blocks { group, .. } => group,
            Scaling::Rows { .. } => ROW_GROUP,
            Scaling::None => return Self { mode: Mode::Exact, nibbles: false, group: 0 },
        };
        let mode = if matches!(matrix.codes, Codes::Rounded(_)) { Mode::Exact } else { mode };
        Self { mode, nibbles: matches!(matrix.codes, Codes::Nibbles(_)), group }
    }

    /// Elements of a group that one lane multiplies in one vector: neighbours, so that a word holds them.
    fn lane_elements(self) -> usize {
        if self.nibbles { 8 } else { 4 }
    }

    /// Columns in one vector of 16 lanes. A group of 128 bytes takes two of them, one added to the other.
    pub(crate) fn unit(self) -> usize {
        16 * self.lane_elements()
    }

    /// Number of lanes whose sums make a group's.
    fn lanes(self) -> usize {
        (self.group / self.lane_elements()).min(16)
    }

    /// The place in a group of each element in the order in which the exact tile product takes them: lanes in the
    /// order of the tree that adds them, all elements of a lane in turn. Beyond the group: zeros.
    pub(crate) fn exact_order(self) -> [usize; 128] {
        let (width, lanes, unit) = (self.lane_elements(), self.lanes(), self.unit());
        let parts = self.group.div_ceil(unit);
        let elements = (0..lanes).flat_map(|rank| {
            let lane = TREE[rank];
            (0..parts).flat_map(move |part| (0..width).map(move |step| part * unit + lane * width + step))
        });
        let mut order = [0; 128];
        for (place, element) in order.iter_mut().zip(elements) {
            *place = element;
        }
        order
    }

    /// Elements that one lane adds up in turn in the exact form.
    pub(crate) fn chain(self) -> usize {
        self.group / self.lanes()
    }

    /// Eight neighbouring activations as they meet a word taken apart for the matrix unit: of nibbles first the lower
    /// ones of its four bytes, then the upper ones.
    #[inline(always)]
    pub(crate) fn taken_apart(self, codes: [i8; 8]) -> [i8; 8] {
        let [a, b, c, d, e, f, g, h] = codes;
        if self.nibbles { [a, c, e, g, b, d, f, h] } else { codes }
    }
}

/// The order of leaves in which a binary counter adds sixteen lanes as [`Simd::sum`] does.
pub(crate) const TREE: [usize; 16] = [0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15];

/// Activations of some tokens, ready for all matrices of as many columns. Buffers are kept from call to call.
#[derive(Debug, Default)]
pub struct Inputs {
    pub(crate) tokens: usize,
    pub(crate) columns: usize,
    pub(crate) prepared: Vec<Prepared>,
    in_use: usize,
    /// Whose: how activations lie is an instruction set's own business.
    pub(crate) isa: Option<Isa>,
}

/// Activations in one form.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub form: Form,
    /// Exact: the values. One token: vectors as the codes' words are taken apart; several: [block][k][tokens].
    pub values: Aligned<f32>,
    /// Fast, one token: vectors as the codes' bytes lie, two as [`Simd::arranged`] takes them for each 64 codes, or four
    /// as [`Simd::nibble_x`] does for each 128.
    /// Several for the matrix unit: as [`UnitTokens`] has them, scales and sums too.
    pub codes: Aligned<[i8; 64]>,
    /// Fast, several: [block][k / 4][tokens] of four codes as `Simd::quad` has them, or [block][k / 8][tokens] of eight
    /// as `Simd::eight` does.
    pub words: Aligned<i32>,
    /// Fast: scale of each group. One token: [groups], zero-padded to 16; several: [block][groups][tokens].
    pub scales: Aligned<f32>,
    /// Sum of each group's values (exact) or codes (fast), laid out as the scales.
    pub sums: Aligned<f32>,
}

impl Inputs {
    /// Takes `x` [tokens, columns] for products with `matrices`, which have `columns` columns each.
    ///
    /// # Panics
    /// If a matrix has another number of columns, or `x` is not [tokens, columns].
    pub fn prepare<'m>(
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
        self.in_use = 0;
        self.isa = Some(isa);
        for matrix in matrices {
            assert_eq!(matrix.columns, columns, "columns of a matrix and its activations");
            let form = Form::of(matrix, mode);
            if self.prepared[..self.in_use].iter().any(|prepared| prepared.form == form) {
                continue;
            }
            if self.in_use == self.prepared.len() {
                self.prepared.push(Prepared::new(form));
            }
            let prepared = &mut self.prepared[self.in_use];
            prepared.form = form;
            prepared.fill(isa, pool, x, self.tokens, columns);
            self.in_use += 1;
        }
    }

    pub(crate) fn find(&self, form: Form) -> &Prepared {
        self.prepared[..self.in_use]
            .iter()
            .find(|prepared| prepared.form == form)
            .expect("prepared for this matrix")
    }

    /// Number of tokens prepared.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Bytes held.
    pub fn size_bytes(&self) -> usize {
        let sizes = self.prepared.iter().map(|p| {
            let floats = p.values.size_bytes() + p.scales.size_bytes() + p.sums.size_bytes();
            floats + p.words.size_bytes() + p.codes.size_bytes()
        });
        sizes.sum()
    }
}

impl Prepared {
    fn new(form: Form) -> Self {
        Self {
            form,
            values: Aligned::default(),
            codes: Aligned::default(),
            words: Aligned::default(),
            scales: Aligned::default(),
            sums: Aligned::default(),
        }
    }

    fn fill(&mut self, isa: Isa, pool: &Pool, x: &[f32], tokens: usize, columns: usize) {
        let form = self.form;
        if form.group == 0 {
            self.values.resize(x.len());
            self.values.copy_from_slice(x);
            return;
        }
        let groups = columns.div_ceil(form.group);
        let padded = groups * form.group;
        if tokens == 1 {
            // As rows are read: sixteen groups at a time.
            let padded = groups.next_multiple_of(16) * form.group;
            self.scales.resize(groups.next_multiple_of(16));
            self.sums.resize(groups.next_multiple_of(16));
            // Vectors of groups that do not exist meet the scales of the next row: nothing of them may remain.
            self.scales[groups..].fill(0.0);
            self.sums[groups..].fill(0.0);
            match form.mode {
                Mode::Exact => self.values.resize(padded),
                Mode::Fast => self.codes.resize(2 * padded / 64),
            }
            isa.run(OneToken { prepared: self, x });
            return;
        }
        if form.mode == Mode::Fast && isa.matrix_unit().is_some() {
            self.fill_for_unit(isa, pool, x, columns);
            return;
        }
        self.scales.resize(groups * tokens);
        self.sums.resize(groups * tokens);
        let (mut values, mut words): (&mut [f32], &mut [i32]) = (&mut [], &mut []);
        match form.mode {
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
            let (value_count, word_count) = match form.mode {
                Mode::Exact => (padded * tokens, 0),
                Mode::Fast => (0, padded / 2 * tokens),
            };
            blocks.push(Block {
                form,
                columns,
                x,
                values: take(&mut values, value_count),
                words: take(&mut words, word_count),
                scales: take(&mut scales, groups * tokens),
                sums: take(&mut sums, groups * tokens),
            });
        }
        pool.for_each(&mut blocks, |block| isa.run(ManyTokens { block }));
    }

    /// Several tokens for the matrix unit: sixteen at a time, also where there are fewer.
    fn fill_for_unit(&mut self, isa: Isa, pool: &Pool, x: &[f32], columns: usize) {
        let form = self.form;
        let groups = columns.div_ceil(form.group);
        let blocks = (x.len() / columns).div_ceil(UNIT_TOKENS);
        let (numbers, lines) = (groups * UNIT_TOKENS, 2 * groups * UNIT_TOKENS * form.group / 64);
        self.codes.resize(blocks * lines);
        self.scales.resize(blocks * numbers);
        self.sums.resize(blocks * numbers);
        let parts = self.scales.chunks_exact_mut(numbers).zip(self.sums.chunks_exact_mut(numbers));
        let mut blocks: Vec<_> = x
            .chunks(UNIT_TOKENS * columns)
            .zip(self.codes.chunks_exact_mut(lines))
            .zip(parts)
            .map(|((x, codes), (scales, sums))| UnitTokens { form, columns, x, codes, scales, sums })
            .collect();
        pool.for_each(&mut blocks, |block| isa.run(block));
    }
}

/// Cuts `count` elements off the front.
fn take<'a, T>(from: &mut &'a mut [T], count: usize) -> &'a mut [T] {
    let (head, tail) = std::mem::take(from).split_at_mut(count);
    *from = tail;
    head
}

/// One group of a token as vectors, zero beyond the last column.
pub(crate) struct Group<'a> {
    values: &'a [f32],
}

impl<'a> Group<'a> {
    /// `room` is for a group that ends beyond the last column.
    #[inline(always)]
    pub(crate) fn read(x: &'a [f32], start: usize, group: usize, room: &'a mut [f32; 128]) -> Self {
        let values = x.get(start..start + group).unwrap_or_else(|| {
            let rest = &x[start..];
            room[..rest.len()].copy_from_slice(rest);
            room[rest.len()..].fill(0.0);
            &room[..group]
        });
        Self { values }
    }

    #[inline(always)]
    fn vectors(&self) -> &[[f32; 16]] {
        self.values.as_chunks().0
    }

    /// Lane sums of all vectors in turn, then [`Simd::sum`].
    #[inline(always)]
    fn sum<S: Simd>(&self, simd: S) -> f32 {
        let mut sum = simd.splat(0.0);
        for vector in self.vectors() {
            sum = simd.add(sum, simd.load(vector));
        }
        simd.sum(sum)
    }

    /// The upper and lower halves of codes, 256 * upper + lower, and their scale and sum; `pairs` of them if they meet
    /// nibbles.
    #[inline(always)]
    pub(crate) fn quantize<S: Simd>(&self, simd: S, pairs: bool, halves: &mut [[i8; 128]; 2]) -> (f32, f32) {
        let steps = if pairs { PAIR_STEPS } else { STEPS };
        let largest = largest_magnitude(simd, self.vectors().as_flattened());
        // Below this the inverse overflows; such a group is zero beside any other.
        let inverse = if largest > 1e-33 { steps / largest } else { 0.0 };
        let [upper, lower] = halves;
        let (upper, lower) = (upper.as_chunks_mut().0, lower.as_chunks_mut().0);
        let sum = split(simd, pairs, self.vectors(), inverse, upper, lower);
        let step = if pairs { 16.0 * steps } else { steps };
        let scale = if inverse > 0.0 { largest / step } else { 0.0 };
        // At most 128 * STEPS: exact in any order.
        (scale, simd.sum(simd.float(sum)))
    }
}

struct OneToken<'a> {
    prepared: &'a mut Prepared,
    x: &'a [f32],
}

impl Kernel for OneToken<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { prepared, x } = self;
        let form = prepared.form;
        let (group, unit, width) = (form.group, form.unit(), form.lane_elements());
        match form.mode {
            Mode::Exact => {
                // Step j of a vector: elements width * lane + j.
                for (u, vector) in prepared.values.chunks_exact_mut(unit).enumerate() {
                    let x = &x[(u * unit).min(x.len())..((u + 1) * unit).min(x.len())];
                    vector.fill(0.0);
                    for (lane, elements) in x.chunks(width).enumerate() {
                        for (step, &value) in elements.iter().enumerate() {
                            vector[16 * step + lane] = value;
                        }
                    }
                }
            }
            Mode::Fast => prepared.codes.fill([0; 64]),
        }
        let (mut room, mut halves) = ([0.0; 128], [[0; 128]; 2]);
        let bytes = prepared.codes.as_flattened_mut();
        for (g, start) in (0..x.len()).step_by(group).enumerate() {
            let values = Group::read(x, start, group, &mut room);
            match form.mode {
                Mode::Exact => prepared.sums[g] = values.sum(simd),
                Mode::Fast => {
                    (prepared.scales[g], prepared.sums[g]) = values.quantize(simd, form.nibbles, &mut halves);
                    for (half, codes) in halves.iter().enumerate() {
                        let codes = &codes[..group];
                        if form.nibbles {
                            // 64 bytes hold 128 codes: they meet the even elements' vectors, then the odd ones'.
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
        if form.nibbles {
            for x in prepared.codes.as_chunks_mut().0 {
                simd.arrange_for_nibbles(x);
            }
        } else {
            for [upper, lower] in prepared.codes.as_chunks_mut().0 {
                simd.arrange(upper, lower);
            }
        }
    }
}

/// Up to [`TOKENS`] tokens.
struct Block<'a> {
    form: Form,
    columns: usize,
    x: &'a [f32],
    values: &'a mut [f32],
    words: &'a mut [i32],
    scales: &'a mut [f32],
    sums: &'a mut [f32],
}

struct ManyTokens<'a, 'b> {
    block: &'a mut Block<'b>,
}

impl Kernel for ManyTokens<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Block { form, columns, x, values, words, scales, sums } = self.block;
        let (group, tokens) = (form.group, x.len() / *columns);
        let order = form.exact_order();
        let (mut room, mut halves) = ([0.0; 128], [[0; 128]; 2]);
        for (t, x) in x.chunks_exact(*columns).enumerate() {
            for (g, start) in (0..x.len()).step_by(group).enumerate() {
                let numbers = Group::read(x, start, group, &mut room);
                let at = g * tokens + t;
                match form.mode {
                    Mode::Exact => {
                        sums[at] = numbers.sum(simd);
                        for (k, &element) in order[..group].iter().enumerate() {
                            values[(start + k) * tokens + t] = numbers.values[element];
                        }
                    }
                    Mode::Fast => {
                        (scales[at], sums[at]) = numbers.quantize(simd, form.nibbles, &mut halves);
                        let words = &mut words[start / 2 * tokens..];
                        if form.nibbles {
                            keep(&halves, group, t, tokens, words, S::eight);
                        } else {
                            keep(&halves, group, t, tokens, words, S::quad);
                        }
                    }
                }
            }
        }
    }
}

/// Keeps the halves of a group of token `t`, N columns at a time: `words` are [group / N][tokens][W].
#[inline(always)]
fn keep<const N: usize, const W: usize>(
    [upper, lower]: &[[i8; 128]; 2],
    group: usize,
    t: usize,
    tokens: usize,
    words: &mut [i32],
    kept: impl Fn([i8; N], [i8; N]) -> [i32; W],
) {
    let halves = upper[..group].as_chunks().0.iter().zip(lower.as_chunks().0);
    let places = words.as_chunks_mut().0.iter_mut().skip(t).step_by(tokens);
    for ((&upper, &lower), place) in halves.zip(places) {
        *place = kept(upper, lower);
    }
}
