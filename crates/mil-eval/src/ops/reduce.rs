//! Reductions along axes.

use std::sync::Arc;

use super::{Call, Floats, Table};
use crate::Fault;
use crate::ops::shape::transposed;
use crate::tensor::{Data, Tensor, axis};

pub(super) const TABLE: Table = &[
    ("reduce_sum", |c| reduce(c, |v| sum(v) as f32, Some(|v| v.iter().fold(0, |a, &b| a.wrapping_add(b))))),
    ("reduce_mean", |c| reduce(c, |v| (sum(v) / v.len() as f64) as f32, None)),
    ("reduce_max", |c| reduce(c, max, Some(|v| v.iter().copied().max().unwrap_or(i32::MIN)))),
    ("reduce_min", |c| {
        reduce(c, |v| -max_of(v.iter().map(|x| -x)), Some(|v| v.iter().copied().min().unwrap_or(i32::MAX)))
    }),
    ("reduce_prod", |c| {
        let product = |v: &[f32]| v.iter().map(|&x| f64::from(x)).product::<f64>() as f32;
        reduce(c, product, Some(|v| v.iter().fold(1, |a, &b| a.wrapping_mul(b))))
    }),
    ("reduce_sum_square", |c| reduce(c, |v| squares(v) as f32, None)),
    ("reduce_l1_norm", |c| reduce(c, |v| v.iter().map(|&x| f64::from(x.abs())).sum::<f64>() as f32, None)),
    ("reduce_l2_norm", |c| reduce(c, |v| squares(v).sqrt() as f32, None)),
    ("reduce_log_sum", |c| reduce(c, |v| sum(v).ln() as f32, None)),
    ("reduce_log_sum_exp", |c| reduce(c, log_sum_exp, None)),
    ("cumsum", cumsum),
];

/// Sum in f64, so that the reference adds no rounding error.
fn sum(values: &[f32]) -> f64 {
    values.iter().map(|&x| f64::from(x)).sum()
}

fn squares(values: &[f32]) -> f64 {
    values.iter().map(|&x| f64::from(x) * f64::from(x)).sum()
}

pub(super) fn max(values: &[f32]) -> f32 {
    max_of(values.iter().copied())
}

fn max_of(values: impl Iterator<Item = f32>) -> f32 {
    values.fold(f32::NEG_INFINITY, super::elementwise::maximum)
}

fn log_sum_exp(values: &[f32]) -> f32 {
    let peak = max(values);
    if !peak.is_finite() {
        return peak;
    }
    peak + values.iter().map(|&x| f64::from(x - peak).exp()).sum::<f64>().ln() as f32
}

/// The reduced axes (all if none are named) and the shape of the result.
struct Plan {
    reduced: Vec<bool>,
    shape: Vec<usize>,
}

fn plan(call: &mut Call, shape: &[usize]) -> Result<Plan, Fault> {
    let axes = call.optional_ints("axes")?;
    let keep = call.bool_or("keep_dims", false)?;
    let mut reduced = vec![axes.is_none(); shape.len()];
    for index in axes.unwrap_or_default() {
        reduced[axis(index, shape.len())?] = true;
    }
    let shape = shape
        .iter()
        .zip(&reduced)
        .filter(|(_, reduced)| keep || !**reduced)
        .map(|(&size, &reduced)| if reduced { 1 } else { size })
        .collect();
    Ok(Plan { reduced, shape })
}

/// Transposes the reduced axes to the back, so that the operands of each result are contiguous.
fn gathered(x: Tensor, reduced: &[bool]) -> Result<(Tensor, usize), Fault> {
    let kept = (0..reduced.len()).filter(|&i| !reduced[i]);
    let order: Vec<usize> = kept.chain((0..reduced.len()).filter(|&i| reduced[i])).collect();
    let length =
        reduced.iter().zip(x.shape()).filter(|(reduced, _)| **reduced).map(|(_, size)| size).product();
    let in_place = {
        let moved = order.iter().filter(|&&i| x.shape()[i] != 1);
        moved.is_sorted()
    };
    Ok((if in_place { x } else { transposed(&x, &order)? }, length))
}

fn reduce(
    call: &mut Call,
    f: impl Fn(&[f32]) -> f32,
    g: Option<fn(&[i32]) -> i32>,
) -> Result<Vec<Tensor>, Fault> {
    let x = call.take("x")?;
    let plan = plan(call, x.shape())?;
    let count = crate::tensor::elements(&plan.shape)?;
    let (x, length) = gathered(x, &plan.reduced)?;
    let data = match (x.data(), g) {
        (Data::Float(values), _) if length == 0 => Data::Float(Arc::new(vec![f(&values[..0]); count])),
        (Data::Float(values), _) => Data::Float(Arc::new(values.chunks_exact(length).map(f).collect())),
        (Data::Int(values), Some(g)) if length > 0 => {
            Data::Int(Arc::new(values.chunks_exact(length).map(g).collect()))
        }
        _ => return Err(super::kind("x", "float", &x)),
    };
    Ok(vec![Tensor::from_parts(plan.shape, data)?])
}

fn cumsum(call: &mut Call) -> Result<Vec<Tensor>, Fault> {
    let Floats { shape, values } = call.floats("x")?;
    let along = axis(call.int_or("axis", 0)?, shape.len())?;
    let (exclusive, reverse) = (call.bool_or("exclusive", false)?, call.bool_or("reverse", false)?);
    let (length, inner) = (shape[along], shape[along + 1..].iter().product::<usize>());
    let mut out = vec![0.0; values.len()];
    if !out.is_empty() {
        for (block, source) in out.chunks_exact_mut(length * inner).zip(values.chunks_exact(length * inner)) {
            for lane in 0..inner {
                let mut total = 0.0f64;
                for step in 0..length {
                    let at = if reverse { length - 1 - step } else { step } * inner + lane;
                    let before = total;
                    total += f64::from(source[at]);
                    block[at] = if exclusive { before } else { total } as f32;
                }
            }
        }
    }
    super::float(&shape, out)
}
