//! The producing half of a conversion: quantizes or transforms the tensors of a plan, chunk by chunk.

use std::ops::{ControlFlow, Range};
use std::sync::mpsc::SyncSender;

use q35_quant::affine::{AffineSpec, PackedMatrix};
use rayon::prelude::*;

use crate::plan::add_one;
use crate::step::{Action, Step};
use crate::{Recipe, WriteError};

/// Receives the bytes of the source converted since the last call; `Break` cancels the conversion.
pub(crate) type Progress<'a> = &'a dyn Fn(u64) -> ControlFlow<()>;

/// Consecutive bytes of the output tensors of a step.
pub(crate) enum Chunk {
    /// All bytes of a step's only output tensor.
    Tensor(Vec<u8>),
    /// Some rows of a quantized matrix.
    Rows {
        /// Words, scales and biases.
        packed: PackedMatrix,
        /// True for the last rows of the matrix.
        last: bool,
    },
}

/// Produces the output of `steps` in order, and sends it to the shard writer. Ends early, without an error, when the
/// shard writer has failed and no longer receives.
pub(crate) fn produce(
    steps: &[Step<'_>],
    recipe: &dyn Recipe,
    chunks: &SyncSender<Chunk>,
    progress: Progress<'_>,
) -> Result<(), WriteError> {
    for step in steps {
        let sent = match step.action {
            Action::Quantize(spec) => quantize(step, spec, recipe, chunks, progress)?,
            Action::Shift => send(chunks, add_one(step.tensor.dtype, &float_bytes(step, recipe)?)),
            // A transpose of [channels, 1, taps] keeps the order of the numbers.
            Action::Transpose | Action::Keep => send(chunks, float_bytes(step, recipe)?),
        };
        if !sent {
            return Ok(());
        }
        if !matches!(step.action, Action::Quantize(_)) {
            report(progress, step.source_bytes())?;
        }
    }
    Ok(())
}

fn send(chunks: &SyncSender<Chunk>, bytes: Vec<u8>) -> bool {
    chunks.send(Chunk::Tensor(bytes)).is_ok()
}

fn report(progress: Progress<'_>, bytes: u64) -> Result<(), WriteError> {
    match progress(bytes) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(WriteError::Cancelled),
    }
}

/// The bytes of a tensor that stays in float: the source's, or those that the recipe replaces them with.
fn float_bytes(step: &Step<'_>, recipe: &dyn Recipe) -> Result<Vec<u8>, WriteError> {
    let tensor = &step.tensor;
    tensor.check_finite()?;
    let Some(values) = recipe.float_values(tensor.spec) else { return Ok(tensor.data.to_vec()) };
    let mut bytes = Vec::with_capacity(tensor.data.len());
    tensor.dtype.narrow(values, &mut bytes);
    if bytes.len() == tensor.data.len() {
        return Ok(bytes);
    }
    let message = format!("{} bytes for a tensor of {}", bytes.len(), tensor.data.len());
    Err(WriteError::Recipe { name: tensor.name().to_owned(), message })
}

/// Quantizes a matrix by chunks of rows. Returns false when the receiver is gone.
fn quantize(
    step: &Step<'_>,
    spec: AffineSpec,
    recipe: &dyn Recipe,
    chunks: &SyncSender<Chunk>,
    progress: Progress<'_>,
) -> Result<bool, WriteError> {
    let tensor = &step.tensor;
    let rows = tensor.shape()[0];
    let chunk_rows = step.rows_per_chunk();
    for start in (0..rows).step_by(chunk_rows) {
        let range = start..rows.min(start + chunk_rows);
        check_finite(step, range.clone())?;
        let packed = recipe
            .quantize(tensor, spec, range.clone())
            .map_err(|message| WriteError::Recipe { name: tensor.name().to_owned(), message })?;
        if chunks.send(Chunk::Rows { packed, last: range.end == rows }).is_err() {
            return Ok(false);
        }
        report(progress, tensor.rows(range).len() as u64)?;
    }
    Ok(true)
}

/// Checks that `rows` are finite. Results are collected in order, so that the reported weight does not depend on the
/// number of threads.
fn check_finite(step: &Step<'_>, rows: Range<usize>) -> Result<(), WriteError> {
    const ROWS_PER_TASK: usize = 64;
    let tasks = rows.len().div_ceil(ROWS_PER_TASK);
    let results: Vec<_> = (0..tasks)
        .into_par_iter()
        .map(|task| {
            let start = rows.start + task * ROWS_PER_TASK;
            step.tensor.check_rows_finite(start..rows.end.min(start + ROWS_PER_TASK))
        })
        .collect();
    results.into_iter().collect::<Result<(), _>>().map_err(WriteError::from)
}
