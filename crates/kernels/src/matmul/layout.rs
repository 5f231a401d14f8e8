//! Constants and orders that the packing of activations and the product kernels agree on.

use super::matrix::{Codes, Matrix, PER_ROW_GROUP, Scaling};

/// Arithmetic of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// f32 activations, f32 sums.
    Exact,
    /// Activations quantized per group to 16 bits, or 12 for INT4 codes; exact integer sums within a group.
    Fast,
}

/// Largest number of tokens that one call of a tile kernel computes.
pub(crate) const BLOCK_TOKENS: usize = 8;

/// Number of tokens in the next block when `left` are left: powers of two, so that a few instances of the kernels suffice.
pub(crate) fn block_tokens(left: usize) -> usize {
    if left >= BLOCK_TOKENS { BLOCK_TOKENS } else { 1 << left.ilog2() }
}

/// Order in which the leaves of a pairwise reduction tree must arrive so that a binary counter of partial sums adds the
/// sixteen lanes as [`Simd::reduce_add`](crate::simd::Simd::reduce_add) does.
pub(crate) const REDUCTION_ORDER: [usize; 16] = [0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15];

/// Properties of a matrix that decide how its activations are packed; matrices of one layout share them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ActivationLayout {
    pub mode: Mode,
    /// True for INT4 codes: a byte holds two neighbouring columns.
    pub int4: bool,
    /// Columns that share a scale; 0 for unquantized matrices.
    pub group: usize,
}

impl ActivationLayout {
    pub(crate) fn of(matrix: &Matrix<'_>, mode: Mode) -> Self {
        let group = match matrix.scaling {
            Scaling::Affine { group, .. } | Scaling::Blockwise { group, .. } => group,
            Scaling::PerRow { .. } => PER_ROW_GROUP,
            Scaling::None => return Self { mode: Mode::Exact, int4: false, group: 0 },
        };
        let mode = if matches!(matrix.codes, Codes::I8RoundedToF16(_)) { Mode::Exact } else { mode };
        Self { mode, int4: matches!(matrix.codes, Codes::U4(_)), group }
    }

    /// Neighbouring columns that one 32-bit lane of a code vector holds.
    pub(crate) fn columns_per_lane(self) -> usize {
        if self.int4 { 8 } else { 4 }
    }

    /// Columns that one vector of 64 bytes of codes holds.
    pub(crate) fn columns_per_vector(self) -> usize {
        16 * self.columns_per_lane()
    }

    /// Number of lanes whose sums add up to a group's. A group of 128 INT8 codes has two vectors, which share lanes.
    fn lanes_per_group(self) -> usize {
        (self.group / self.columns_per_lane()).min(16)
    }

    /// Column within a group of each element, in the order in which the exact gemm adds them: lanes in
    /// [`REDUCTION_ORDER`], all columns of a lane in sequence. Entries beyond the group are zero.
    pub(crate) fn exact_order(self) -> [usize; 128] {
        let (width, lanes, vector) =
            (self.columns_per_lane(), self.lanes_per_group(), self.columns_per_vector());
        let vectors = self.group.div_ceil(vector);
        let columns = (0..lanes).flat_map(|rank| {
            let lane = REDUCTION_ORDER[rank];
            (0..vectors).flat_map(move |i| (0..width).map(move |step| i * vector + lane * width + step))
        });
        let mut order = [0; 128];
        for (place, column) in order.iter_mut().zip(columns) {
            *place = column;
        }
        order
    }

    /// Columns of a group that one lane adds in sequence in the exact mode.
    pub(crate) fn columns_per_leaf(self) -> usize {
        self.group / self.lanes_per_group()
    }

    /// Eight neighbouring activations in the order of the unpacked codes in an AMX tile: for INT4 the low nibbles of four
    /// bytes, then the high ones.
    #[inline(always)]
    pub(crate) fn amx_order(self, codes: [i8; 8]) -> [i8; 8] {
        let [a, b, c, d, e, f, g, h] = codes;
        if self.int4 { [a, c, e, g, b, d, f, h] } else { codes }
    }
}
