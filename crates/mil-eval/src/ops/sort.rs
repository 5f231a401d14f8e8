//! Sorting and selection along an axis.

use std::cmp::Ordering;
use std::sync::Arc;

use super::shape::transposed;
use super::{Call, Table};
use crate::Fault;
use crate::tensor::{Data, Tensor, axis};

pub(super) const TABLE: Table = &[
    ("reduce_argmax", |c| arg_extreme(c, Ordering::Greater)),
    ("reduce_argmin", |c| arg_extreme(c, Ordering::Less)),
    ("argsort", argsort),
    ("topk", topk),
];

/// Elements as f64, which represents all of them exactly; NaN sorts above all others.
fn comparable(x: &Tensor) -> Result<Vec<f64>, Fault> {
    match x.data() {
        Data::Float(values) => Ok(values.iter().map(|&v| f64::from(v)).collect()),
        Data::Int(values) => Ok(values.iter().map(|&v| f64::from(v)).collect()),
        _ => Err(super::kind("x", "a number", x)),
    }
}

fn swapped_to_back(rank: usize, along: usize) -> Vec<usize> {
    (0..rank).filter(|&i| i != along).chain([along]).collect()
}

fn moved_back(rank: usize, along: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..rank - 1).collect();
    order.insert(along, rank - 1);
    order
}

/// Index of the first largest (or smallest) element along an axis.
fn arg_extreme(call: &mut Call, wanted: Ordering) -> Result<Vec<Tensor>, Fault> {
    let x = call.take("x")?;
    let along = axis(call.int_or("axis", -1)?, x.rank())?;
    let keep = call.bool_or("keep_dims", false)?;
    let length = x.shape()[along];
    if length == 0 {
        return Err(Fault::invalid("the extreme of no elements"));
    }
    let rows = comparable(&transposed(&x, &swapped_to_back(x.rank(), along))?)?;
    let extremes = rows.chunks_exact(length).map(|row| {
        (1..length).fold(0, |best, i| if row[i].total_cmp(&row[best]) == wanted { i } else { best }) as i32
    });
    let mut shape = x.shape().to_vec();
    if keep {
        shape[along] = 1;
    } else {
        shape.remove(along);
    }
    Ok(vec![Tensor::int(&shape, extremes.collect())])
}

/// Stable sort order of a row.
fn order(row: &[f64], ascending: bool) -> Vec<usize> {
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|&a, &b| if ascending { row[a].total_cmp(&row[b]) } else { row[b].total_cmp(&row[a]) });
    order
}

fn argsort(call: &mut Call) -> Result<Vec<Tensor>, Fault> {
    let x = call.take("x")?;
    let along = axis(call.int_or("axis", -1)?, x.rank())?;
    let ascending = call.bool_or("ascending", false)?;
    let moved = transposed(&x, &swapped_to_back(x.rank(), along))?;
    let rows = comparable(&moved)?;
    let indices = rows
        .chunks_exact(x.shape()[along].max(1))
        .flat_map(|row| order(row, ascending))
        .map(|i| i as i32)
        .collect();
    Ok(vec![transposed(&Tensor::int(moved.shape(), indices), &moved_back(x.rank(), along))?])
}

fn topk(call: &mut Call) -> Result<Vec<Tensor>, Fault> {
    let x = call.take("x")?;
    let along = axis(call.int_or("axis", -1)?, x.rank())?;
    let (k, ascending) = (call.int_or("k", 1)?, call.bool_or("ascending", false)?);
    let length = x.shape()[along];
    let k = match usize::try_from(k) {
        Ok(k) if k <= length => k,
        _ if k == -1 => length,
        _ => return Err(Fault::invalid(format!("the first {k} of an axis of {length}"))),
    };
    let moved = transposed(&x, &swapped_to_back(x.rank(), along))?;
    let rows = comparable(&moved)?;
    let mut picks = Vec::new();
    for (i, row) in rows.chunks_exact(length.max(1)).enumerate() {
        picks.extend(order(row, ascending)[..k].iter().map(|&j| (i * length + j, j as i32)));
    }
    let mut shape = moved.shape().to_vec();
    shape[x.rank() - 1] = k;
    let data = match moved.data() {
        Data::Int(values) => Data::Int(Arc::new(picks.iter().map(|&(flat, _)| values[flat]).collect())),
        Data::Float(values) => Data::Float(Arc::new(picks.iter().map(|&(flat, _)| values[flat]).collect())),
        _ => return Err(super::kind("x", "a number", &x)),
    };
    let back = moved_back(x.rank(), along);
    let values = transposed(&Tensor::from_parts(shape.clone(), data)?, &back)?;
    let indices = transposed(&Tensor::int(&shape, picks.iter().map(|&(_, j)| j).collect()), &back)?;
    let mut results = vec![values, indices];
    results.truncate(call.results);
    Ok(results)
}
