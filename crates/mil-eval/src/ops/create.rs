//! Operators that create tensors from parameters.

use super::gather::indices;
use super::{Call, Table};
use crate::Fault;
use crate::tensor::{Data, MAX_ELEMENTS, Tensor, axis, elements};

pub(super) const TABLE: Table =
    &[("fill", fill), ("fill_like", fill_like), ("range_1d", range), ("one_hot", one_hot)];

fn filled(shape: &[usize], value: Option<Tensor>) -> Result<Vec<Tensor>, Fault> {
    let count = elements(shape)?;
    Ok(vec![match value.as_ref().map(Tensor::data) {
        None => Tensor::float(shape, vec![0.0; count]),
        Some(Data::Float(value)) if value.len() == 1 => Tensor::float(shape, vec![value[0]; count]),
        Some(Data::Int(value)) if value.len() == 1 => Tensor::int(shape, vec![value[0]; count]),
        Some(Data::Bool(value)) if value.len() == 1 => Tensor::bool(shape, vec![value[0]; count]),
        Some(_) => return Err(Fault::invalid("`value` must be one number")),
    }])
}

fn fill(call: &mut Call) -> Result<Vec<Tensor>, Fault> {
    let shape = call
        .ints("shape")?
        .iter()
        .map(|&size| usize::try_from(size).map_err(|_| Fault::invalid("a negative length")))
        .collect::<Result<Vec<_>, _>>()?;
    let value = call.optional("value")?;
    filled(&shape, value)
}

fn fill_like(call: &mut Call) -> Result<Vec<Tensor>, Fault> {
    let shape = call.take("ref_tensor")?.shape().to_vec();
    let value = call.optional("value")?;
    filled(&shape, value)
}

fn range(call: &mut Call) -> Result<Vec<Tensor>, Fault> {
    let (start, end, step) = (call.take("start")?, call.take("end")?, call.take("step")?);
    let too_long = || Fault::invalid("a range of too many or infinitely many elements");
    match (start.ints(), end.ints(), step.ints()) {
        (Some(&[start]), Some(&[end]), Some(&[step])) => {
            let (start, end, step) = (i64::from(start), i64::from(end), i64::from(step));
            if step == 0 {
                return Err(too_long());
            }
            let distance = if step > 0 { end - start } else { start - end };
            let count = distance.max(0).unsigned_abs().div_ceil(step.unsigned_abs()) as usize;
            let values = (0..count as i64).map(|i| (start + i * step) as i32).collect();
            Ok(vec![Tensor::int(&[count], values)])
        }
        _ => {
            let one = |tensor: &Tensor| match tensor.to_floats().as_deref() {
                Some(&[value]) => Ok(f64::from(value)),
                _ => Err(Fault::invalid("`start`, `end` and `step` must be single numbers")),
            };
            let (start, end, step) = (one(&start)?, one(&end)?, one(&step)?);
            let count = ((end - start) / step).ceil().max(0.0);
            if !count.is_finite() || count > MAX_ELEMENTS as f64 {
                return Err(too_long());
            }
            let count = count as usize;
            super::float(&[count], (0..count).map(|i| (start + i as f64 * step) as f32).collect())
        }
    }
}

fn one_hot(call: &mut Call) -> Result<Vec<Tensor>, Fault> {
    let indices = indices(call)?;
    let size = call.int_or("one_hot_vector_size", 0)?;
    let size = usize::try_from(size).map_err(|_| Fault::invalid("a negative length"))?;
    let along = axis(call.int_or("axis", -1)?, indices.rank() + 1)?;
    let (on, off) = (call.optional("on_value")?, call.optional("off_value")?);
    let mut shape = indices.shape().to_vec();
    shape.insert(along, size);
    elements(&shape)?;
    let inner: usize = shape[along + 1..].iter().product();
    let picks = indices.ints().unwrap_or_default();
    let hits = (0..shape.iter().product::<usize>()).map(|flat| {
        let (outer, rest) = (flat / (size * inner), flat % (size * inner));
        picks[outer * inner + rest % inner] as i64 == (rest / inner) as i64
    });
    match (on.as_ref().map(Tensor::data), off.as_ref().map(Tensor::data)) {
        (Some(Data::Float(on)), Some(Data::Float(off))) if on.len() == 1 && off.len() == 1 => {
            super::float(&shape, hits.map(|hit| if hit { on[0] } else { off[0] }).collect())
        }
        (on, off) => {
            let one = |data: Option<&Data>, default| match data {
                None => Ok(default),
                Some(Data::Int(value)) if value.len() == 1 => Ok(value[0]),
                Some(_) => {
                    Err(Fault::invalid("`on_value` and `off_value` must be single numbers of one type"))
                }
            };
            let (on, off) = (one(on, 1)?, one(off, 0)?);
            Ok(vec![Tensor::int(&shape, hits.map(|hit| if hit { on } else { off }).collect())])
        }
    }
}
