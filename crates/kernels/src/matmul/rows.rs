//! Building blocks of the gemv kernels: rows of codes, activation vectors, reduction over lanes.

use super::activations::ActivationBuffer;
use super::floats::Floats;
use super::matrix::Matrix;
use crate::aligned::Aligned;
use crate::simd::Simd;

/// Rows whose sums over lanes are reduced together.
pub(crate) const ROWS_PER_BLOCK: usize = 16;

/// Prefetch distance of codes from memory into L2, in bytes. The hardware prefetcher stops at every page.
pub(crate) const PREFETCH_L2_BYTES: usize = 8192;
/// Prefetch distance of codes from L2 into L1, in bytes.
pub(crate) const PREFETCH_L1_BYTES: usize = 2048;

/// Scratch buffers of the gemv kernels.
#[derive(Debug, Default)]
pub(crate) struct RowScratch {
    /// Rows that end within a vector, zero-padded.
    pub padded: Aligned<u8>,
    /// A row's sums over quads of lanes [quads, 16], as bits.
    pub quads: Aligned<i32>,
}

/// Up to [`ROWS_PER_BLOCK`] consecutive rows from row `first` of the matrix on.
#[derive(Clone, Copy)]
pub(crate) struct RowBlock<'a> {
    pub matrix: &'a Matrix<'a>,
    pub x: &'a ActivationBuffer,
    pub first: usize,
    /// Codes from row `first` on.
    pub codes: &'a [u8],
}

/// One token's packed activations as vectors.
#[derive(Clone, Copy)]
pub(crate) struct ActivationVectors<'a> {
    pub codes: &'a [[i8; 64]],
    pub values: &'a [[f32; 16]],
    pub sums: &'a [[f32; 16]],
    pub scales: &'a [[f32; 16]],
}

impl<'a> ActivationVectors<'a> {
    #[inline(always)]
    pub fn of(x: &'a ActivationBuffer) -> Self {
        let (values, sums, scales) = (x.values.as_chunks().0, x.sums.as_chunks().0, x.scales.as_chunks().0);
        Self { codes: &x.codes, values, sums, scales }
    }
}

/// Writes the sum over lanes of each row's vector, in the order of [`Simd::reduce_add`].
#[inline(always)]
pub(crate) fn reduce_rows<S: Simd>(simd: S, rows: &[S::F32; ROWS_PER_BLOCK], out: &mut [f32]) {
    let mut quads = [simd.splat(0.0); 4];
    for (quad, rows) in quads.iter_mut().zip(rows.as_chunks::<4>().0) {
        *quad = simd.quad_sums(*rows);
    }
    let sums =
        simd.add_quad_pairs(simd.add_quad_pairs(quads[0], quads[1]), simd.add_quad_pairs(quads[2], quads[3]));
    let mut values = [0.0; ROWS_PER_BLOCK];
    simd.store(sums, &mut values);
    out.copy_from_slice(&values[..out.len()]);
}

/// Copies `rows` of `row_bytes` each to rows of `stride` bytes, zero-padded.
pub(crate) fn pad_rows<'a>(
    rows: &[u8],
    row_bytes: usize,
    stride: usize,
    padded: &'a mut Aligned<u8>,
) -> &'a [u8] {
    padded.resize(rows.len() / row_bytes * stride);
    for (row, padded) in rows.chunks_exact(row_bytes).zip(padded.chunks_exact_mut(stride)) {
        let (head, rest) = padded.split_at_mut(row_bytes);
        head.copy_from_slice(row);
        rest.fill(0);
    }
    padded
}

/// Copies elements `from..from + count`, zero-padded to a whole vector.
#[inline(always)]
pub(crate) fn read_floats<S: Simd>(
    simd: S,
    floats: Floats<'_>,
    from: usize,
    count: usize,
    values: &mut [f32],
) {
    let vectors = values[..count.next_multiple_of(16)].as_chunks_mut::<16>().0;
    floats.read_vectors(simd, from, count, vectors);
}

/// Reads an unquantized row, elements `from..from + columns`, zero-padded to whole vectors.
#[inline(always)]
pub(crate) fn float_row<S: Simd>(
    simd: S,
    floats: Floats<'_>,
    from: usize,
    columns: usize,
    values: &mut Aligned<f32>,
) {
    values.resize(columns.next_multiple_of(16));
    read_floats(simd, floats, from, columns, values);
}

/// Dot product of an unquantized row, padded to whole vectors, with `x` [columns]: four accumulators in rotation.
#[inline(always)]
pub(crate) fn float_dot<S: Simd>(simd: S, row: &[f32], x: &[f32]) -> f32 {
    let mut sums = [simd.splat(0.0); 4];
    let (vectors, rest) = x.as_chunks::<16>();
    let rows = row.as_chunks::<16>().0;
    for (x, row) in vectors.chunks(4).zip(rows.chunks(4)) {
        for ((sum, x), row) in sums.iter_mut().zip(x).zip(row) {
            *sum = simd.fma(simd.load(x), simd.load(row), *sum);
        }
    }
    if !rest.is_empty() {
        let mut last = [0.0; 16];
        last[..rest.len()].copy_from_slice(rest);
        sums[0] = simd.fma(simd.load(&last), simd.load(&rows[vectors.len()]), sums[0]);
    }
    simd.reduce_add(simd.add(simd.add(sums[0], sums[1]), simd.add(sums[2], sums[3])))
}
