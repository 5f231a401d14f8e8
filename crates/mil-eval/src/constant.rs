//! Decoding of a program's constants. Large matrices stay packed.

use std::collections::HashMap;
use std::sync::Arc;

use q35_format_mil::proto::Elements;
use q35_format_mil::{Bytes, Content, DType, Data, Package, TensorType, Value as Literal};

use crate::tensor::{Tensor, elements};
use crate::weight::{Codes, Source, Value, Weight};
use crate::{EvalError, Fault, Precision};

/// Matrices of at least this many elements stay packed; smaller ones are cheaper dense.
const PACKED_ELEMENTS: usize = 4096;

/// Decoded constants by their record in the weight file, so that functions share them.
pub(crate) type Records = HashMap<(String, u64, TensorType), Value>;

/// A constant before use: a literal, or the weight that a `constexpr_*` operation defines.
#[derive(Clone)]
pub(crate) enum Constant {
    Literal(Literal),
    Weight(Value),
}

/// Failure to decode a constant: an unreadable package, or an unsuitable literal.
pub(crate) enum ConstantError {
    Read(Box<EvalError>),
    Fault(Fault),
}

impl From<Fault> for ConstantError {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// The packed elements of a literal.
fn codes(package: &Package, literal: &Literal) -> Result<Codes, ConstantError> {
    let bytes = match package.content(literal).map_err(|error| ConstantError::Read(Box::new(error.into())))? {
        Content::Packed(bytes) => bytes,
        Content::Elements(Elements::Floats(floats)) => {
            Bytes::from_vec(floats.values.iter().flat_map(|v| v.to_le_bytes()).collect())
        }
        Content::Elements(Elements::Ints(ints)) if literal.ty.dtype == DType::I32 => {
            Bytes::from_vec(ints.values.iter().flat_map(|v| v.to_le_bytes()).collect())
        }
        Content::Elements(_) => {
            return Err(Fault::invalid(format!("{} cannot be used as a weight", literal.ty)).into());
        }
    };
    let needed = literal.ty.packed_bytes();
    if bytes.len() != needed {
        return Err(Fault::invalid(format!("{} bytes for {}", bytes.len(), literal.ty)).into());
    }
    Ok(Codes { bytes, dtype: literal.ty.dtype, shape: literal.ty.shape.clone() })
}

/// Decodes a literal, or returns the value decoded before from the same record.
pub(crate) fn value(
    package: &Package,
    literal: &Literal,
    records: &mut Records,
) -> Result<Value, ConstantError> {
    let key = match &literal.data {
        Data::Blob(blob) => Some((blob.file.clone(), blob.offset, literal.ty.clone())),
        Data::Immediate(_) => None,
    };
    if let Some(decoded) = key.as_ref().and_then(|key| records.get(key)) {
        return Ok(decoded.clone());
    }
    let value = decode(package, literal)?;
    if let Some(key) = key {
        records.insert(key, value.clone());
    }
    Ok(value)
}

fn decode(package: &Package, literal: &Literal) -> Result<Value, ConstantError> {
    let (shape, dtype) = (&literal.ty.shape, literal.ty.dtype);
    let count = elements(shape)?;
    if let Some(text) = literal.as_str() {
        return Ok(Value::Tensor(Tensor::text(text)));
    }
    if let Some(values) = literal.as_bools() {
        return Ok(Value::Tensor(Tensor::from_parts(
            shape.clone(),
            crate::tensor::Data::Bool(Arc::new(values.to_vec())),
        )?));
    }
    let int =
        |values: Vec<i32>| Tensor::from_parts(shape.clone(), crate::tensor::Data::Int(Arc::new(values)));
    if let Some(Elements::Ints(values)) = literal.elements() {
        return Ok(Value::Tensor(int(values.values.clone())?));
    }
    match dtype {
        DType::F16 | DType::F32 => {
            let codes = codes(package, literal)?;
            if shape.len() >= 2 && count >= PACKED_ELEMENTS {
                return Ok(Value::Weight(Arc::new(Weight::plain(codes))));
            }
            Ok(Value::Tensor(Tensor::float(shape, codes.floats()?)))
        }
        DType::I8 | DType::U8 | DType::I16 | DType::U16 | DType::I32 | DType::U32 => {
            let bytes = match package
                .content(literal)
                .map_err(|error| ConstantError::Read(Box::new(error.into())))?
            {
                Content::Packed(bytes) => bytes,
                Content::Elements(_) => {
                    return Err(Fault::invalid(format!("{dtype} in the wrong field")).into());
                }
            };
            let values: Vec<i32> = match dtype {
                DType::I8 => bytes.iter().map(|&b| i32::from(b as i8)).collect(),
                DType::U8 => bytes.iter().map(|&b| i32::from(b)).collect(),
                DType::I16 => {
                    bytes.chunks_exact(2).map(|b| i16::from_le_bytes([b[0], b[1]]).into()).collect()
                }
                DType::U16 => {
                    bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]).into()).collect()
                }
                _ => bytes.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            };
            Ok(Value::Tensor(int(values)?))
        }
        _ => Err(Fault::invalid(format!("constants of type {dtype} are not supported")).into()),
    }
}

/// Shape and elements of a constant as dense f32.
fn floats(package: &Package, constant: &Constant) -> Result<(Vec<usize>, Vec<f32>), ConstantError> {
    match constant {
        Constant::Literal(literal) => {
            let codes = codes(package, literal)?;
            Ok((codes.shape.clone(), codes.floats()?))
        }
        Constant::Weight(value) => {
            let tensor = value.clone().into_dense()?;
            let values = tensor.floats().ok_or_else(|| Fault::invalid("a weight that is not float"))?;
            Ok((tensor.shape().to_vec(), values.to_vec()))
        }
    }
}

fn source(package: &Package, constant: &Constant) -> Result<Source, ConstantError> {
    match constant {
        Constant::Literal(literal) => Ok(Source::Codes(codes(package, literal)?)),
        Constant::Weight(Value::Weight(weight)) => Ok(Source::Weight(Arc::clone(weight))),
        Constant::Weight(Value::Tensor(tensor)) => {
            let values = tensor.floats().ok_or_else(|| Fault::invalid("a weight that is not float"))?;
            let bytes = Bytes::from_vec(values.iter().flat_map(|v| v.to_le_bytes()).collect());
            Ok(Source::Codes(Codes { bytes, dtype: DType::F32, shape: tensor.shape().to_vec() }))
        }
    }
}

/// The result of a `constexpr_*` operation; `None` if the operator is unknown. [`Precision::Half`] rounds the result to
/// fp16.
pub(crate) fn expression(
    package: &Package,
    operator: &str,
    arguments: &HashMap<&str, Constant>,
    round: Precision,
) -> Option<Result<Value, ConstantError>> {
    let make = match operator {
        "constexpr_blockwise_shift_scale" => shift_scale,
        "constexpr_lut_to_dense" => lut_to_dense,
        "constexpr_affine_dequantize" => affine_dequantize,
        _ => return None,
    };
    Some(make(package, arguments, round).map(|value| match value {
        // Operators need small weights (norms, convolutions) dense.
        Value::Weight(weight) if weight.shape().iter().product::<usize>() < PACKED_ELEMENTS => {
            weight.dense().map_or(Value::Weight(weight), Value::Tensor)
        }
        value => value,
    }))
}

fn required<'a>(arguments: &'a HashMap<&str, Constant>, name: &str) -> Result<&'a Constant, ConstantError> {
    arguments.get(name).ok_or_else(|| Fault::Missing(name.to_owned()).into())
}

fn shift_scale(
    package: &Package,
    arguments: &HashMap<&str, Constant>,
    round: Precision,
) -> Result<Value, ConstantError> {
    let data = source(package, required(arguments, "data")?)?;
    let (counts, scale) = floats(package, required(arguments, "scale")?)?;
    let offset = arguments.get("offset").map(|offset| floats(package, offset)).transpose()?;
    if offset.as_ref().is_some_and(|(shape, _)| *shape != counts) {
        return Err(Fault::invalid("`offset` and `scale` have different shapes").into());
    }
    let offset = offset.map(|(_, values)| values);
    Ok(Value::Weight(Arc::new(Weight::scaled(data, &counts, scale, offset, round)?)))
}

fn affine_dequantize(
    package: &Package,
    arguments: &HashMap<&str, Constant>,
    round: Precision,
) -> Result<Value, ConstantError> {
    let data = source(package, required(arguments, "quantized_data")?)?;
    let (_, scale) = floats(package, required(arguments, "scale")?)?;
    let (_, zero_point) = floats(package, required(arguments, "zero_point")?)?;
    let rank = data.shape().len();
    let along = match arguments.get("axis") {
        Some(Constant::Literal(literal)) => crate::tensor::axis(literal.as_int().unwrap_or(0), rank)?,
        _ => 0,
    };
    // A scalar applies to all entries of the axis; a list has one number per entry.
    let count = scale.len().max(zero_point.len());
    let repeated = |values: Vec<f32>| if values.len() == 1 { vec![values[0]; count] } else { values };
    let mut counts = vec![1; rank];
    if count != 1 {
        counts[along] = count;
    }
    let (scale, zero_point) = (repeated(scale), repeated(zero_point));
    Ok(Value::Weight(Arc::new(Weight::scaled(data, &counts, scale, Some(zero_point), round)?)))
}

fn lut_to_dense(
    package: &Package,
    arguments: &HashMap<&str, Constant>,
    round: Precision,
) -> Result<Value, ConstantError> {
    let Constant::Literal(indices) = required(arguments, "indices")? else {
        return Err(Fault::invalid("`indices` must be a literal").into());
    };
    let mut indices = codes(package, indices)?;
    let (lut_shape, table) = floats(package, required(arguments, "lut")?)?;
    // iOS 16: flat indices and table, with the shape as a separate parameter.
    if let Some(Constant::Literal(shape)) = arguments.get("shape") {
        let shape = shape.as_ints().unwrap_or_default();
        let shape: Vec<usize> =
            shape.iter().map(|&size| usize::try_from(size).unwrap_or(usize::MAX)).collect();
        let count = elements(&shape)?;
        let bits = table.len().checked_ilog2().unwrap_or(0) as usize;
        let dtype =
            [DType::U1, DType::U2, DType::U4, DType::U6, DType::U8].into_iter().find(|t| t.bits() == bits);
        let dtype = dtype.filter(|dtype| dtype.packed_bytes(count) == indices.bytes.len());
        indices.dtype =
            dtype.ok_or_else(|| Fault::invalid(format!("indices for a table of {}", table.len())))?;
        indices.shape = shape;
        let (counts, entries) = (vec![1; indices.shape.len()], table.len());
        return Ok(Value::Weight(Arc::new(Weight::table(indices, &counts, table, entries, round)?)));
    }
    let [counts @ .., entries, length] = &lut_shape[..] else {
        return Err(Fault::invalid(format!("a look-up table of shape {lut_shape:?}")).into());
    };
    if *length == 1 {
        return Ok(Value::Weight(Arc::new(Weight::table(indices, counts, table, *entries, round)?)));
    }
    // Vector palettization: an index selects several neighbouring elements along an axis. Each element position is
    // looked up as a plane, and the planes are interleaved.
    let along = match arguments.get("vector_axis") {
        Some(Constant::Literal(literal)) => {
            crate::tensor::axis(literal.as_int().unwrap_or(0), indices.shape.len())?
        }
        _ => return Err(Fault::Missing("vector_axis".to_owned()).into()),
    };
    let mut shape = indices.shape.clone();
    shape[along] = shape[along].saturating_mul(*length);
    let mut out = vec![0.0; elements(&shape)?];
    let inner: usize = indices.shape[along + 1..].iter().product();
    for lane in 0..*length {
        let plane = table.iter().skip(lane).step_by(*length).copied().collect();
        let plane = Weight::table(indices.clone(), counts, plane, *entries, round)?.dense()?;
        for (flat, &value) in plane.floats().unwrap_or_default().iter().enumerate() {
            out[(flat / inner * length + lane) * inner + flat % inner] = value;
        }
    }
    Ok(Value::Tensor(Tensor::float(&shape, out)))
}
