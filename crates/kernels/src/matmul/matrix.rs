//! Weight matrices in the layouts of their files.

use half::f16;

use super::floats::Floats;
use super::unpack::unpack_scalar;
use crate::simd::Simd;

/// A weight matrix [rows, columns], applied as `x W^T`, over borrowed bytes of any alignment.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) codes: Codes<'a>,
    pub(crate) scaling: Scaling<'a>,
}

/// Element storage of a matrix [rows, columns], row-major.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Codes<'a> {
    /// Unsigned, two per byte, low nibble first.
    U4(&'a [u8]),
    /// Unsigned, one per byte.
    U8(&'a [u8]),
    /// Signed, one per byte.
    I8(&'a [u8]),
    /// Signed, one per byte; the dequantized weight is rounded to f16.
    I8RoundedToF16(&'a [u8]),
    /// Unsigned, 2, 3, 5 or 6 bits each: a little-endian bit stream, lowest bit of the first byte first.
    BitPacked { bits: usize, bytes: &'a [u8] },
    /// Unquantized.
    Float(Floats<'a>),
}

/// Equation by which a code `q` is dequantized.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Scaling<'a> {
    /// `scales[row, g] * q + biases[row, g]`.
    Affine { group: usize, scales: Floats<'a>, biases: Floats<'a> },
    /// `scales[row, g] * q`: Core ML's blockwise symmetric quantization.
    Blockwise { group: usize, scales: Floats<'a> },
    /// `scales[row] * q`: per output channel. Activations still have a scale per [`PER_ROW_GROUP`] columns.
    PerRow { scales: Floats<'a> },
    /// `q` itself: unquantized weights.
    None,
}

impl Scaling<'_> {
    /// Prefetches scales and biases of `count` groups from group `from` on, which may be out of bounds. Per-row scales
    /// are too few to need it.
    #[inline(always)]
    pub(crate) fn prefetch<S: Simd>(&self, simd: S, from: usize, count: usize) {
        match self {
            Self::Affine { scales, biases, .. } => {
                scales.prefetch(simd, from, count);
                biases.prefetch(simd, from, count);
            }
            Self::Blockwise { scales, .. } => scales.prefetch(simd, from, count),
            Self::PerRow { .. } | Self::None => {}
        }
    }
}

/// Group size of the activations for weights with one scale per row.
pub(crate) const PER_ROW_GROUP: usize = 64;

/// Error of constructing a [`Matrix`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MatrixError {
    /// No kernel reads this number of bits.
    #[error("{bits}-bit weights\n  expected: 2, 3, 4, 5, 6 or 8 bits")]
    Bits {
        /// Requested bits per code.
        bits: usize,
    },
    /// No kernel reads this group size, or it does not divide the columns.
    #[error("group size {group} over {columns} columns\n  expected: 32, 64 or 128, dividing the columns")]
    Group {
        /// Requested group size.
        group: usize,
        /// Columns of the matrix.
        columns: usize,
    },
    /// A part's size does not match the shape.
    #[error(
        "{part} of a [{rows}, {columns}] matrix\n  expected: {expected} bytes\n  found:    {found} bytes"
    )]
    Size {
        /// "codes", "scales" or "biases".
        part: &'static str,
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        columns: usize,
        /// Size in bytes by the shape.
        expected: usize,
        /// Size in bytes of the slice.
        found: usize,
    },
}

impl<'a> Matrix<'a> {
    /// MLX's affine quantization: `w = scale * q + bias` per group of `group` columns. `codes` are rows of little-endian
    /// bit streams, `bits` per code (the bytes of MLX's u32 words); `scales` and `biases` are [rows, columns / group].
    ///
    /// # Errors
    /// Unsupported bits or group size, or a part of the wrong size.
    pub fn affine(
        rows: usize,
        columns: usize,
        bits: usize,
        group: usize,
        codes: &'a [u8],
        scales: Floats<'a>,
        biases: Floats<'a>,
    ) -> Result<Self, MatrixError> {
        if !matches!(bits, 2..=6 | 8) {
            return Err(MatrixError::Bits { bits });
        }
        check_group(group, columns)?;
        let size = |part, expected, found| check_size(part, rows, columns, expected, found);
        size("codes", rows * columns * bits / 8, codes.len())?;
        for (part, floats) in [("scales", &scales), ("biases", &biases)] {
            size(part, rows * (columns / group) * floats.element_bytes(), floats.size_bytes())?;
        }
        let codes = match bits {
            4 => Codes::U4(codes),
            8 => Codes::U8(codes),
            _ => Codes::BitPacked { bits, bytes: codes },
        };
        Ok(Self { rows, columns, codes, scaling: Scaling::Affine { group, scales, biases } })
    }

    /// Symmetric INT8: `w = scale * q` with signed codes [rows, columns]; `scales` are `[rows]` (per channel) or, with a
    /// `group`, [rows, columns / group].
    ///
    /// # Errors
    /// Unsupported group size, or a part of the wrong size.
    pub fn symmetric(
        rows: usize,
        columns: usize,
        group: Option<usize>,
        codes: &'a [u8],
        scales: Floats<'a>,
    ) -> Result<Self, MatrixError> {
        let per_row = match group {
            Some(group) => {
                check_group(group, columns)?;
                columns / group
            }
            None => 1,
        };
        check_size("codes", rows, columns, rows * columns, codes.len())?;
        check_size("scales", rows, columns, rows * per_row * scales.element_bytes(), scales.size_bytes())?;
        let scaling = match group {
            Some(group) => Scaling::Blockwise { group, scales },
            None => Scaling::PerRow { scales },
        };
        Ok(Self { rows, columns, codes: Codes::I8(codes), scaling })
    }

    /// [`Matrix::symmetric`] with every weight `scale * q` rounded to f16, as a Core ML program with f16 weights computes
    /// them. Products use f32 activations in both modes.
    ///
    /// # Errors
    /// As [`Matrix::symmetric`].
    pub fn symmetric_f16(
        rows: usize,
        columns: usize,
        group: Option<usize>,
        codes: &'a [u8],
        scales: Floats<'a>,
    ) -> Result<Self, MatrixError> {
        let matrix = Self::symmetric(rows, columns, group, codes, scales)?;
        Ok(Self { codes: Codes::I8RoundedToF16(codes), ..matrix })
    }

    /// Unquantized weights [rows, columns].
    ///
    /// # Errors
    /// The number of elements does not match the shape.
    pub fn float(rows: usize, columns: usize, values: Floats<'a>) -> Result<Self, MatrixError> {
        let expected = rows * columns * values.element_bytes();
        check_size("codes", rows, columns, expected, values.size_bytes())?;
        Ok(Self { rows, columns, codes: Codes::Float(values), scaling: Scaling::None })
    }

    /// Number of outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of inputs.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Size in bytes of codes, scales and biases.
    pub fn size_bytes(&self) -> usize {
        let codes = match self.codes {
            Codes::U4(bytes)
            | Codes::U8(bytes)
            | Codes::I8(bytes)
            | Codes::I8RoundedToF16(bytes)
            | Codes::BitPacked { bytes, .. } => bytes.len(),
            Codes::Float(values) => values.size_bytes(),
        };
        codes
            + match self.scaling {
                Scaling::Affine { scales, biases, .. } => scales.size_bytes() + biases.size_bytes(),
                Scaling::Blockwise { scales, .. } | Scaling::PerRow { scales } => scales.size_bytes(),
                Scaling::None => 0,
            }
    }

    /// Dequantizes row `row` to `out`, \[columns\], as an embedding look-up does: `scale * q + bias` in f32, rounded after
    /// the product and after the sum.
    ///
    /// # Panics
    /// If `row` is out of bounds, or `out` is not as wide as the matrix.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.columns, "row {row} of {} to {}", self.rows, out.len());
        let from = row * self.columns;
        match self.codes {
            Codes::U4(bytes) => {
                for (i, value) in out.iter_mut().enumerate() {
                    *value = f32::from(bytes[(from + i) / 2] >> (4 * (i % 2)) & 15);
                }
            }
            Codes::U8(bytes) => {
                for (value, &code) in out.iter_mut().zip(&bytes[from..]) {
                    *value = f32::from(code);
                }
            }
            Codes::I8(bytes) | Codes::I8RoundedToF16(bytes) => {
                for (value, &code) in out.iter_mut().zip(&bytes[from..]) {
                    *value = f32::from(code as i8);
                }
            }
            Codes::BitPacked { bits, bytes } => {
                let mut codes = vec![0; self.columns];
                unpack_scalar(bits, &bytes[from * bits / 8..][..self.columns * bits / 8], &mut codes);
                for (value, code) in out.iter_mut().zip(codes) {
                    *value = f32::from(code);
                }
            }
            Codes::Float(values) => values.read(from, out),
        }
        match self.scaling {
            Scaling::Affine { group, scales, biases } => {
                let from = row * (self.columns / group);
                for (g, values) in out.chunks_mut(group).enumerate() {
                    let (scale, bias) = (scales.get(from + g), biases.get(from + g));
                    values.iter_mut().for_each(|value| *value = *value * scale + bias);
                }
            }
            Scaling::Blockwise { group, scales } => {
                let from = row * (self.columns / group);
                for (g, values) in out.chunks_mut(group).enumerate() {
                    let scale = scales.get(from + g);
                    values.iter_mut().for_each(|value| *value *= scale);
                }
            }
            Scaling::PerRow { scales } => {
                let scale = scales.get(row);
                out.iter_mut().for_each(|value| *value *= scale);
            }
            Scaling::None => {}
        }
        if let Codes::I8RoundedToF16(_) = self.codes {
            out.iter_mut().for_each(|value| *value = f16::from_f32(*value).to_f32());
        }
    }
}

fn check_group(group: usize, columns: usize) -> Result<(), MatrixError> {
    if matches!(group, 32 | 64 | 128) && columns.is_multiple_of(group) {
        Ok(())
    } else {
        Err(MatrixError::Group { group, columns })
    }
}

fn check_size(
    part: &'static str,
    rows: usize,
    columns: usize,
    expected: usize,
    found: usize,
) -> Result<(), MatrixError> {
    if expected == found { Ok(()) } else { Err(MatrixError::Size { part, rows, columns, expected, found }) }
}

#[cfg(test)]
mod tests {
    use q35_quant::FloatType;

    use super::*;

    #[test]
    fn a_row_is_scaled_by_its_own_groups() {
        let codes: Vec<u8> = (0..64).map(|i| (i % 16) | (i % 16) << 4).collect();
        let scales: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        let biases: Vec<u8> = [0.0f32, -1.0, 0.5, 0.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        let floats = |bytes| Floats::new(FloatType::F32, bytes);
        let matrix = Matrix::affine(2, 64, 4, 32, &codes, floats(&scales), floats(&biases)).unwrap();
        let mut row = [0.0; 64];
        matrix.row(1, &mut row);
        assert_eq!(row[0], 0.5);
        assert_eq!(row[31], 15.0 * 3.0 + 0.5);
        assert_eq!(row[63], 15.0 * 4.0);
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        let (codes, scales) = ([0u8; 64], [0u8; 16]);
        let floats = |count: usize| Floats::new(FloatType::F32, &scales[..4 * count]);
        let affine = |bits, group, columns, count| {
            Matrix::affine(2, columns, bits, group, &codes, floats(count), floats(count)).map(|_| ())
        };
        assert_eq!(affine(4, 32, 64, 4), Ok(()));
        assert_eq!(affine(7, 32, 64, 4), Err(MatrixError::Bits { bits: 7 }));
        assert_eq!(affine(4, 48, 96, 4), Err(MatrixError::Group { group: 48, columns: 96 }));
        assert_eq!(affine(4, 64, 96, 4), Err(MatrixError::Group { group: 64, columns: 96 }));
        assert!(matches!(affine(4, 32, 64, 3), Err(MatrixError::Size { part: "scales", .. })));
        assert!(matches!(affine(8, 32, 64, 4), Err(MatrixError::Size { part: "codes", expected: 128, .. })));
    }
}
