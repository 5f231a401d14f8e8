//! Scatter operators.

use super::gather::{indices, places, position, tuples};
use super::{Call, Table};
use crate::Fault;
use crate::tensor::{Data, Tensor, axis};

pub(super) const TABLE: Table =
    &[("scatter", scatter), ("scatter_along_axis", scatter_along_axis), ("scatter_nd", scatter_nd)];

/// Combination of an element and its update.
fn combine(mode: &str) -> Result<fn(f32, f32) -> f32, Fault> {
    Ok(match mode {
        "update" => |_, new| new,
        "add" => |old, new| old + new,
        "sub" => |old, new| old - new,
        "mul" => |old, new| old * new,
        "div" => |old, new| old / new,
        "max" => super::elementwise::maximum,
        "min" => |old, new| -super::elementwise::maximum(-old, -new),
        other => return Err(Fault::invalid(format!("scatter has no mode `{other}`"))),
    })
}

/// Combines the runs of `run` elements of `data` at offsets `starts` with the elements of `updates`.
fn write(data: &Tensor, starts: &[usize], run: usize, updates: &Tensor, mode: &str) -> Result<Tensor, Fault> {
    if updates.len() != starts.len() * run {
        return Err(Fault::invalid(format!(
            "updates of {:?} for {} places of {run} elements",
            updates.shape(),
            starts.len()
        )));
    }
    match (data.data(), updates.data()) {
        (Data::Float(old), Data::Float(new)) => {
            let (mut out, f) = (old.to_vec(), combine(mode)?);
            for (&start, new) in starts.iter().zip(new.chunks_exact(run.max(1))) {
                out[start..start + run].iter_mut().zip(new).for_each(|(old, &new)| *old = f(*old, new));
            }
            Ok(Tensor::float(data.shape(), out))
        }
        (Data::Int(old), Data::Int(new)) => {
            let f: fn(i32, i32) -> i32 = match mode {
                "update" => |_, new| new,
                "add" => i32::wrapping_add,
                "sub" => i32::wrapping_sub,
                "mul" => i32::wrapping_mul,
                "max" => i32::max,
                "min" => i32::min,
                other => return Err(Fault::invalid(format!("scatter of integers has no mode `{other}`"))),
            };
            let mut out = old.to_vec();
            for (&start, new) in starts.iter().zip(new.chunks_exact(run.max(1))) {
                out[start..start + run].iter_mut().zip(new).for_each(|(old, &new)| *old = f(*old, new));
            }
            Ok(Tensor::int(data.shape(), out))
        }
        _ => Err(Fault::invalid("`data` and `updates` must both be floats or both be integers")),
    }
}

/// Combines slices along an axis with `updates`, which have the indices' axes in its place.
fn scatter(call: &mut Call) -> Result<Vec<Tensor>, Fault> {
    let (data, indices, updates) = (call.take("data")?, indices(call)?, call.take("updates")?);
    let along = axis(call.int_or("axis", 0)?, data.rank())?;
    let mode = call.text_or("mode", "add")?;
    let (size, run) = (data.shape()[along], data.shape()[along + 1..].iter().product::<usize>());
    let outer: usize = data.shape()[..along].iter().product();
    let mut starts = Vec::new();
    for o in 0..outer {
        for &pick in indices.ints().unwrap_or_default() {
            starts.push((o * size + position(pick, size)?) * run);
        }
    }
    Ok(vec![write(&data, &starts, run, &updates, &mode)?])
}

fn scatter_along_axis(call: &mut Call) -> Result<Vec<Tensor>, Fault> {
    let (data, indices, updates) = (call.take("data")?, indices(call)?, call.take("updates")?);
    let along = axis(call.int_or("axis", 0)?, data.rank())?;
    let mode = call.text_or("mode", "add")?;
    let starts = places(data.shape(), &indices, along)?;
    Ok(vec![write(&data, &starts, 1, &updates, &mode)?])
}

fn scatter_nd(call: &mut Call) -> Result<Vec<Tensor>, Fault> {
    let (data, indices, updates) = (call.take("data")?, indices(call)?, call.take("updates")?);
    let mode = call.text_or("mode", "add")?;
    let (starts, run) = tuples(data.shape(), &indices)?;
    Ok(vec![write(&data, &starts, run, &updates, &mode)?])
}
