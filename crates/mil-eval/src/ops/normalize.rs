//! Softmax and normalization operators.

use super::{Call, Floats, Table};
use crate::Fault;
use crate::ops::shape::transposed;
use crate::tensor::{Tensor, axis};

pub(super) const TABLE: Table =
    &[("softmax", softmax), ("layer_norm", layer_norm), ("l2_norm", l2_norm), ("batch_norm", batch_norm)];

fn softmax(call: &mut Call) -> Result<Vec<Tensor>, Fault> {
    let x = call.floats("x")?;
    let along = axis(call.int_or("axis", -1)?, x.shape.len())?;
    let mut out = x.values.to_vec();
    let (length, inner) = (x.shape[along], x.shape[along + 1..].iter().product::<usize>());
    if inner == 1 {
        out.chunks_exact_mut(length.max(1)).for_each(softmax_row);
    } else if !out.is_empty() {
        let mut row = vec![0.0; length];
        for block in out.chunks_exact_mut(length * inner) {
            for lane in 0..inner {
                (0..length).for_each(|i| row[i] = block[i * inner + lane]);
                softmax_row(&mut row);
                (0..length).for_each(|i| block[i * inner + lane] = row[i]);
            }
        }
    }
    super::float(&x.shape, out)
}

/// Softmax of a row, in place; the denominator is summed in f64.
pub(super) fn softmax_row(row: &mut [f32]) {
    let peak = super::reduce::max(row);
    let mut total = 0.0f64;
    for value in row.iter_mut() {
        *value = (*value - peak).exp();
        total += f64::from(*value);
    }
    let total = total as f32;
    row.iter_mut().for_each(|value| *value /= total);
}

fn layer_norm(call: &mut Call) -> Result<Vec<Tensor>, Fault> {
    let x = call.take("x")?;
    let rank = x.rank();
    let axes = match call.optional_ints("axes")? {
        Some(axes) => axes.into_iter().map(|i| axis(i, rank)).collect::<Result<Vec<_>, _>>()?,
        None => (0..rank).collect(),
    };
    let (gamma, beta) = (call.optional_floats("gamma")?, call.optional_floats("beta")?);
    let epsilon = f64::from(call.float_or("epsilon", 1e-5)?);
    // The normalized axes are transposed to the back and restored afterwards.
    let mut order: Vec<usize> = (0..rank).filter(|i| !axes.contains(i)).collect();
    order.extend((0..rank).filter(|i| axes.contains(i)));
    let moved = transposed(&x, &order)?;
    let length: usize = (0..rank).filter(|i| axes.contains(i)).map(|i| x.shape()[i]).product();
    for weight in [&gamma, &beta].into_iter().flatten() {
        if weight.values.len() != length {
            return Err(Fault::invalid(format!("a weight of {} for {length} elements", weight.values.len())));
        }
    }
    let source = moved.floats().ok_or_else(|| super::kind("x", "float", &x))?;
    let mut out = Vec::with_capacity(source.len());
    for row in source.chunks_exact(length.max(1)) {
        let mean = row.iter().map(|&v| f64::from(v)).sum::<f64>() / length as f64;
        let variance = row.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / length as f64;
        let scale = 1.0 / (variance + epsilon).sqrt();
        for (i, &v) in row.iter().enumerate() {
            let centred = ((f64::from(v) - mean) * scale) as f32;
            let scaled = gamma.as_ref().map_or(centred, |g| centred * g.values[i]);
            out.push(beta.as_ref().map_or(scaled, |b| scaled + b.values[i]));
        }
    }
    let mut back = vec![0; rank];
    order.iter().enumerate().for_each(|(to, &from)| back[from] = to);
    Ok(vec![transposed(&Tensor::float(moved.shape(), out), &back)?])
}

/// Norm over the last three axes together, as the operator is defined; not a norm of rows.
fn l2_norm(call: &mut Call) -> Result<Vec<Tensor>, Fault> {
    let Floats { shape, values } = call.floats("x")?;
    let epsilon = f64::from(call.float_or("epsilon", 1e-6)?);
    let length: usize = shape[shape.len().saturating_sub(3)..].iter().product();
    let mut out = values.to_vec();
    for row in out.chunks_exact_mut(length.max(1)) {
        let squares: f64 = row.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
        let scale = 1.0 / (squares + epsilon).sqrt();
        row.iter_mut().for_each(|v| *v = (f64::from(*v) * scale) as f32);
    }
    super::float(&shape, out)
}

fn batch_norm(call: &mut Call) -> Result<Vec<Tensor>, Fault> {
    let Floats { shape, values } = call.floats("x")?;
    let (mean, variance) = (call.floats("mean")?, call.floats("variance")?);
    let (gamma, beta) = (call.optional_floats("gamma")?, call.optional_floats("beta")?);
    let epsilon = call.float_or("epsilon", 1e-5)?;
    let channels = *shape.get(1).ok_or_else(|| Fault::invalid("batch_norm needs a channel axis"))?;
    let weights = [Some(&mean), Some(&variance), gamma.as_ref(), beta.as_ref()];
    if weights.into_iter().flatten().any(|weight| weight.values.len() != channels) {
        return Err(Fault::invalid(format!(
            "batch_norm of {channels} channels has weights of another length"
        )));
    }
    let inner = shape[2..].iter().product::<usize>().max(1);
    let mut out = values.to_vec();
    for (i, row) in out.chunks_exact_mut(inner).enumerate() {
        let c = i % channels;
        let scale = gamma.as_ref().map_or(1.0, |g| g.values[c]) / (variance.values[c] + epsilon).sqrt();
        let shift = beta.as_ref().map_or(0.0, |b| b.values[c]);
        row.iter_mut().for_each(|v| *v = (*v - mean.values[c]) * scale + shift);
    }
    super::float(&shape, out)
}
