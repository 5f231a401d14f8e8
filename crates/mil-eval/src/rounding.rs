//! Conversion of values to the types that a program declares for them.

use std::sync::Arc;

use q35_format_mil::{DType, TensorType};

use crate::ops::only_moves;
use crate::tensor::{Data, Tensor};
use crate::{Fault, Precision};

/// A caller's tensor as the value of an input or state of type `ty`: fp16 is rounded. `None` if shape or kind differ.
pub(crate) fn to_port(tensor: Tensor, ty: &TensorType, precision: Precision) -> Option<Tensor> {
    let fits = matches!(
        (kind(ty.dtype)?, tensor.data()),
        (Kind::Float, Data::Float(_)) | (Kind::Int, Data::Int(_)) | (Kind::Bool, Data::Bool(_))
    );
    (fits && tensor.shape() == ty.shape).then(|| rounded(tensor, ty.dtype, precision))
}

/// Kind of the elements that hold values of a type during evaluation.
#[derive(PartialEq)]
enum Kind {
    Float,
    Int,
    Bool,
}

fn kind(dtype: DType) -> Option<Kind> {
    match dtype {
        DType::F16 | DType::F32 => Some(Kind::Float),
        DType::I8 | DType::U8 | DType::I16 | DType::U16 | DType::I32 | DType::U32 => Some(Kind::Int),
        DType::Bool => Some(Kind::Bool),
        _ => None,
    }
}

fn rounded(tensor: Tensor, dtype: DType, precision: Precision) -> Tensor {
    if dtype != DType::F16 || precision == Precision::Exact {
        return tensor;
    }
    let shape = tensor.shape().to_vec();
    match tensor.into_parts().1 {
        Data::Float(mut values) => {
            let floats: &mut Vec<f32> = Arc::make_mut(&mut values);
            precision.round(floats);
            Tensor::float(&shape, Arc::unwrap_or_clone(values))
        }
        data => Tensor::from_parts(shape, data).unwrap_or_else(|_| Tensor::float(&[0], Vec::new())),
    }
}

/// An operator's result as a value of the declared type `ty`: integers wrap and fp16 is rounded; only `cast` converts
/// between kinds.
///
/// # Errors
/// The shape or the kind differs from the declared one.
pub(crate) fn to_declared(
    result: Tensor,
    ty: &TensorType,
    operator: &str,
    precision: Precision,
) -> Result<Tensor, Fault> {
    let wrong = |result: &Tensor| Fault::Result { found: result.describe(), declared: ty.to_string() };
    if result.shape() != ty.shape {
        return Err(wrong(&result));
    }
    let kind = kind(ty.dtype).ok_or_else(|| wrong(&result))?;
    let same = match result.data() {
        Data::Float(_) => kind == Kind::Float,
        Data::Int(_) => kind == Kind::Int,
        Data::Bool(_) => kind == Kind::Bool,
        Data::Text(_) => return Err(wrong(&result)),
    };
    if same && operator != "cast" {
        return Ok(if only_moves(operator) { result } else { rounded(result, ty.dtype, precision) });
    }
    if operator != "cast" {
        return Err(wrong(&result));
    }
    let shape = result.shape().to_vec();
    let converted = match (kind, result.data()) {
        (Kind::Float, Data::Float(_)) => return Ok(rounded(result, ty.dtype, precision)),
        (Kind::Float, _) => Tensor::float(&shape, result.to_floats().ok_or_else(|| wrong(&result))?),
        (Kind::Bool, Data::Float(values)) => Tensor::bool(&shape, values.iter().map(|&v| v != 0.0).collect()),
        (Kind::Bool, Data::Int(values)) => Tensor::bool(&shape, values.iter().map(|&v| v != 0).collect()),
        (Kind::Bool, _) => return Ok(result),
        (Kind::Int, data) => {
            let wrap = |value: i32| match ty.dtype {
                DType::I8 => i32::from(value as i8),
                DType::U8 => i32::from(value as u8),
                DType::I16 => i32::from(value as i16),
                DType::U16 => i32::from(value as u16),
                _ => value,
            };
            let values = match data {
                Data::Float(values) => values.iter().map(|&v| wrap(v as i32)).collect(),
                Data::Int(values) => values.iter().map(|&v| wrap(v)).collect(),
                Data::Bool(values) => values.iter().map(|&v| i32::from(v)).collect(),
                Data::Text(_) => return Err(wrong(&result)),
            };
            Tensor::int(&shape, values)
        }
    };
    Ok(rounded(converted, ty.dtype, precision))
}
