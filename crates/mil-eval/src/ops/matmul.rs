//! Matrix products.

use std::sync::Arc;

use super::elementwise::broadcast_steps;
use super::{Call, Floats, Table};
use crate::Fault;
use crate::product::{dense_rows, matrix_product, weight_rows};
use crate::tensor::{Odometer, Tensor, broadcast, elements};
use crate::weight::Value;

pub(super) const TABLE: Table = &[("linear", linear), ("matmul", matmul)];

/// `x weight^T + bias`: x [.., in], weight [out, in], bias [out].
fn linear(call: &mut Call) -> Result<Vec<Tensor>, Fault> {
    let x = call.floats("x")?;
    let weight = call.value("weight").ok_or_else(|| Fault::Missing("weight".to_owned()))?;
    let bias = call.optional_floats("bias")?;
    let mut out = rows_times_weight(&x, &weight)?;
    if let Some(bias) = bias {
        let width = *out.shape.last().unwrap_or(&1);
        if bias.values.len() != width {
            return Err(Fault::invalid(format!("a bias of {} for {width} outputs", bias.values.len())));
        }
        // coremltools writes a zero bias for layers without bias.
        if bias.values.iter().any(|&v| v != 0.0) {
            let rows = Arc::make_mut(&mut out.values).chunks_exact_mut(width.max(1));
            rows.for_each(|row| row.iter_mut().zip(bias.values.iter()).for_each(|(v, b)| *v += b));
        }
    }
    Ok(vec![Tensor::from_parts(out.shape, crate::tensor::Data::Float(out.values))?])
}

/// Product of the rows of `x` [.., in] with the rows of a weight [out, in, 1..].
pub(super) fn rows_times_weight(x: &Floats, weight: &Value) -> Result<Floats, Fault> {
    let (outputs, inner) = match weight.shape() {
        [outputs, rest @ ..] if !rest.is_empty() => (*outputs, rest.iter().product::<usize>()),
        shape => return Err(Fault::invalid(format!("a weight of shape {shape:?}"))),
    };
    if x.shape.last() != Some(&inner) {
        return Err(Fault::invalid(format!("x of {:?} times a weight of {:?}", x.shape, weight.shape())));
    }
    let mut shape = x.shape.clone();
    shape.pop();
    shape.push(outputs);
    let mut out = vec![0.0; elements(&shape)?];
    match weight {
        Value::Weight(weight) => weight_rows(&x.values, weight, inner, outputs, &mut out)?,
        Value::Tensor(tensor) => {
            let weight = tensor.floats().ok_or_else(|| super::kind("weight", "float", tensor))?;
            dense_rows(&x.values, weight, inner, outputs, &mut out)?;
        }
    }
    Ok(Floats { shape, values: Arc::new(out) })
}

fn matmul(call: &mut Call) -> Result<Vec<Tensor>, Fault> {
    let (flip_x, flip_y) = (call.bool_or("transpose_x", false)?, call.bool_or("transpose_y", false)?);
    let x = call.floats("x")?;
    let y = call.value("y").ok_or_else(|| Fault::Missing("y".to_owned()))?;
    // Product with a transposed weight: the same as `linear`, so the weight may stay packed.
    if flip_y && !flip_x && y.shape().len() == 2 && x.shape.len() > 1 {
        let out = rows_times_weight(&x, &y)?;
        return Ok(vec![Tensor::from_parts(out.shape, crate::tensor::Data::Float(out.values))?]);
    }
    let y = y.into_dense()?;
    let found = y.kind();
    let (mut y_shape, crate::tensor::Data::Float(y_values)) = y.into_parts() else {
        return Err(Fault::Kind { input: "y".to_owned(), expected: "float", found });
    };
    let mut x_shape = x.shape;
    // A vector is a row on the left and a column on the right; its axis is removed from the result.
    let (row, column) = (x_shape.len() == 1, y_shape.len() == 1);
    if row {
        x_shape.insert(0, 1);
    }
    if column {
        y_shape.push(1);
    }
    let (x_rank, y_rank) = (x_shape.len(), y_shape.len());
    if x_rank < 2 || y_rank < 2 {
        return Err(Fault::invalid("matmul of a scalar"));
    }
    let of = |shape: &[usize], flip: bool| {
        let [.., a, b] = *shape else { return (0, 0) };
        if flip { (b, a) } else { (a, b) }
    };
    let ((rows, inner), (y_inner, columns)) = (of(&x_shape, flip_x && !row), of(&y_shape, flip_y && !column));
    if inner != y_inner {
        return Err(Fault::invalid(format!("{x_shape:?} times {y_shape:?}")));
    }
    let batch = broadcast(&x_shape[..x_rank - 2], &y_shape[..y_rank - 2])?;
    let mut shape = batch.clone();
    shape.extend([rows, columns]);
    let mut out = vec![0.0; elements(&shape)?];
    let steps =
        [broadcast_steps(&x_shape[..x_rank - 2], &batch), broadcast_steps(&y_shape[..y_rank - 2], &batch)];
    let offsets: Vec<[usize; 2]> = Odometer::new(&batch, steps).collect();
    matrix_product(
        (&x.values, flip_x && !row),
        (&y_values, flip_y && !column),
        (rows, inner, columns),
        &offsets,
        &mut out,
    )?;
    if row {
        shape.remove(shape.len() - 2);
    }
    if column {
        shape.pop();
    }
    super::float(&shape, out)
}
