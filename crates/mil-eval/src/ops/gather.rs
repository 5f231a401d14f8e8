//! Gather operators.

use super::shape::{rearranged, rearranged_runs};
use super::{Call, Table};
use crate::Fault;
use crate::tensor::{Odometer, Tensor, axis, elements, strides};
use crate::weight::Value;

pub(super) const TABLE: Table =
    &[("gather", gather), ("gather_along_axis", gather_along_axis), ("gather_nd", gather_nd)];

/// Resolves an index; negative ones count from the back.
pub(super) fn position(index: i32, size: usize) -> Result<usize, Fault> {
    let from_front = if index < 0 { i64::from(index) + size as i64 } else { i64::from(index) };
    match usize::try_from(from_front) {
        Ok(at) if at < size => Ok(at),
        _ => Err(Fault::Index { index: index.into(), size }),
    }
}

/// The integer elements of `indices`.
pub(super) fn indices(call: &mut Call) -> Result<Tensor, Fault> {
    let indices = call.take("indices")?;
    if indices.ints().is_none() {
        return Err(super::kind("indices", "int", &indices));
    }
    Ok(indices)
}

/// Slices of `x` along `axis`; with `batch_dims`, the leading axes of `x` and of the indices are matched.
fn gather(call: &mut Call) -> Result<Vec<Tensor>, Fault> {
    let indices = indices(call)?;
    let picks = indices.ints().unwrap_or_default();
    let (index, batch) = (call.int_or("axis", 0)?, call.int_or("batch_dims", 0)?);
    let x = match call.value("x").ok_or_else(|| Fault::Missing("x".to_owned()))? {
        // Rows of a packed weight: only the requested ones are unpacked.
        Value::Weight(weight) if axis(index, weight.shape().len())? == 0 && batch == 0 => {
            let size = weight.shape()[0];
            let row: usize = weight.shape()[1..].iter().product();
            let shape = [indices.shape(), &weight.shape()[1..]].concat();
            let mut out = vec![0.0; elements(&shape)?];
            for (pick, out) in picks.iter().zip(out.chunks_exact_mut(row.max(1))) {
                weight.row(position(*pick, size)?, out);
            }
            return super::float(&shape, out);
        }
        value => value.into_dense()?,
    };
    let along = axis(index, x.rank())?;
    let batch = usize::try_from(batch).map_err(|_| Fault::invalid("negative batch_dims"))?;
    if batch > along || batch > indices.rank() || x.shape()[..batch] != indices.shape()[..batch] {
        return Err(Fault::invalid(format!(
            "{batch} batch axes of {:?} gathered by {:?} along axis {along}",
            x.shape(),
            indices.shape()
        )));
    }
    let size = x.shape()[along];
    let shape = [&x.shape()[..along], &indices.shape()[batch..], &x.shape()[along + 1..]].concat();
    let picks = picks.iter().map(|&pick| position(pick, size)).collect::<Result<Vec<_>, _>>()?;
    elements(&shape)?;
    let batches: usize = x.shape()[..batch].iter().product();
    let middle: usize = x.shape()[batch..along].iter().product();
    let inner: usize = x.shape()[along + 1..].iter().product();
    let per_batch = picks.len().checked_div(batches).unwrap_or(0);
    let mut starts = Vec::with_capacity(batches * middle * per_batch);
    for b in 0..batches {
        for m in 0..middle {
            let picks = &picks[b * per_batch..(b + 1) * per_batch];
            starts.extend(picks.iter().map(|pick| ((b * middle + m) * size + pick) * inner));
        }
    }
    Ok(vec![rearranged_runs(&x, &shape, inner, starts.into_iter())?])
}

/// Elements of `x` at the positions of the indices, with the coordinate along the axis replaced by the index.
fn gather_along_axis(call: &mut Call) -> Result<Vec<Tensor>, Fault> {
    let (x, indices) = (call.take("x")?, indices(call)?);
    let along = axis(call.int_or("axis", 0)?, x.rank())?;
    let flat = places(x.shape(), &indices, along)?;
    Ok(vec![rearranged(&x, indices.shape(), flat.into_iter())?])
}

/// Flat offsets into a tensor of `shape` for `indices` along an axis.
pub(super) fn places(shape: &[usize], indices: &Tensor, along: usize) -> Result<Vec<usize>, Fault> {
    let fits = indices.rank() == shape.len()
        && (0..shape.len()).all(|i| i == along || indices.shape()[i] == shape[i]);
    if !fits {
        return Err(Fault::invalid(format!(
            "indices of {:?} along axis {along} of {shape:?}",
            indices.shape()
        )));
    }
    let mut steps = strides(shape);
    let step = std::mem::take(&mut steps[along]);
    Odometer::new(indices.shape(), [steps])
        .zip(indices.ints().unwrap_or_default())
        .map(|([base], &pick)| Ok(base + position(pick, shape[along])? * step))
        .collect()
}

/// Slices of `x` at the index tuples that the last axis of `indices` holds.
fn gather_nd(call: &mut Call) -> Result<Vec<Tensor>, Fault> {
    let (x, indices) = (call.take("x")?, indices(call)?);
    let batch = usize::try_from(call.int_or("batch_dims", 0)?).unwrap_or(usize::MAX);
    if batch >= indices.rank() || batch > x.rank() || x.shape()[..batch] != indices.shape()[..batch] {
        return Err(Fault::invalid(format!(
            "{:?} gathered by index tuples of {:?}",
            x.shape(),
            indices.shape()
        )));
    }
    let batches: usize = x.shape()[..batch].iter().product();
    let (runs, run) = tuples(&x.shape()[batch..], &indices)?;
    let depth = indices.shape()[indices.rank() - 1];
    let shape = [&indices.shape()[..indices.rank() - 1], &x.shape()[batch + depth..]].concat();
    let (per_batch, stride) = (runs.len() / batches.max(1), x.len() / batches.max(1));
    let starts = runs.iter().enumerate().map(|(i, start)| start + i / per_batch.max(1) * stride);
    Ok(vec![rearranged_runs(&x, &shape, run, starts)?])
}

/// Start offsets of the slices at index tuples (the last axis of `indices`), and the length of each slice.
pub(super) fn tuples(shape: &[usize], indices: &Tensor) -> Result<(Vec<usize>, usize), Fault> {
    let depth = indices.shape().last().copied().unwrap_or(0);
    if depth == 0 || depth > shape.len() {
        return Err(Fault::invalid(format!("index tuples of {depth} into {shape:?}")));
    }
    let (own, run) = (strides(shape), shape[depth..].iter().product());
    let starts = indices
        .ints()
        .unwrap_or_default()
        .chunks_exact(depth)
        .map(|tuple| {
            tuple.iter().enumerate().try_fold(0, |at, (i, &pick)| Ok(at + position(pick, shape[i])? * own[i]))
        })
        .collect::<Result<Vec<_>, Fault>>()?;
    Ok((starts, run))
}
