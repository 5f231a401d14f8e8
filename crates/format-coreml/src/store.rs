//! Weights on their way from a checkpoint into a package: quantized, or kept and transformed, once per package.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufWriter;
use std::ops::Range;

use q35_checkpoint::{Checkpoint, TensorView};
use q35_format_mil::build::{Argument, FunctionBuilder, Tensor};
use q35_format_mil::{DType, TensorType, Value};
use q35_quant::{FloatType, symmetric};
use rayon::prelude::*;

use crate::ConvertError;
use crate::options::{BLOCK, Encoding};

/// A function whose constants go to a package's weight file.
pub(crate) type Function<'w> = FunctionBuilder<'w, BufWriter<File>>;

/// Told the bytes of the checkpoint that have just been quantized.
pub(crate) type Progress<'a> = &'a dyn Fn(u64);

/// Bytes of a checkpoint that are quantized at once: large enough to keep all cores busy, small enough to stay in
/// their caches and out of the process's memory.
const BATCH_BYTES: usize = 4 << 20;
/// Rows that one core takes at a time.
const ROWS_PER_TASK: usize = 32;

/// The weights of one package.
pub(crate) struct Store<'a> {
    checkpoint: &'a Checkpoint,
    quantizer: Quantizer,
    progress: Progress<'a>,
    matrices: BTreeMap<String, Vec<Matrix>>,
    /// What the function being built has unpacked already.
    unpacked: BTreeMap<String, Vec<Tensor>>,
    identity: Option<u64>,
}

/// A quantized matrix, or some of its rows, in the weight file.
#[derive(Clone, Copy)]
struct Matrix {
    rows: usize,
    columns: usize,
    data: u64,
    scale: u64,
    /// Of [`Encoding::Affine`].
    zero_point: u64,
}

/// The name that a tensor's constant has in a program.
pub(crate) fn identifier(tensor: &str) -> String {
    tensor.replace('.', "_")
}

/// The name of part `index` of a matrix that is cut by rows.
pub(crate) fn part_identifier(tensor: &str, index: usize) -> String {
    format!("{}_part_{index}", identifier(tensor))
}

/// Whether a matrix stays in floats: the small projections of the linear layers' gates, which decide much.
pub(crate) fn is_kept_linear(name: &str) -> bool {
    name.ends_with(".in_proj_a.weight") || name.ends_with(".in_proj_b.weight")
}

/// The zero point of [`Encoding::Affine`]: 127, which a GPU and the Neural Engine are reported to get right.
pub(crate) const ZERO_POINT: u8 = 127;
/// What [`Encoding::Lut`] adds to a weight to get its index.
pub(crate) const LUT_OFFSET: i32 = 128;

impl<'a> Store<'a> {
    pub(crate) fn new(
        checkpoint: &'a Checkpoint,
        encoding: Encoding,
        dtype: DType,
        progress: Progress<'a>,
    ) -> Self {
        Self {
            checkpoint,
            quantizer: Quantizer { encoding, dtype },
            progress,
            matrices: BTreeMap::new(),
            unpacked: BTreeMap::new(),
            identity: None,
        }
    }

    /// Forgets the values of the function before.
    pub(crate) fn begin_function(&mut self) {
        self.unpacked.clear();
    }

    pub(crate) fn quantizer(&self) -> Quantizer {
        self.quantizer
    }

    pub(crate) fn tensor(&self, name: &str) -> Result<TensorView<'a>, ConvertError> {
        self.checkpoint.tensor(name).ok_or_else(|| ConvertError::Missing { name: name.to_owned() })
    }

    /// A small tensor kept in floats, each element passed through `transform`.
    pub(crate) fn floats(
        &self,
        f: &mut Function<'_>,
        name: &str,
        transform: impl Fn(f32) -> f32,
    ) -> Result<Tensor, ConvertError> {
        let tensor = self.tensor(name)?;
        tensor.check_finite()?;
        let mut values = vec![0.0; tensor.shape().iter().product()];
        tensor.dtype.widen(tensor.data, &mut values);
        values.iter_mut().for_each(|value| *value = transform(*value));
        if self.quantizer.dtype == DType::F16
            && let Some(value) = values.iter().find(|value| value.abs() > half::f16::MAX.to_f32())
        {
            return Err(ConvertError::Range { name: name.to_owned(), value: *value });
        }
        Ok(f.constant(&identifier(name), self.quantizer.dtype, tensor.shape(), &values)?)
    }

    /// A quantized matrix [out, in].
    pub(crate) fn matrix(&mut self, f: &mut Function<'_>, name: &str) -> Result<Tensor, ConvertError> {
        let mut parts = self.matrix_parts(f, name, 1)?;
        parts.pop().ok_or_else(|| ConvertError::Missing { name: name.to_owned() })
    }

    /// A quantized matrix cut by rows into `count` parts of equal size, but for the last, which may be smaller.
    pub(crate) fn matrix_parts(
        &mut self,
        f: &mut Function<'_>,
        name: &str,
        count: usize,
    ) -> Result<Vec<Tensor>, ConvertError> {
        if let Some(parts) = self.unpacked.get(name) {
            return Ok(parts.clone());
        }
        if !self.matrices.contains_key(name) {
            let tensor = self.tensor(name)?;
            let rows = tensor.shape()[0];
            let size = rows.div_ceil(count);
            let parts = (0..rows)
                .step_by(size)
                .map(|start| self.write(f, &tensor, start..rows.min(start + size)))
                .collect::<Result<_, _>>()?;
            self.matrices.insert(name.to_owned(), parts);
        }
        let parts = self.matrices[name].clone();
        let names = (0..parts.len()).map(|index| match parts.len() {
            1 => identifier(name),
            _ => part_identifier(name, index),
        });
        let dense = names
            .zip(&parts)
            .map(|(name, part)| self.unpack(f, &name, *part))
            .collect::<Result<Vec<_>, _>>()?;
        self.unpacked.insert(name.to_owned(), dense.clone());
        Ok(dense)
    }

    /// Streams rows through the quantizer into the weight file.
    fn write(
        &self,
        f: &mut Function<'_>,
        tensor: &TensorView<'_>,
        rows: Range<usize>,
    ) -> Result<Matrix, ConvertError> {
        let (count, columns) = (rows.len(), tensor.row_len());
        let unsigned = matches!(self.quantizer.encoding, Encoding::Lut | Encoding::Affine);
        let offset = match self.quantizer.encoding {
            Encoding::Lut => LUT_OFFSET as u8,
            Encoding::Affine => ZERO_POINT,
            Encoding::Channel | Encoding::Block32 => 0,
        };
        let dtype = if unsigned { DType::U8 } else { DType::I8 };
        let mut scales = Vec::with_capacity(count * (columns / self.quantizer.block(columns)));
        let mut record = f.weights().record(dtype, count * columns)?;
        let release = |part: &[u8]| self.checkpoint.release(part);
        self.quantizer.each_batch(tensor, rows, &release, self.progress, |q, batch_scales| {
            scales.extend_from_slice(batch_scales);
            if !unsigned {
                return Ok(record.write(bytemuck::cast_slice(q))?);
            }
            let codes: Vec<u8> = q.iter().map(|&q| (q as u8).wrapping_add(offset)).collect();
            Ok(record.write(&codes)?)
        })?;
        let data = record.finish()?;
        let mut bytes = Vec::new();
        self.quantizer.float_type().narrow(&scales, &mut bytes);
        let scale = f.weights().add(self.quantizer.dtype, scales.len(), &bytes)?;
        let zero_point = match self.quantizer.encoding {
            Encoding::Affine => f.weights().add(DType::U8, count, &vec![ZERO_POINT; count])?,
            _ => 0,
        };
        Ok(Matrix { rows: count, columns, data, scale, zero_point })
    }

    /// The operations that turn a stored matrix into a value.
    fn unpack(&mut self, f: &mut Function<'_>, name: &str, matrix: Matrix) -> Result<Tensor, ConvertError> {
        let Matrix { rows, columns, data, scale, zero_point } = matrix;
        let blob = |dtype, shape: &[usize], offset| -> Argument {
            Value::blob(TensorType::new(dtype, shape), offset).into()
        };
        let blocks = columns / self.quantizer.block(columns);
        let scale_of = |shape: &[usize]| blob(self.quantizer.dtype, shape, scale);
        let shape = [rows, columns];
        let dense = match self.quantizer.encoding {
            Encoding::Channel | Encoding::Block32 => {
                let arguments =
                    vec![("data", blob(DType::I8, &shape, data)), ("scale", scale_of(&[rows, blocks]))];
                f.op("constexpr_blockwise_shift_scale", arguments)?
            }
            Encoding::Lut => {
                let lut = self.identity(f)?;
                let lut = blob(self.quantizer.dtype, &[1, 1, 256, 1], lut);
                let arguments = vec![("indices", blob(DType::U8, &shape, data)), ("lut", lut)];
                let unscaled = f.op("constexpr_lut_to_dense", arguments)?;
                f.rename(&unscaled, &format!("{name}_unscaled"))?;
                let scale = blob(self.quantizer.dtype, &[rows, 1], scale);
                f.op("constexpr_blockwise_shift_scale", vec![("data", (&unscaled).into()), ("scale", scale)])?
            }
            Encoding::Affine => {
                let arguments = vec![
                    ("quantized_data", blob(DType::U8, &shape, data)),
                    ("zero_point", blob(DType::U8, &[rows], zero_point)),
                    ("scale", scale_of(&[rows])),
                    ("axis", Value::int(0).into()),
                ];
                f.op("constexpr_affine_dequantize", arguments)?
            }
        };
        f.rename(&dense, name)?;
        Ok(dense)
    }

    /// The table of [`Encoding::Lut`]: index i stands for i - 128.
    fn identity(&mut self, f: &mut Function<'_>) -> Result<u64, ConvertError> {
        if let Some(offset) = self.identity {
            return Ok(offset);
        }
        let table: Vec<f32> = (0..256).map(|index| (index - LUT_OFFSET) as f32).collect();
        let mut bytes = Vec::new();
        self.quantizer.float_type().narrow(&table, &mut bytes);
        let offset = f.weights().add(self.quantizer.dtype, table.len(), &bytes)?;
        self.identity = Some(offset);
        Ok(offset)
    }
}

/// How matrices become numbers of eight bits.
#[derive(Clone, Copy)]
pub(crate) struct Quantizer {
    encoding: Encoding,
    /// Of scales, and of weights that stay in floats.
    dtype: DType,
}

impl Quantizer {
    /// Elements of a row that share a scale.
    pub(crate) fn block(self, columns: usize) -> usize {
        if self.encoding == Encoding::Block32 { BLOCK } else { columns }
    }

    /// Quantizes rows batch by batch; while a batch is being consumed, the next one is being made. `release` is told of
    /// source bytes that are needed no more, so that a large source never lies in memory.
    pub(crate) fn each_batch(
        self,
        tensor: &TensorView<'_>,
        rows: Range<usize>,
        release: &(dyn Fn(&[u8]) + Sync),
        progress: &dyn Fn(u64),
        mut consume: impl FnMut(&[i8], &[f32]) -> Result<(), ConvertError> + Send,
    ) -> Result<(), ConvertError> {
        let row_bytes = tensor.row_len() * tensor.dtype.size();
        let size = (BATCH_BYTES / row_bytes).max(ROWS_PER_TASK);
        let mut starts = rows.clone().step_by(size).map(|start| start..rows.end.min(start + size));
        let Some(first) = starts.next() else { return Ok(()) };
        let make = |batch: Range<usize>| {
            let made = self.quantize(tensor, batch.clone());
            release(tensor.rows(batch));
            made
        };
        let mut ready = make(first)?;
        for batch in starts {
            let (consumed, next) = rayon::join(|| consume(&ready.0, &ready.1), || make(batch));
            consumed?;
            progress((ready.0.len() * tensor.dtype.size()) as u64);
            ready = next?;
        }
        consume(&ready.0, &ready.1)?;
        progress((ready.0.len() * tensor.dtype.size()) as u64);
        Ok(())
    }

    fn quantize(
        self,
        tensor: &TensorView<'_>,
        rows: Range<usize>,
    ) -> Result<(Vec<i8>, Vec<f32>), ConvertError> {
        let columns = tensor.row_len();
        let block = self.block(columns);
        let mut q = vec![0i8; rows.len() * columns];
        let mut scales = vec![0.0; q.len() / block];
        let tasks = q
            .par_chunks_mut(ROWS_PER_TASK * columns)
            .zip(scales.par_chunks_mut(ROWS_PER_TASK * columns / block))
            .enumerate();
        tasks
            .map(|(index, (q, scales))| {
                let start = rows.start + index * ROWS_PER_TASK;
                let task = start..start + q.len() / columns;
                tensor.check_rows_finite(task.clone())?;
                let bytes = tensor.rows(task);
                symmetric::quantize_rows(tensor.dtype, bytes, columns, block, self.float_type(), q, scales);
                Ok(())
            })
            // Collected in order, so that the same error is reported whichever thread finds one first.
            .collect::<Vec<Result<(), ConvertError>>>()
            .into_iter()
            .collect::<Result<(), _>>()?;
        Ok((q, scales))
    }

    pub(crate) fn float_type(self) -> FloatType {
        if self.dtype == DType::F16 { FloatType::F16 } else { FloatType::F32 }
    }
}
