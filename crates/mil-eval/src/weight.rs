//! Packed weights, unpacked row by row on use.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use half::f16;
use half::slice::HalfFloatSliceExt;
use q35_format_mil::{Bytes, DType, unpack_bits};
use q35_kernels::{FloatType, Floats, Matrix};

use crate::tensor::{Tensor, elements, strides};
use crate::{Fault, Precision};

/// A value of a running program: dense, or a packed weight.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Tensor(Tensor),
    Weight(Arc<Weight>),
}

impl Value {
    pub(crate) fn shape(&self) -> &[usize] {
        match self {
            Self::Tensor(tensor) => tensor.shape(),
            Self::Weight(weight) => &weight.shape,
        }
    }

    /// The dense tensor; a packed weight is unpacked once and cached.
    pub(crate) fn into_dense(self) -> Result<Tensor, Fault> {
        match self {
            Self::Tensor(tensor) => Ok(tensor),
            Self::Weight(weight) => weight.dense(),
        }
    }
}

/// Elements of a constant, packed as in the file.
#[derive(Clone, Debug)]
pub(crate) struct Codes {
    pub(crate) bytes: Bytes,
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<usize>,
}

impl Codes {
    /// Reads `out.len()` elements from index `start` as f32. The type must satisfy [`Codes::is_readable`].
    fn read(&self, start: usize, out: &mut [f32]) {
        let bits = self.dtype.bits();
        match self.dtype {
            DType::I8 => {
                let bytes = &self.bytes[start..start + out.len()];
                out.iter_mut().zip(bytes).for_each(|(out, &code)| *out = f32::from(code as i8));
            }
            DType::U8 => {
                let bytes = &self.bytes[start..start + out.len()];
                out.iter_mut().zip(bytes).for_each(|(out, &code)| *out = f32::from(code));
            }
            DType::F16 => {
                let bytes = &self.bytes[2 * start..2 * (start + out.len())];
                match bytemuck::try_cast_slice::<u8, f16>(bytes) {
                    Ok(halves) => halves.convert_to_f32_slice(out),
                    Err(_) => out
                        .iter_mut()
                        .zip(bytes.chunks_exact(2))
                        .for_each(|(out, b)| *out = f16::from_le_bytes([b[0], b[1]]).to_f32()),
                }
            }
            DType::F32 => {
                let bytes = &self.bytes[4 * start..4 * (start + out.len())];
                out.iter_mut()
                    .zip(bytes.chunks_exact(4))
                    .for_each(|(out, b)| *out = f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            }
            // Sub-byte elements: unpacked from the last index that is a multiple of 8, where a byte begins.
            dtype => {
                let first = start / 8 * 8;
                let codes = unpack_bits(&self.bytes[first / 8 * bits..], bits).skip(start - first);
                let signed = dtype == DType::I4;
                out.iter_mut().zip(codes).for_each(|(out, code)| {
                    *out = if signed && code > 7 { f32::from(code) - 16.0 } else { f32::from(code) };
                });
            }
        }
    }

    /// True if [`Codes::read`] supports the type.
    pub(crate) fn is_readable(&self) -> bool {
        use DType::{F16, F32, I4, I8, U1, U2, U3, U4, U6, U8};
        matches!(self.dtype, F16 | F32 | I4 | I8 | U1 | U2 | U3 | U4 | U6 | U8)
    }

    /// All elements as f32.
    pub(crate) fn floats(&self) -> Result<Vec<f32>, Fault> {
        if !self.is_readable() {
            return Err(Fault::invalid(format!("{} elements cannot be used as weights", self.dtype)));
        }
        let mut out = vec![0.0; elements(&self.shape)?];
        self.read(0, &mut out);
        Ok(out)
    }
}

/// A packed weight: a matrix, or a tensor viewed as rows along its first axis.
#[derive(Debug)]
pub(crate) struct Weight {
    shape: Vec<usize>,
    encoding: WeightEncoding,
    /// [`Precision::Half`] if dequantized weights are rounded to fp16.
    precision: Precision,
    dense: OnceLock<Tensor>,
}

#[derive(Debug)]
enum WeightEncoding {
    /// Unquantized floats.
    Plain(Codes),
    /// `scale * (data - offset)`, one scale and offset per block.
    Scaled { data: Source, blocks: Blocks, scale: Vec<f32>, offset: Option<Vec<f32>> },
    /// Look-up table: `table[block][code]`.
    Table { codes: Codes, blocks: Blocks, table: Vec<f32>, entries: usize },
}

/// Operand of the scales: codes, or another packed weight.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    Codes(Codes),
    Weight(Arc<Weight>),
}

impl Source {
    pub(crate) fn shape(&self) -> &[usize] {
        match self {
            Self::Codes(codes) => &codes.shape,
            Self::Weight(weight) => &weight.shape,
        }
    }

    /// Removes a look-up table that maps each byte to its value as a signed integer: the codes are then int8.
    fn without_identity_table(self) -> Self {
        if let Self::Weight(weight) = &self
            && let WeightEncoding::Table { codes, table, .. } = &weight.encoding
            && codes.dtype == DType::U8
            && table.iter().enumerate().all(|(i, &value)| value == f32::from(i as u8 as i8))
        {
            return Self::Codes(Codes { dtype: DType::I8, ..codes.clone() });
        }
        self
    }

    fn read_row(&self, row: usize, out: &mut [f32]) {
        match self {
            Self::Codes(codes) => codes.read(row * out.len(), out),
            Self::Weight(weight) => weight.row(row, out),
        }
    }
}

/// Division of a tensor into blocks: equal parts along each axis.
#[derive(Debug, PartialEq)]
struct Blocks {
    /// Number of rows (of the first axis) in a block.
    rows: usize,
    /// Number of blocks that a row intersects.
    per_row: usize,
    /// The row as runs of elements in one block: length, and index among the row's blocks.
    runs: Vec<(usize, usize)>,
}

impl Blocks {
    /// Divides a tensor of `shape` into `counts` blocks along each axis.
    fn new(shape: &[usize], counts: &[usize]) -> Result<Self, Fault> {
        let fits = shape.len() == counts.len()
            && !shape.is_empty()
            && shape
                .iter()
                .zip(counts)
                .all(|(&size, &count)| count > 0 && size > 0 && size.is_multiple_of(count));
        if !fits {
            return Err(Fault::invalid(format!("{shape:?} cannot be divided into {counts:?} blocks")));
        }
        let rows = shape[0] / counts[0];
        let (sizes, counts) = (&shape[1..], &counts[1..]);
        let (size_steps, count_steps) = (strides(sizes), strides(counts));
        let mut runs: Vec<(usize, usize)> = Vec::new();
        for flat in 0..elements(sizes)? {
            let block = (0..sizes.len())
                .map(|i| flat / size_steps[i] % sizes[i] / (sizes[i] / counts[i]) * count_steps[i])
                .sum();
            match runs.last_mut() {
                Some((length, last)) if *last == block => *length += 1,
                _ => runs.push((1, block)),
            }
        }
        Ok(Self { rows, per_row: counts.iter().product(), runs })
    }
}

impl Weight {
    /// An unquantized fp16 or fp32 weight.
    pub(crate) fn plain(codes: Codes) -> Self {
        Self::new(codes.shape.clone(), WeightEncoding::Plain(codes), Precision::Exact)
    }

    fn new(shape: Vec<usize>, encoding: WeightEncoding, precision: Precision) -> Self {
        Self { shape, encoding, precision, dense: OnceLock::new() }
    }

    /// `scale * (data - offset)`; `scale` and `offset` have one element per block, `counts` blocks along each axis.
    pub(crate) fn scaled(
        data: Source,
        counts: &[usize],
        scale: Vec<f32>,
        offset: Option<Vec<f32>>,
        precision: Precision,
    ) -> Result<Self, Fault> {
        let shape = data.shape().to_vec();
        let blocks = Blocks::new(&shape, counts)?;
        let count = elements(counts)?;
        if scale.len() != count || offset.as_ref().is_some_and(|offset| offset.len() != count) {
            return Err(Fault::invalid(format!("{} scales for {counts:?} blocks", scale.len())));
        }
        let data = data.without_identity_table();
        if let Source::Codes(codes) = &data
            && !codes.is_readable()
        {
            return Err(Fault::invalid(format!("{} elements cannot be scaled", codes.dtype)));
        }
        Ok(Self::new(shape, WeightEncoding::Scaled { data, blocks, scale, offset }, precision))
    }

    /// `table[block][code]`; the table has `counts` blocks along each axis, then `entries` numbers each.
    pub(crate) fn table(
        codes: Codes,
        counts: &[usize],
        table: Vec<f32>,
        entries: usize,
        precision: Precision,
    ) -> Result<Self, Fault> {
        let blocks = Blocks::new(&codes.shape, counts)?;
        let bits = codes.dtype.bits();
        let known =
            matches!(codes.dtype, DType::U1 | DType::U2 | DType::U3 | DType::U4 | DType::U6 | DType::U8);
        if !known || entries != 1 << bits || table.len() != elements(counts)?.saturating_mul(entries) {
            return Err(Fault::invalid(format!(
                "a table of {} entries in {counts:?} blocks for {} indices",
                table.len(),
                codes.dtype
            )));
        }
        Ok(Self::new(codes.shape.clone(), WeightEncoding::Table { codes, blocks, table, entries }, precision))
    }

    /// Shape of the dense tensor.
    pub(crate) fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The packed elements as stored in the file.
    pub(crate) fn codes(&self) -> &[u8] {
        match &self.encoding {
            WeightEncoding::Plain(codes) | WeightEncoding::Table { codes, .. } => &codes.bytes,
            WeightEncoding::Scaled { data: Source::Codes(codes), .. } => &codes.bytes,
            WeightEncoding::Scaled { data: Source::Weight(weight), .. } => weight.codes(),
        }
    }

    /// Bytes of process memory: scales, tables, and the dense tensor if it has been unpacked.
    pub(crate) fn owned_bytes(&self) -> usize {
        let parameters = match &self.encoding {
            WeightEncoding::Plain(_) => 0,
            WeightEncoding::Scaled { scale, offset, data, .. } => {
                let inner = match data {
                    Source::Codes(_) => 0,
                    Source::Weight(weight) => weight.owned_bytes(),
                };
                4 * (scale.len() + offset.as_ref().map_or(0, Vec::len)) + inner
            }
            WeightEncoding::Table { table, .. } => 4 * table.len(),
        };
        parameters + self.dense.get().map_or(0, Tensor::size_bytes)
    }

    /// Dequantizes row `index` of the first axis. `out` has the row's length.
    ///
    /// # Panics
    /// `index` is out of bounds.
    pub(crate) fn row(&self, index: usize, out: &mut [f32]) {
        self.unrounded_row(index, out);
        self.precision.round(out);
    }

    /// Dequantizes a row to fp16; `wide` is a scratch buffer of the row's length.
    pub(crate) fn row_halves(&self, index: usize, wide: &mut [f32], out: &mut [f16]) {
        self.unrounded_row(index, wide);
        out.convert_from_f32_slice(wide);
    }

    fn unrounded_row(&self, index: usize, out: &mut [f32]) {
        match &self.encoding {
            WeightEncoding::Plain(codes) => codes.read(index * out.len(), out),
            WeightEncoding::Scaled { data, blocks, scale, offset } => {
                data.read_row(index, out);
                let first = index / blocks.rows * blocks.per_row;
                let mut rest = &mut *out;
                for &(length, block) in &blocks.runs {
                    let (run, tail) = rest.split_at_mut(length);
                    let scale = scale[first + block];
                    match offset {
                        Some(offset) => {
                            let offset = offset[first + block];
                            run.iter_mut().for_each(|v| *v = (*v - offset) * scale);
                        }
                        None => run.iter_mut().for_each(|v| *v *= scale),
                    }
                    rest = tail;
                }
            }
            WeightEncoding::Table { codes, blocks, table, entries } => {
                codes.read(index * out.len(), out);
                let first = index / blocks.rows * blocks.per_row;
                let mut rest = &mut *out;
                for &(length, block) in &blocks.runs {
                    let (run, tail) = rest.split_at_mut(length);
                    let table = &table[(first + block) * entries..][..*entries];
                    run.iter_mut().for_each(|v| *v = table[*v as usize]);
                    rest = tail;
                }
            }
        }
    }

    /// True if dequantized weights are rounded to fp16.
    pub(crate) fn is_rounded(&self) -> bool {
        self.precision == Precision::Half
    }

    /// Rows in a form that the kernels multiply without unpacking: int8 with one scale per row, or per group of a
    /// supported length. `None` for other encodings.
    pub(crate) fn matrix_rows(&self, rows: Range<usize>) -> Option<Matrix<'_>> {
        let WeightEncoding::Scaled { data: Source::Codes(codes), blocks, scale, offset: None } =
            &self.encoding
        else {
            return None;
        };
        if codes.dtype != DType::I8 || blocks.rows != 1 {
            return None;
        }
        let columns: usize = self.shape[1..].iter().product();
        let group = match &blocks.runs[..] {
            [_] => None,
            // As many runs as blocks: each block is contiguous in the row.
            runs if runs.len() == blocks.per_row => Some(columns / runs.len()),
            _ => return None,
        };
        let bytes = &codes.bytes[rows.start * columns..rows.end * columns];
        let scale = &scale[rows.start * blocks.per_row..rows.end * blocks.per_row];
        let scale = Floats::new(FloatType::F32, bytemuck::cast_slice(scale));
        let make = if self.is_rounded() { Matrix::symmetric_f16 } else { Matrix::symmetric };
        make(rows.len(), columns, group, bytes, scale).ok()
    }

    /// The dense tensor; cached after the first call.
    pub(crate) fn dense(&self) -> Result<Tensor, Fault> {
        if let Some(tensor) = self.dense.get() {
            return Ok(tensor.clone());
        }
        let mut values = vec![0.0; elements(&self.shape)?];
        let row: usize = self.shape[1..].iter().product();
        for (index, out) in values.chunks_exact_mut(row.max(1)).enumerate() {
            self.row(index, out);
        }
        Ok(self.dense.get_or_init(|| Tensor::float(&self.shape, values)).clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(dtype: DType, shape: &[usize], bytes: &[u8]) -> Codes {
        Codes { bytes: Bytes::from_vec(bytes.to_vec()), dtype, shape: shape.to_vec() }
    }

    fn dense(weight: &Weight) -> Vec<f32> {
        weight.dense().unwrap().floats().unwrap().to_vec()
    }

    #[test]
    fn each_block_has_its_scale() {
        let data = || Source::Codes(codes(DType::I8, &[2, 4], &[1, 2, 3, 4, 5, 6, 7, 0xff]));
        let scaled = |counts: &[usize], scale: &[f32], offset: Option<&[f32]>| {
            let offset = offset.map(<[f32]>::to_vec);
            dense(&Weight::scaled(data(), counts, scale.to_vec(), offset, Precision::Exact).unwrap())
        };
        assert_eq!(scaled(&[1, 1], &[2.0], None), [2., 4., 6., 8., 10., 12., 14., -2.]);
        assert_eq!(scaled(&[2, 1], &[1.0, 10.0], None), [1., 2., 3., 4., 50., 60., 70., -10.]);
        assert_eq!(scaled(&[2, 2], &[1., 2., 3., 4.], None), [1., 2., 6., 8., 15., 18., 28., -4.]);
        assert_eq!(scaled(&[1, 2], &[1., 2.], Some(&[1., 3.])), [0., 1., 0., 2., 4., 5., 8., -8.]);
        assert!(Weight::scaled(data(), &[2, 3], vec![0.0; 6], None, Precision::Exact).is_err());
        assert!(Weight::scaled(data(), &[2, 1], vec![0.0], None, Precision::Exact).is_err());
    }

    #[test]
    fn tables_give_what_the_index_names() {
        // uint2 [[0, 1, 2, 3], [3, 3, 0, 1]] with one table per row.
        let indices = codes(DType::U2, &[2, 4], &[0b1110_0100, 0b0100_1111]);
        let table = vec![0.0, 1.0, 2.0, 3.0, 10.0, 11.0, 12.0, 13.0];
        let weight = Weight::table(indices.clone(), &[2, 1], table, 4, Precision::Exact).unwrap();
        assert_eq!(dense(&weight), [0., 1., 2., 3., 13., 13., 10., 11.]);
        assert!(Weight::table(indices, &[2, 1], vec![0.0; 6], 3, Precision::Exact).is_err());
    }

    #[test]
    fn signed_four_bit_codes_count_from_minus_eight() {
        let data = Source::Codes(codes(DType::I4, &[5, 1], &[0xe1, 0xc3, 0x07]));
        let weight = Weight::scaled(data, &[1, 1], vec![0.5], None, Precision::Exact).unwrap();
        assert_eq!(dense(&weight), [0.5, -1.0, 1.5, -2.0, 3.5]);
    }

    #[test]
    fn half_precision_rounds_every_weight() {
        let data = Source::Codes(codes(DType::I8, &[1, 2], &[127, 3]));
        let scale = f16::from_f32(0.0123).to_f32();
        let weight = Weight::scaled(data, &[1, 1], vec![scale], None, Precision::Half).unwrap();
        assert_eq!(dense(&weight), [127.0, 3.0].map(|q| f16::from_f32(q * scale).to_f32()));
    }

    #[test]
    fn a_scale_may_follow_a_table() {
        let indices = codes(DType::U1, &[2, 2], &[0b0110]);
        let inner = Weight::table(indices, &[1, 1], vec![-1.0, 1.0], 2, Precision::Exact).unwrap();
        let data = Source::Weight(Arc::new(inner));
        let weight = Weight::scaled(data, &[2, 1], vec![1.0, 5.0], None, Precision::Exact).unwrap();
        assert_eq!(dense(&weight), [-1.0, 1.0, 5.0, -5.0]);
    }
}
