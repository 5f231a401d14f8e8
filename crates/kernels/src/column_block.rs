//! Blocks of columns of a matrix that different threads may write.

use std::marker::PhantomData;

/// A range of columns of a row-major matrix [rows, width], mutably borrowed.
#[derive(Debug)]
pub struct ColumnBlock<'a, T> {
    first: *mut T,
    rows: usize,
    stride: usize,
    start: usize,
    columns: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: blocks of one matrix share no element, so a block behaves like a mutable slice.
unsafe impl<T: Send> Send for ColumnBlock<'_, T> {}

impl<'a, T> ColumnBlock<'a, T> {
    /// Splits `matrix` [rows, width] into blocks of `columns` columns; the last may be narrower.
    ///
    /// # Panics
    /// If the length is not a multiple of `width`, or either number is zero.
    pub fn split(matrix: &'a mut [T], width: usize, columns: usize) -> impl Iterator<Item = Self> {
        assert!(
            width > 0 && columns > 0 && matrix.len().is_multiple_of(width),
            "not a matrix of width {width}"
        );
        let (rows, base) = (matrix.len() / width, matrix.as_mut_ptr());
        (0..width).step_by(columns).map(move |start| Self {
            first: base.wrapping_add(start),
            rows,
            stride: width,
            start,
            columns: columns.min(width - start),
            borrow: PhantomData,
        })
    }

    /// All columns as one block.
    pub fn whole(matrix: &'a mut [T], width: usize) -> Self {
        assert!(width > 0 && matrix.len().is_multiple_of(width), "not a matrix of width {width}");
        let rows = matrix.len() / width;
        Self {
            first: matrix.as_mut_ptr(),
            rows,
            stride: width,
            start: 0,
            columns: width,
            borrow: PhantomData,
        }
    }

    /// Index of the first column in the matrix.
    pub fn start(&self) -> usize {
        self.start
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// This block's elements of one row.
    ///
    /// # Panics
    /// If `row` is out of bounds.
    pub fn row(&mut self, row: usize) -> &mut [T] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        // SAFETY: the row exists and `start + columns <= stride`, so the elements lie inside the matrix, which is
        // borrowed for 'a; no other block has these columns, and `&mut self` keeps this block to one row at a time.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(row * self.stride), self.columns) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_every_element_once() {
        for (rows, width, columns) in [(3, 10, 4), (1, 1, 1), (2, 16, 16), (2, 5, 9), (0, 4, 2)] {
            let mut matrix = vec![0usize; rows * width];
            for mut block in ColumnBlock::split(&mut matrix, width, columns) {
                let start = block.start();
                for row in 0..rows {
                    for (at, element) in block.row(row).iter_mut().enumerate() {
                        *element += 1 + row * width + start + at;
                    }
                }
            }
            assert!(matrix.iter().enumerate().all(|(i, &element)| element == i + 1));
        }
    }
}
