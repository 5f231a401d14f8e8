//! The weights of a package: quantized or transformed tensors of the checkpoint, each written once per package and
//! unpacked once per function.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufWriter;
use std::ops::{ControlFlow, Range};

use q35_checkpoint::{Checkpoint, TensorView};
use q35_format_mil::build::{Argument, FunctionBuilder, Tensor};
use q35_format_mil::{DType, TensorType, Value};
use q35_quant::{FloatType, symmetric};
use rayon::prelude::*;

use crate::WriteError;
use crate::options::{BLOCK, Encoding};
use crate::plan::Action;

/// A function under construction whose constants go to the package's weight file.
pub(crate) type Function<'w> = FunctionBuilder<'w, BufWriter<File>>;

/// Receives the bytes of the checkpoint quantized since the last call; `Break` cancels the conversion.
pub(crate) type Progress<'a> = &'a dyn Fn(u64) -> ControlFlow<()>;

/// Source bytes of one batch: enough work for all cores, and small enough to stay in their caches.
const BATCH_BYTES: usize = 4 << 20;
/// Rows of one parallel task.
const ROWS_PER_TASK: usize = 32;

/// The weights of one package.
pub(crate) struct WeightStore<'a> {
    checkpoint: &'a Checkpoint,
    quantizer: Quantizer,
    progress: Progress<'a>,
    matrices: BTreeMap<String, Vec<Matrix>>,
    /// Matrices that the current function has unpacked.
    unpacked: BTreeMap<String, Vec<Tensor>>,
    identity: Option<u64>,
}

/// Offsets in the weight file of a quantized matrix, or of some of its rows.
#[derive(Clone, Copy)]
struct Matrix {
    rows: usize,
    columns: usize,
    data: u64,
    scale: u64,
    /// Offset of the zero points of [`Encoding::Affine`].
    zero_point: u64,
}

/// Name of a tensor's constant in a program.
pub(crate) fn identifier(tensor: &str) -> String {
    tensor.replace('.', "_")
}

/// Name of part `index` of a matrix that is split by rows.
pub(crate) fn part_identifier(tensor: &str, index: usize) -> String {
    format!("{}_part_{index}", identifier(tensor))
}

/// Zero point of [`Encoding::Affine`]: GPU and Neural Engine are reported to compute correctly with 127.
pub(crate) const ZERO_POINT: u8 = 127;
/// Index of the code 0 in the table of [`Encoding::Lut`].
pub(crate) const LUT_OFFSET: i32 = 128;

impl<'a> WeightStore<'a> {
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

    /// Starts a function: forgets the unpacked matrices of the previous one.
    pub(crate) fn begin_function(&mut self) {
        self.unpacked.clear();
    }

    pub(crate) fn quantizer(&self) -> Quantizer {
        self.quantizer
    }

    pub(crate) fn tensor(&self, name: &str) -> Result<TensorView<'a>, WriteError> {
        self.checkpoint.tensor(name).ok_or_else(|| WriteError::Missing { name: name.to_owned() })
    }

    /// A tensor that stays in float, transformed as the plan decides. Shape as in the checkpoint.
    pub(crate) fn float_tensor(&self, f: &mut Function<'_>, name: &str) -> Result<Tensor, WriteError> {
        let tensor = self.tensor(name)?;
        let action = Action::of(tensor.spec);
        tensor.check_finite()?;
        let mut values = vec![0.0; tensor.shape().iter().product()];
        tensor.dtype.widen(tensor.data, &mut values);
        values.iter_mut().for_each(|value| *value = action.apply(*value));
        if self.quantizer.dtype == DType::F16
            && let Some(value) = values.iter().find(|value| value.abs() > half::f16::MAX.to_f32())
        {
            return Err(WriteError::Range { name: name.to_owned(), value: *value });
        }
        Ok(f.constant(&identifier(name), self.quantizer.dtype, tensor.shape(), &values)?)
    }

    /// A quantized matrix [out, in].
    pub(crate) fn matrix(&mut self, f: &mut Function<'_>, name: &str) -> Result<Tensor, WriteError> {
        let mut parts = self.matrix_parts(f, name, 1)?;
        parts.pop().ok_or_else(|| WriteError::Missing { name: name.to_owned() })
    }

    /// A quantized matrix split by rows into `count` parts of equal size; the last may be smaller.
    pub(crate) fn matrix_parts(
        &mut self,
        f: &mut Function<'_>,
        name: &str,
        count: usize,
    ) -> Result<Vec<Tensor>, WriteError> {
        if let Some(parts) = self.unpacked.get(name) {
            return Ok(parts.clone());
        }
        if !self.matrices.contains_key(name) {
            let tensor = self.tensor(name)?;
            debug_assert_eq!(Action::of(tensor.spec), Action::Quantize, "{name}");
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

    /// Quantizes rows into the weight file, batch by batch.
    fn write(
        &self,
        f: &mut Function<'_>,
        tensor: &TensorView<'_>,
        rows: Range<usize>,
    ) -> Result<Matrix, WriteError> {
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

    /// Adds the operations that dequantize a stored matrix.
    fn unpack(&mut self, f: &mut Function<'_>, name: &str, matrix: Matrix) -> Result<Tensor, WriteError> {
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

    /// Offset of the table of [`Encoding::Lut`], whose entry i is `i - 128`.
    fn identity(&mut self, f: &mut Function<'_>) -> Result<u64, WriteError> {
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

/// Symmetric INT8 quantization of matrices.
#[derive(Clone, Copy)]
pub(crate) struct Quantizer {
    encoding: Encoding,
    /// Type of scales and of weights that stay in float.
    dtype: DType,
}

impl Quantizer {
    /// Weights of a row that share a scale.
    pub(crate) fn block(self, columns: usize) -> usize {
        if self.encoding == Encoding::Block32 { BLOCK } else { columns }
    }

    /// Quantizes rows batch by batch; a batch is consumed while the next is quantized. `release` receives source bytes
    /// that are no longer needed, so that a large source is never in memory as a whole.
    pub(crate) fn each_batch(
        self,
        tensor: &TensorView<'_>,
        rows: Range<usize>,
        release: &(dyn Fn(&[u8]) + Sync),
        progress: Progress<'_>,
        mut consume: impl FnMut(&[i8], &[f32]) -> Result<(), WriteError> + Send,
    ) -> Result<(), WriteError> {
        let row_bytes = tensor.row_len() * tensor.dtype.size();
        let size = (BATCH_BYTES / row_bytes).max(ROWS_PER_TASK);
        let mut starts = rows.clone().step_by(size).map(|start| start..rows.end.min(start + size));
        let Some(first) = starts.next() else { return Ok(()) };
        let quantize = |batch: Range<usize>| {
            let quantized = self.quantize(tensor, batch.clone());
            release(tensor.rows(batch));
            quantized
        };
        let report = |codes: usize| match progress((codes * tensor.dtype.size()) as u64) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(WriteError::Cancelled),
        };
        let mut ready = quantize(first)?;
        for batch in starts {
            let (consumed, next) = rayon::join(|| consume(&ready.0, &ready.1), || quantize(batch));
            consumed?;
            report(ready.0.len())?;
            ready = next?;
        }
        consume(&ready.0, &ready.1)?;
        report(ready.0.len())
    }

    /// Codes and scales of `rows`.
    fn quantize(
        self,
        tensor: &TensorView<'_>,
        rows: Range<usize>,
    ) -> Result<(Vec<i8>, Vec<f32>), WriteError> {
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
            // Collected in order, so that the reported weight does not depend on the number of threads.
            .collect::<Vec<Result<(), WriteError>>>()
            .into_iter()
            .collect::<Result<(), _>>()?;
        Ok((q, scales))
    }

    pub(crate) fn float_type(self) -> FloatType {
        if self.dtype == DType::F16 { FloatType::F16 } else { FloatType::F32 }
    }
}
