//! Weight matrices as files hold them.

use half::{bf16, f16};

use crate::simd::Simd;
use crate::stream::unpack_plain;

/// Element type of stored floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FloatKind {
    /// 32-bit float.
    F32,
    /// IEEE half.
    F16,
    /// The upper half of an f32.
    Bf16,
}

impl FloatKind {
    /// Bytes of one element.
    pub fn size_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// Floats in little-endian bytes of any alignment.
#[derive(Clone, Copy, Debug)]
pub struct Floats<'a> {
    kind: FloatKind,
    bytes: &'a [u8],
}

impl<'a> Floats<'a> {
    /// The floats in `bytes`; an incomplete last element is left out.
    pub fn new(kind: FloatKind, bytes: &'a [u8]) -> Self {
        Self { kind, bytes: &bytes[..bytes.len() / kind.size_bytes() * kind.size_bytes()] }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.kind.size_bytes()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// One of them.
    ///
    /// # Panics
    /// If there is no such element.
    pub fn get(&self, index: usize) -> f32 {
        let size = self.kind.size_bytes();
        let bytes = &self.bytes[index * size..][..size];
        match self.kind {
            FloatKind::F32 => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            FloatKind::F16 => f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
            FloatKind::Bf16 => bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
        }
    }

    /// Elements `from..from + to.len()`.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn read(&self, from: usize, to: &mut [f32]) {
        for (offset, value) in to.iter_mut().enumerate() {
            *value = self.get(from + offset);
        }
    }

    /// Asks for the cache lines of `count` elements from `from` on, which need not exist.
    #[inline(always)]
    pub(crate) fn prefetch<S: Simd>(&self, simd: S, from: usize, count: usize) {
        let size = self.kind.size_bytes();
        for line in (0..count * size).step_by(64) {
            simd.prefetch(self.bytes, from * size + line);
        }
    }

    /// `count` elements from `from` on as vectors, the last completed with zeros.
    #[inline(always)]
    pub(crate) fn read_vectors<S: Simd>(&self, simd: S, from: usize, count: usize, to: &mut [[f32; 16]]) {
        let size = self.kind.size_bytes();
        let bytes = &self.bytes[from * size..][..count * size];
        let (whole, last) = to.split_at_mut(count / 16);
        match self.kind {
            FloatKind::F32 => {
                for (bytes, to) in bytes.as_chunks::<64>().0.iter().zip(whole) {
                    simd.store(simd.float_of_bits(simd.words(simd.load_bytes(bytes))), to);
                }
            }
            FloatKind::F16 => {
                for (bytes, to) in bytes.as_chunks::<32>().0.iter().zip(whole) {
                    simd.store(simd.load_f16(bytes), to);
                }
            }
            FloatKind::Bf16 => {
                for (bytes, to) in bytes.as_chunks::<32>().0.iter().zip(whole) {
                    simd.store(simd.load_bf16(bytes), to);
                }
            }
        }
        if let Some(last) = last.first_mut() {
            let done = count / 16 * 16;
            simd.store(self.lanes(simd, from + done, count - done), last);
        }
    }

    /// Sixteen elements from `from` on; zeros from `from + count` on.
    #[inline(always)]
    pub(crate) fn lanes<S: Simd>(&self, simd: S, from: usize, count: usize) -> S::F {
        let start = from * self.kind.size_bytes();
        match self.kind {
            FloatKind::F32 if count >= 16 => {
                simd.float_of_bits(simd.words(simd.load_bytes(exact(self.bytes, start))))
            }
            FloatKind::F32 => {
                simd.float_of_bits(simd.words(simd.load_bytes(&padded(self.bytes, start, count * 4))))
            }
            FloatKind::F16 if count >= 16 => simd.load_f16(exact(self.bytes, start)),
            FloatKind::F16 => simd.load_f16(&padded(self.bytes, start, count * 2)),
            FloatKind::Bf16 if count >= 16 => simd.load_bf16(exact(self.bytes, start)),
            FloatKind::Bf16 => simd.load_bf16(&padded(self.bytes, start, count * 2)),
        }
    }
}

/// `N` bytes from `start` on.
#[inline(always)]
fn exact<const N: usize>(bytes: &[u8], start: usize) -> &[u8; N] {
    bytes[start..].first_chunk().expect("a full vector of elements")
}

/// `count` bytes from `start` on, then zeros.
#[inline(always)]
fn padded<const N: usize>(bytes: &[u8], start: usize, count: usize) -> [u8; N] {
    let mut out = [0; N];
    let count = count.min(N);
    out[..count].copy_from_slice(&bytes[start..start + count]);
    out
}

/// A weight matrix [rows, columns], applied as `x W^T`, over borrowed bytes of any alignment.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) codes: Codes<'a>,
    pub(crate) scaling: Scaling<'a>,
}

/// The integers (or floats) of a matrix.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Codes<'a> {
    /// Two per byte, the lower nibble first.
    Nibbles(&'a [u8]),
    /// One per byte, unsigned.
    Bytes(&'a [u8]),
    /// One per byte, signed.
    Signed(&'a [u8]),
    /// One per byte, signed; what it stands for is rounded to f16.
    Rounded(&'a [u8]),
    /// 2, 3, 5 or 6 bits each, a bit stream from the lowest bit of the first byte on.
    Stream { bits: usize, bytes: &'a [u8] },
    /// Not integers at all.
    Float(Floats<'a>),
}

/// What an integer stands for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Scaling<'a> {
    /// `scales[row, g] * q + biases[row, g]`.
    Affine { group: usize, scales: Floats<'a>, biases: Floats<'a> },
    /// `scales[row, g] * q`.
    Blocks { group: usize, scales: Floats<'a> },
    /// `scales[row] * q`. Activations still come in groups of [`ROW_GROUP`].
    Rows { scales: Floats<'a> },
    /// The value itself.
    None,
}

impl Scaling<'_> {
    /// Asks for the cache lines of `count` groups' scales from `from` on, which need not exist; those of rows are few.
    #[inline(always)]
    pub(crate) fn prefetch<S: Simd>(&self, simd: S, from: usize, count: usize) {
        match self {
            Self::Affine { scales, biases, .. } => {
                scales.prefetch(simd, from, count);
                biases.prefetch(simd, from, count);
            }
            Self::Blocks { scales, .. } => scales.prefetch(simd, from, count),
            Self::Rows { .. } | Self::None => {}
        }
    }
}

/// Group size of activations that meet weights with one scale per row.
pub(crate) const ROW_GROUP: usize = 64;

/// Why bytes do not make a matrix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MatrixError {
    /// Bits that no kernel reads.
    #[error("{bits}-bit weights\n  expected: 2, 3, 4, 5, 6 or 8 bits")]
    Bits {
        /// As asked for.
        bits: usize,
    },
    /// A group size that no kernel reads, or that does not divide the columns.
    #[error("group size {group} over {columns} columns\n  expected: 32, 64 or 128, dividing the columns")]
    Group {
        /// As asked for.
        group: usize,
        /// Columns of the matrix.
        columns: usize,
    },
    /// A part has another size than the shape asks for.
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
        /// What the shape asks for.
        expected: usize,
        /// What is there.
        found: usize,
    },
}

impl<'a> Matrix<'a> {
    /// MLX's affine form: `scales * q + biases` per group of `group` columns. `codes` are rows of little-endian bit
    /// streams, `bits` per element: the bytes of MLX's u32 words. `scales` and `biases` are [rows, columns / group].
    ///
    /// # Errors
    /// Bits or a group size without a kernel, or a part of another size.
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
            size(part, rows * (columns / group) * floats.kind.size_bytes(), floats.bytes.len())?;
        }
        let codes = match bits {
            4 => Codes::Nibbles(codes),
            8 => Codes::Bytes(codes),
            _ => Codes::Stream { bits, bytes: codes },
        };
        Ok(Self { rows, columns, codes, scaling: Scaling::Affine { group, scales, biases } })
    }

    /// Symmetric INT8: `scales * q` with signed bytes; `scales` are `[rows]` (per channel) or, with a `group`,
    /// [rows, columns / group].
    ///
    /// # Errors
    /// A group size without a kernel, or a part of another size.
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
        check_size("scales", rows, columns, rows * per_row * scales.kind.size_bytes(), scales.bytes.len())?;
        let scaling = match group {
            Some(group) => Scaling::Blocks { group, scales },
            None => Scaling::Rows { scales },
        };
        Ok(Self { rows, columns, codes: Codes::Signed(codes), scaling })
    }

    /// The same where every weight `scales * q` is rounded to f16: what a program means that declares its weights so.
    /// Products are exact, whatever mode is asked for.
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
        Ok(Self { codes: Codes::Rounded(codes), ..matrix })
    }

    /// Plain floats.
    ///
    /// # Errors
    /// Another number of elements than the shape asks for.
    pub fn float(rows: usize, columns: usize, values: Floats<'a>) -> Result<Self, MatrixError> {
        let expected = rows * columns * values.kind.size_bytes();
        check_size("codes", rows, columns, expected, values.bytes.len())?;
        Ok(Self { rows, columns, codes: Codes::Float(values), scaling: Scaling::None })
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Bytes of all parts.
    pub fn size_bytes(&self) -> usize {
        let codes = match self.codes {
            Codes::Nibbles(bytes)
            | Codes::Bytes(bytes)
            | Codes::Signed(bytes)
            | Codes::Rounded(bytes)
            | Codes::Stream { bytes, .. }
            | Codes::Float(Floats { bytes, .. }) => bytes.len(),
        };
        codes
            + match self.scaling {
                Scaling::Affine { scales, biases, .. } => scales.bytes.len() + biases.bytes.len(),
                Scaling::Blocks { scales, .. } | Scaling::Rows { scales } => scales.bytes.len(),
                Scaling::None => 0,
            }
    }

    /// The numbers of one row: the embedding's gather. `scale * q + bias` in f32, rounded after each of the two.
    ///
    /// # Panics
    /// If there is no such row, or `out` is not as wide as the matrix.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.columns, "row {row} of {} to {}", self.rows, out.len());
        let from = row * self.columns;
        match self.codes {
            Codes::Nibbles(bytes) => {
                for (i, value) in out.iter_mut().enumerate() {
                    *value = f32::from(bytes[(from + i) / 2] >> (4 * (i % 2)) & 15);
                }
            }
            Codes::Bytes(bytes) => {
                for (value, &code) in out.iter_mut().zip(&bytes[from..]) {
                    *value = f32::from(code);
                }
            }
            Codes::Signed(bytes) | Codes::Rounded(bytes) => {
                for (value, &code) in out.iter_mut().zip(&bytes[from..]) {
                    *value = f32::from(code as i8);
                }
            }
            Codes::Stream { bits, bytes } => {
                let mut codes = vec![0; self.columns];
                unpack_plain(bits, &bytes[from * bits / 8..][..self.columns * bits / 8], &mut codes);
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
            Scaling::Blocks { group, scales } => {
                let from = row * (self.columns / group);
                for (g, values) in out.chunks_mut(group).enumerate() {
                    let scale = scales.get(from + g);
                    values.iter_mut().for_each(|value| *value *= scale);
                }
            }
            Scaling::Rows { scales } => {
                let scale = scales.get(row);
                out.iter_mut().for_each(|value| *value *= scale);
            }
            Scaling::None => {}
        }
        if let Codes::Rounded(_) = self.codes {
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
    use super::*;

    #[test]
    fn a_row_is_scaled_by_its_own_groups() {
        let codes: Vec<u8> = (0..64).map(|i| (i % 16) | (i % 16) << 4).collect();
        let scales: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        let biases: Vec<u8> = [0.0f32, -1.0, 0.5, 0.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        let floats = |bytes| Floats::new(FloatKind::F32, bytes);
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
        let floats = |count: usize| Floats::new(FloatKind::F32, &scales[..4 * count]);
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
