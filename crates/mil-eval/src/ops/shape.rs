//! Operators that move elements or change the shape.

use std::sync::Arc;

use super::{Call, Table};
use crate::Fault;
use crate::tensor::{Data, Odometer, Tensor, axis, elements, strides};

pub(super) const TABLE: Table = &[
    ("reshape", reshape),
    ("transpose", transpose),
    ("expand_dims", expand_dims),
    ("squeeze", squeeze),
    ("flatten2d", flatten),
    ("concat", concat),
    ("stack", stack),
    ("split", split),
    ("tile", tile),
    ("reverse", reverse),
    ("pad", pad),
    ("shape", |c| {
        let x = c.take("x")?;
        Ok(vec![Tensor::int(&[x.rank()], x.shape().iter().map(|&size| size as i32).collect())])
    }),
    ("band_part", band_part),
];

/// Gathers elements by flat index: element `i` of the result is the source's element `index(i)`.
pub(super) fn rearranged(
    x: &Tensor,
    shape: &[usize],
    index: impl Iterator<Item = usize>,
) -> Result<Tensor, Fault> {
    let data = match x.data() {
        Data::Float(values) => Data::Float(Arc::new(index.map(|i| values[i]).collect())),
        Data::Int(values) => Data::Int(Arc::new(index.map(|i| values[i]).collect())),
        Data::Bool(values) => Data::Bool(Arc::new(index.map(|i| values[i]).collect())),
        Data::Text(_) => return Err(super::kind("x", "a tensor", x)),
    };
    Tensor::from_parts(shape.to_vec(), data)
}

/// Gathers runs of `run` contiguous elements.
pub(super) fn rearranged_runs(
    x: &Tensor,
    shape: &[usize],
    run: usize,
    starts: impl Iterator<Item = usize>,
) -> Result<Tensor, Fault> {
    fn copy<T: Copy>(
        values: &[T],
        count: usize,
        run: usize,
        starts: impl Iterator<Item = usize>,
    ) -> Arc<Vec<T>> {
        let mut out = Vec::with_capacity(count);
        if run > 0 {
            starts.for_each(|start| out.extend_from_slice(&values[start..start + run]));
        }
        Arc::new(out)
    }
    let count = elements(shape)?;
    let data = match x.data() {
        Data::Float(values) => Data::Float(copy(values, count, run, starts)),
        Data::Int(values) => Data::Int(copy(values, count, run, starts)),
        Data::Bool(values) => Data::Bool(copy(values, count, run, starts)),
        Data::Text(_) => return Err(super::kind("x", "a tensor", x)),
    };
    Tensor::from_parts(shape.to_vec(), data)
}

fn reshape(call: &mut Call) -> Result<Vec<Tensor>, Fault> {
    let x = call.take("x")?;
    let wanted = call.ints("shape")?;
    // 0 copies the source's length; -1 is inferred from the number of elements.
    let mut shape = Vec::with_capacity(wanted.len());
    let mut open = None;
    for (i, &size) in wanted.iter().enumerate() {
        shape.push(match size {
            -1 if open.is_none() => {
                open = Some(i);
                1
            }
            0 if i < x.rank() => x.shape()[i],
            size => usize::try_from(size).map_err(|_| Fault::invalid(format!("reshape to {wanted:?}")))?,
        });
    }
    if let Some(i) = open {
        let known = elements(&shape)?;
        if known == 0 || !x.len().is_multiple_of(known) {
            return Err(Fault::invalid(format!("{:?} cannot be reshaped to {wanted:?}", x.shape())));
        }
        shape[i] = x.len() / known;
    }
    Ok(vec![x.reshaped(shape)?])
}

fn transpose(call: &mut Call) -> Result<Vec<Tensor>, Fault> {
    let x = call.take("x")?;
    let order = call.ints("perm")?.iter().map(|&i| axis(i, x.rank())).collect::<Result<Vec<_>, _>>()?;
    Ok(vec![transposed(&x, &order)?])
}

/// Axis `i` of the result is axis `order[i]` of `x`.
pub(super) fn transposed(x: &Tensor, order: &[usize]) -> Result<Tensor, Fault> {
    let mut seen = vec![false; x.rank()];
    order.iter().for_each(|&i| seen[i] = true);
    if order.len() != x.rank() || seen.contains(&false) {
        return Err(Fault::invalid(format!("{order:?} is no order of {} axes", x.rank())));
    }
    let shape: Vec<usize> = order.iter().map(|&i| x.shape()[i]).collect();
    if order.iter().filter(|&&i| x.shape()[i] != 1).is_sorted() {
        return x.clone().reshaped(shape);
    }
    let own = strides(x.shape());
    let steps: Vec<usize> = order.iter().map(|&i| own[i]).collect();
    // Trailing axes that are not permuted are copied as one run.
    let fixed = order.iter().rev().zip((0..x.rank()).rev()).take_while(|(from, to)| **from == *to).count();
    let outer = shape.len() - fixed;
    let run: usize = shape[outer..].iter().product();
    if run > 1 {
        let starts = Odometer::new(&shape[..outer], [steps[..outer].to_vec()]).map(|[i]| i);
        return rearranged_runs(x, &shape, run, starts);
    }
    rearranged(x, &shape, Odometer::new(&shape, [steps]).map(|[i]| i))
}

fn expand_dims(call: &mut Call) -> Result<Vec<Tensor>, Fault> {
    let x = call.take("x")?;
    let axes = call.ints("axes")?;
    let rank = x.rank() + axes.len();
    let mut inserted = vec![false; rank];
    for index in axes {
        inserted[axis(index, rank)?] = true;
    }
    let mut sizes = x.shape().iter();
    let shape: Option<Vec<usize>> =
        inserted.iter().map(|&new| if new { Some(1) } else { sizes.next().copied() }).collect();
    let shape = shape.ok_or_else(|| Fault::invalid("expand_dims names an axis twice"))?;
    Ok(vec![x.reshaped(shape)?])
}

fn squeeze(call: &mut Call) -> Result<Vec<Tensor>, Fault> {
    let x = call.take("x")?;
    let mut dropped: Vec<bool> = vec![false; x.rank()];
    match call.optional_ints("axes")? {
        Some(axes) => {
            for index in axes {
                dropped[axis(index, x.rank())?] = true;
            }
        }
        None => dropped = x.shape().iter().map(|&size| size == 1).collect(),
    }
    let shape =
        x.shape().iter().zip(&dropped).filter(|(_, dropped)| !**dropped).map(|(&size, _)| size).collect();
    Ok(vec![x.reshaped(shape)?])
}

fn flatten(call: &mut Call) -> Result<Vec<Tensor>, Fault> {
    let x = call.take("x")?;
    let at = usize::try_from(call.int_or("axis", 1)?).unwrap_or(usize::MAX).min(x.rank());
    let rows = x.shape()[..at].iter().product();
    let columns = x.shape()[at..].iter().product();
    Ok(vec![x.reshaped(vec![rows, columns])?])
}

/// Concatenates tensors of one kind along an axis; the other axes must agree.
fn joined(parts: &[Tensor], along: usize) -> Result<Tensor, Fault> {
    let first = &parts[0];
    let mut shape = first.shape().to_vec();
    shape[along] = 0;
    for part in parts {
        let fits = part.rank() == first.rank()
            && (0..part.rank()).all(|i| i == along || part.shape()[i] == first.shape()[i]);
        if !fits {
            return Err(Fault::invalid(format!(
                "{:?} and {:?} cannot be joined along axis {along}",
                first.shape(),
                part.shape()
            )));
        }
        shape[along] += part.shape()[along];
    }
    let count = elements(&shape)?;
    let outer: usize = shape[..along].iter().product();
    fn join<T: Copy>(parts: &[&[T]], outer: usize, count: usize) -> Arc<Vec<T>> {
        let mut out = Vec::with_capacity(count);
        for i in 0..outer {
            for part in parts {
                let run = part.len() / outer;
                out.extend_from_slice(&part[i * run..(i + 1) * run]);
            }
        }
        Arc::new(out)
    }
    let mixed = || Fault::invalid("values of different types cannot be joined");
    let data = match first.data() {
        Data::Float(_) => {
            let parts = parts.iter().map(Tensor::floats).collect::<Option<Vec<_>>>().ok_or_else(mixed)?;
            Data::Float(join(&parts, outer, count))
        }
        Data::Int(_) => {
            let parts = parts.iter().map(Tensor::ints).collect::<Option<Vec<_>>>().ok_or_else(mixed)?;
            Data::Int(join(&parts, outer, count))
        }
        Data::Bool(_) => {
            let parts = parts.iter().map(Tensor::bools).collect::<Option<Vec<_>>>().ok_or_else(mixed)?;
            Data::Bool(join(&parts, outer, count))
        }
        Data::Text(_) => return Err(mixed()),
    };
    Tensor::from_parts(shape, data)
}

fn concat(call: &mut Call) -> Result<Vec<Tensor>, Fault> {
    let parts = call.many("values")?;
    let first = parts.first().ok_or_else(|| Fault::invalid("concat of nothing"))?;
    let rank = first.rank();
    let along = axis(call.int_or("axis", 0)?, rank)?;
    if !call.bool_or("interleave", false)? {
        return Ok(vec![joined(&parts, along)?]);
    }
    // Interleaved slices: the parts are stacked on a new axis after `along`.
    if parts.iter().any(|part| part.shape() != first.shape()) {
        return Err(Fault::invalid("interleaved values must have one shape"));
    }
    let mut shape = first.shape().to_vec();
    shape[along] = shape[along].saturating_mul(parts.len());
    let opened = parts.into_iter().map(|part| opened(part, along + 1)).collect::<Result<Vec<_>, _>>()?;
    Ok(vec![joined(&opened, along + 1)?.reshaped(shape)?])
}

fn opened(x: Tensor, at: usize) -> Result<Tensor, Fault> {
    let mut shape = x.shape().to_vec();
    shape.insert(at, 1);
    x.reshaped(shape)
}

fn stack(call: &mut Call) -> Result<Vec<Tensor>, Fault> {
    let parts = call.many("values")?;
    let rank = parts.first().ok_or_else(|| Fault::invalid("stack of nothing"))?.rank();
    let along = axis(call.int_or("axis", 0)?, rank + 1)?;
    if parts.iter().any(|part| part.rank() != rank) {
        return Err(Fault::invalid("stacked values must have one shape"));
    }
    let parts = parts.into_iter().map(|part| opened(part, along)).collect::<Result<Vec<_>, _>>()?;
    Ok(vec![joined(&parts, along)?])
}

fn split(call: &mut Call) -> Result<Vec<Tensor>, Fault> {
    let x = call.take("x")?;
    let along = axis(call.int_or("axis", 0)?, x.rank())?;
    let length = x.shape()[along];
    let sizes = match call.optional_ints("split_sizes")? {
        Some(sizes) => sizes
            .iter()
            .map(|&size| usize::try_from(size))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| Fault::invalid(format!("split sizes {sizes:?}")))?,
        None => {
            let parts = usize::try_from(call.int_or("num_splits", 0)?).unwrap_or(0);
            if parts == 0 || parts > length || !length.is_multiple_of(parts) {
                return Err(Fault::invalid(format!("an axis of {length} cannot be split into {parts}")));
            }
            vec![length / parts; parts]
        }
    };
    if sizes.iter().try_fold(0usize, |total, &size| total.checked_add(size)) != Some(length) {
        return Err(Fault::invalid(format!("an axis of {length} cannot be split into {sizes:?}")));
    }
    let inner: usize = x.shape()[along + 1..].iter().product();
    let outer: usize = x.shape()[..along].iter().product();
    let mut from = 0;
    let mut parts = Vec::with_capacity(sizes.len());
    for size in sizes {
        let mut shape = x.shape().to_vec();
        shape[along] = size;
        let starts = (0..outer).map(|i| (i * length + from) * inner);
        parts.push(rearranged_runs(&x, &shape, size * inner, starts)?);
        from += size;
    }
    Ok(parts)
}

fn tile(call: &mut Call) -> Result<Vec<Tensor>, Fault> {
    let x = call.take("x")?;
    let reps = call.ints("reps")?;
    if reps.len() != x.rank() {
        return Err(Fault::invalid(format!("{} repetitions for a rank of {}", reps.len(), x.rank())));
    }
    let reps = reps
        .iter()
        .map(|&n| usize::try_from(n).map_err(|_| Fault::invalid("negative repetitions")))
        .collect::<Result<Vec<_>, _>>()?;
    let shape: Vec<usize> = x.shape().iter().zip(&reps).map(|(size, n)| size.saturating_mul(*n)).collect();
    elements(&shape)?;
    // Each axis becomes a pair: the repetitions, with stride 0, and the axis itself.
    let own = strides(x.shape());
    let sizes: Vec<usize> = reps.iter().zip(x.shape()).flat_map(|(&n, &size)| [n, size]).collect();
    let steps: Vec<usize> = own.iter().flat_map(|&step| [0, step]).collect();
    Ok(vec![rearranged(&x, &shape, Odometer::new(&sizes, [steps]).map(|[i]| i))?])
}

fn reverse(call: &mut Call) -> Result<Vec<Tensor>, Fault> {
    let x = call.take("x")?;
    let mut reversed = vec![true; x.rank()];
    if let Some(axes) = call.optional_ints("axes")? {
        reversed = vec![false; x.rank()];
        for index in axes {
            reversed[axis(index, x.rank())?] = true;
        }
    }
    let own = strides(x.shape());
    // Source offset: sum over axes of (size - 1 - i) or i, times the stride.
    let index = indices(x.shape()).map(|at| {
        (0..at.len()).map(|i| if reversed[i] { x.shape()[i] - 1 - at[i] } else { at[i] } * own[i]).sum()
    });
    Ok(vec![rearranged(&x, x.shape(), index)?])
}

/// All index tuples of a shape.
fn indices(shape: &[usize]) -> impl Iterator<Item = Vec<usize>> {
    let own = strides(shape);
    let count: usize = shape.iter().product();
    let shape = shape.to_vec();
    (0..count).map(move |flat| (0..shape.len()).map(|i| flat / own[i] % shape[i]).collect())
}

fn pad(call: &mut Call) -> Result<Vec<Tensor>, Fault> {
    let x = call.take("x")?;
    let amounts = call.ints("pad")?;
    let mode = call.text_or("mode", "constant")?;
    let fill = call.float_or("constant_val", 0.0)?;
    let amounts = amounts
        .iter()
        .map(|&n| usize::try_from(n).map_err(|_| Fault::invalid("negative padding")))
        .collect::<Result<Vec<_>, _>>()?;
    if !amounts.len().is_multiple_of(2) || amounts.len() / 2 > x.rank() {
        return Err(Fault::invalid(format!("{} paddings for a rank of {}", amounts.len(), x.rank())));
    }
    // Pairs (before, after) for the last axes.
    let unpadded = x.rank() - amounts.len() / 2;
    let around = |i: usize| match i.checked_sub(unpadded) {
        Some(i) => (amounts[2 * i], amounts[2 * i + 1]),
        None => (0, 0),
    };
    let shape: Vec<usize> =
        (0..x.rank()).map(|i| x.shape()[i].saturating_add(around(i).0).saturating_add(around(i).1)).collect();
    elements(&shape)?;
    let (values, own) = (x.floats().ok_or_else(|| super::kind("x", "float", &x))?, strides(x.shape()));
    let source = |at: usize, i: usize| -> Result<Option<usize>, Fault> {
        let (before, size) = (around(i).0 as i64, x.shape()[i] as i64);
        let from = at as i64 - before;
        let inside = match mode.as_str() {
            "constant" => return Ok((0..size).contains(&from).then_some(from as usize)),
            "replicate" => from.clamp(0, size - 1),
            "reflect" => {
                let mirrored = if from < 0 { -from } else { from };
                if mirrored >= size { 2 * (size - 1) - mirrored } else { mirrored }
            }
            other => return Err(Fault::invalid(format!("pad has no mode `{other}`"))),
        };
        match usize::try_from(inside) {
            Ok(inside) if inside < x.shape()[i] => Ok(Some(inside)),
            _ => Err(Fault::invalid("more padding than the axis can give")),
        }
    };
    let mut out = Vec::with_capacity(elements(&shape)?);
    for at in indices(&shape) {
        let mut from = Some(0);
        for i in 0..at.len() {
            from = from.zip(source(at[i], i)?).map(|(flat, index)| flat + index * own[i]);
        }
        out.push(from.map_or(fill, |i| values[i]));
    }
    super::float(&shape, out)
}

/// Keeps the diagonals of the last two axes from `lower` below to `upper` above the main one; a negative number keeps
/// all on that side.
fn band_part(call: &mut Call) -> Result<Vec<Tensor>, Fault> {
    let x = call.floats("x")?;
    let (lower, upper) = (call.int_or("lower", -1)?, call.int_or("upper", -1)?);
    let [.., rows, columns] = x.shape[..] else {
        return Err(Fault::invalid("band_part needs a matrix"));
    };
    let mut out = x.values.to_vec();
    for (flat, value) in out.iter_mut().enumerate() {
        let (row, column) = ((flat / columns % rows) as i64, (flat % columns) as i64);
        if (lower >= 0 && row - column > lower) || (upper >= 0 && column - row > upper) {
            *value = 0.0;
        }
    }
    super::float(&x.shape, out)
}
