//! Packed matrices, owned and borrowed.

use super::AffineSpec;
use crate::FloatType;

/// A packed matrix that owns its buffers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedMatrix {
    /// Bits and group size.
    pub spec: AffineSpec,
    /// Type of `scales` and `biases`.
    pub float: FloatType,
    /// Number of rows.
    pub rows: usize,
    /// Weights per row.
    pub cols: usize,
    /// [rows, words_per_row] 32-bit words, little-endian.
    pub words: Vec<u8>,
    /// [rows, groups_per_row] of `float`, little-endian.
    pub scales: Vec<u8>,
    /// [rows, groups_per_row] of `float`, little-endian.
    pub biases: Vec<u8>,
}

/// A borrowed packed matrix; its buffers may have any alignment.
#[derive(Clone, Copy, Debug)]
pub struct PackedView<'a> {
    /// Bits and group size.
    pub spec: AffineSpec,
    /// Type of `scales` and `biases`.
    pub float: FloatType,
    /// Number of rows.
    pub rows: usize,
    /// Weights per row.
    pub cols: usize,
    /// [rows, words_per_row] 32-bit words, little-endian.
    pub words: &'a [u8],
    /// [rows, groups_per_row] of `float`, little-endian.
    pub scales: &'a [u8],
    /// [rows, groups_per_row] of `float`, little-endian.
    pub biases: &'a [u8],
}

impl PackedMatrix {
    /// Creates a matrix of zero bytes.
    ///
    /// # Panics
    /// If `cols` is not a multiple of the group size.
    pub fn zeroed(spec: AffineSpec, float: FloatType, rows: usize, cols: usize) -> Self {
        assert!(spec.fits(cols), "{spec:?} for rows of {cols}");
        let group_bytes = rows * spec.groups_per_row(cols) * float.size();
        Self {
            spec,
            float,
            rows,
            cols,
            words: vec![0; rows * spec.words_per_row(cols) * 4],
            scales: vec![0; group_bytes],
            biases: vec![0; group_bytes],
        }
    }

    /// Borrows the matrix.
    pub fn view(&self) -> PackedView<'_> {
        PackedView {
            spec: self.spec,
            float: self.float,
            rows: self.rows,
            cols: self.cols,
            words: &self.words,
            scales: &self.scales,
            biases: &self.biases,
        }
    }

    /// Size in bytes: words, scales and biases.
    pub fn bytes(&self) -> usize {
        self.words.len() + self.scales.len() + self.biases.len()
    }
}

impl PackedView<'_> {
    /// Sizes in bytes of a row's words, and of its scales (or biases).
    pub(crate) fn row_bytes(&self) -> (usize, usize) {
        (self.spec.words_per_row(self.cols) * 4, self.spec.groups_per_row(self.cols) * self.float.size())
    }
}
