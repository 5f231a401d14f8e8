//! Constants.

use half::f16;

use crate::proto::{self, Elements};
use crate::{DType, Immediate, TensorType, Type, TypeError};

/// A constant tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    /// Element type and shape.
    pub ty: TensorType,
    /// Contents.
    pub data: Data,
}

/// The contents of a constant.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// Elements in the message.
    Immediate(Elements),
    /// A record of a weight file.
    Blob(BlobRef),
}

/// A record of a weight file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlobRef {
    /// File name as in the program: `@model_path/weights/weight.bin`.
    pub file: String,
    /// Offset of the record's 64-byte header.
    pub offset: u64,
}

/// A value in a file is malformed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ValueError {
    /// The type is malformed or unsupported.
    #[error(transparent)]
    Type(#[from] TypeError),
    /// A constant cannot be a state.
    #[error("a constant cannot be a state")]
    State,
    /// The value has no contents.
    #[error("a value of type {ty} has no content")]
    Missing {
        /// Type of the value.
        ty: TensorType,
    },
    /// The elements are in the wrong field.
    #[error("{ty} stored as {found:?}, expected {expected:?}")]
    Field {
        /// Type of the value.
        ty: TensorType,
        /// Field required by the type.
        expected: Immediate,
        /// Field found.
        found: Immediate,
    },
    /// The number of elements differs from the shape's.
    #[error("{found} immediate elements or bytes for {ty}, expected {expected}")]
    Count {
        /// Type of the value.
        ty: TensorType,
        /// Number of elements or bytes by the shape.
        expected: usize,
        /// Number of elements or bytes found.
        found: usize,
    },
    /// `docString` is set, which coremltools cannot load.
    #[error("docString is set, which coremltools cannot load")]
    DocString,
}

impl Elements {
    /// The message field of these elements.
    pub fn field(&self) -> Immediate {
        match self {
            Self::Floats(_) => Immediate::Floats,
            Self::Ints(_) => Immediate::Ints,
            Self::Bools(_) => Immediate::Bools,
            Self::Strings(_) => Immediate::Strings,
            Self::LongInts(_) => Immediate::LongInts,
            Self::Doubles(_) => Immediate::Doubles,
            Self::Bytes(_) => Immediate::Bytes,
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Floats(v) => v.values.len(),
            Self::Ints(v) => v.values.len(),
            Self::Bools(v) => v.values.len(),
            Self::Strings(v) => v.values.len(),
            Self::LongInts(v) => v.values.len(),
            Self::Doubles(v) => v.values.len(),
            Self::Bytes(v) => v.values.len(),
        }
    }

    fn empty(field: Immediate) -> Self {
        match field {
            Immediate::Floats => Self::Floats(Default::default()),
            Immediate::Ints => Self::Ints(Default::default()),
            Immediate::Bools => Self::Bools(Default::default()),
            Immediate::Strings => Self::Strings(Default::default()),
            Immediate::LongInts => Self::LongInts(Default::default()),
            Immediate::Doubles => Self::Doubles(Default::default()),
            Immediate::Bytes => Self::Bytes(Default::default()),
        }
    }
}

impl Value {
    fn immediate(dtype: DType, shape: &[usize], elements: Elements) -> Self {
        Self { ty: TensorType::new(dtype, shape), data: Data::Immediate(elements) }
    }

    /// A string.
    pub fn string(text: &str) -> Self {
        let values = vec![text.to_owned()];
        Self::immediate(DType::String, &[], Elements::Strings(proto::RepeatedStrings { values }))
    }

    /// A scalar boolean.
    pub fn bool(value: bool) -> Self {
        Self::immediate(DType::Bool, &[], Elements::Bools(proto::RepeatedBools { values: vec![value] }))
    }

    /// A list of booleans.
    pub fn bools(values: &[bool]) -> Self {
        let elements = Elements::Bools(proto::RepeatedBools { values: values.to_vec() });
        Self::immediate(DType::Bool, &[values.len()], elements)
    }

    /// A scalar int32.
    pub fn int(value: i32) -> Self {
        Self::immediate(DType::I32, &[], Elements::Ints(proto::RepeatedInts { values: vec![value] }))
    }

    /// A list of int32.
    pub fn ints(values: &[i32]) -> Self {
        let elements = Elements::Ints(proto::RepeatedInts { values: values.to_vec() });
        Self::immediate(DType::I32, &[values.len()], elements)
    }

    /// A scalar fp32.
    pub fn f32(value: f32) -> Self {
        Self::immediate(DType::F32, &[], Elements::Floats(proto::RepeatedFloats { values: vec![value] }))
    }

    /// A scalar fp16, rounded to nearest.
    pub fn f16(value: f32) -> Self {
        let values = f16::from_f32(value).to_le_bytes().to_vec();
        Self::immediate(DType::F16, &[], Elements::Bytes(proto::RepeatedBytes { values }))
    }

    /// A scalar of a float type; `None` for other types.
    pub fn float(dtype: DType, value: f32) -> Option<Self> {
        match dtype {
            DType::F16 => Some(Self::f16(value)),
            DType::F32 => Some(Self::f32(value)),
            _ => None,
        }
    }

    /// A reference to a record of `@model_path/weights/weight.bin`.
    pub fn blob(ty: TensorType, offset: u64) -> Self {
        Self { ty, data: Data::Blob(BlobRef { file: WEIGHT_FILE.to_owned(), offset }) }
    }

    /// The elements, if they are in the message.
    pub fn elements(&self) -> Option<&Elements> {
        match &self.data {
            Data::Immediate(elements) => Some(elements),
            Data::Blob(_) => None,
        }
    }

    /// The elements as integers, if they are immediate integers of any width.
    pub fn as_ints(&self) -> Option<Vec<i64>> {
        Some(match (self.ty.dtype, self.elements()?) {
            (_, Elements::Ints(v)) => v.values.iter().map(|&x| x.into()).collect(),
            (_, Elements::LongInts(v)) => v.values.clone(),
            (DType::I8, Elements::Bytes(v)) => v.values.iter().map(|&x| (x as i8).into()).collect(),
            (DType::U8, Elements::Bytes(v)) => v.values.iter().map(|&x| x.into()).collect(),
            (DType::U32, Elements::Bytes(v)) => v
                .values
                .chunks_exact(4)
                .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]).into())
                .collect(),
            _ => return None,
        })
    }

    /// The value as a single integer.
    pub fn as_int(&self) -> Option<i64> {
        match self.as_ints()?.as_slice() {
            [one] => Some(*one),
            _ => None,
        }
    }

    /// The elements as booleans, if they are immediate booleans.
    pub fn as_bools(&self) -> Option<&[bool]> {
        match self.elements()? {
            Elements::Bools(v) => Some(&v.values),
            _ => None,
        }
    }

    /// The value as a single boolean.
    pub fn as_bool(&self) -> Option<bool> {
        match self.as_bools()? {
            [one] => Some(*one),
            _ => None,
        }
    }

    /// The value as a single string.
    pub fn as_str(&self) -> Option<&str> {
        match self.elements()? {
            Elements::Strings(v) if v.values.len() == 1 => Some(&v.values[0]),
            _ => None,
        }
    }

    /// The elements as floats, if they are immediate fp16, fp32 or fp64.
    pub fn as_floats(&self) -> Option<Vec<f64>> {
        Some(match (self.ty.dtype, self.elements()?) {
            (_, Elements::Floats(v)) => v.values.iter().map(|&x| x.into()).collect(),
            (_, Elements::Doubles(v)) => v.values.clone(),
            (DType::F16, Elements::Bytes(v)) => {
                v.values.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f64()).collect()
            }
            _ => return None,
        })
    }

    /// The value as a single float.
    pub fn as_float(&self) -> Option<f64> {
        match self.as_floats()?.as_slice() {
            [one] => Some(*one),
            _ => None,
        }
    }
}

/// Name of the only weight file in packages that this crate writes.
pub const WEIGHT_FILE: &str = "@model_path/weights/weight.bin";

impl TryFrom<&proto::Value> for Value {
    type Error = ValueError;

    fn try_from(message: &proto::Value) -> Result<Self, ValueError> {
        if !message.doc_string.is_empty() {
            return Err(ValueError::DocString);
        }
        let ty = match Type::try_from(message.r#type.as_ref().ok_or(TypeError::Missing)?)? {
            Type::Tensor(tensor) => tensor,
            Type::State(_) => return Err(ValueError::State),
        };
        let immediate = match &message.kind {
            Some(proto::ValueKind::BlobFile(blob)) => {
                let blob = BlobRef { file: blob.file_name.clone(), offset: blob.offset };
                return Ok(Self { ty, data: Data::Blob(blob) });
            }
            Some(proto::ValueKind::Immediate(immediate)) => immediate,
            None => return Err(ValueError::Missing { ty }),
        };
        let field = ty.dtype.immediate();
        let elements = match immediate.tensor.as_ref().and_then(|tensor| tensor.elements.as_ref()) {
            Some(elements) => elements.clone(),
            None if ty.count() == 0 => Elements::empty(field),
            None => return Err(ValueError::Missing { ty }),
        };
        if elements.field() != field {
            let found = elements.field();
            return Err(ValueError::Field { ty, expected: field, found });
        }
        let expected = if field == Immediate::Bytes { ty.packed_bytes() } else { ty.count() };
        if elements.len() != expected {
            let found = elements.len();
            return Err(ValueError::Count { ty, expected, found });
        }
        Ok(Self { ty, data: Data::Immediate(elements) })
    }
}

impl From<&Value> for proto::Value {
    fn from(value: &Value) -> Self {
        let kind = match &value.data {
            Data::Immediate(elements) => proto::ValueKind::Immediate(proto::ImmediateValue {
                tensor: Some(proto::TensorValue { elements: Some(elements.clone()) }),
            }),
            Data::Blob(blob) => proto::ValueKind::BlobFile(proto::BlobFileValue {
                file_name: blob.file.clone(),
                offset: blob.offset,
            }),
        };
        Self { doc_string: String::new(), r#type: Some((&value.ty).into()), kind: Some(kind) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_round_trip_through_messages() {
        for value in [
            Value::string("fp16"),
            Value::bool(true),
            Value::bools(&[true, false]),
            Value::ints(&[1, -2]),
            Value::int(7),
            Value::f16(1.5),
            Value::f32(1e-6),
            Value::blob(TensorType::new(DType::I8, &[2, 3]), 128),
            Value::ints(&[]),
        ] {
            assert_eq!(Value::try_from(&proto::Value::from(&value)), Ok(value));
        }
    }

    #[test]
    fn content_is_read_by_kind() {
        assert_eq!(Value::ints(&[3, -1]).as_ints(), Some(vec![3, -1]));
        assert_eq!(Value::int(3).as_int(), Some(3));
        assert_eq!(Value::f16(0.5).as_float(), Some(0.5));
        assert_eq!(Value::bool(true).as_bool(), Some(true));
        assert_eq!(Value::string("same").as_str(), Some("same"));
        assert_eq!(Value::string("same").as_int(), None);
        assert_eq!(Value::blob(TensorType::scalar(DType::I32), 64).as_ints(), None);
    }

    #[test]
    fn inconsistent_values_are_errors() {
        let mut value = Value::ints(&[1, 2]);
        value.ty.shape = vec![3];
        let error = Value::try_from(&proto::Value::from(&value)).unwrap_err();
        assert_eq!(error.to_string(), "2 immediate elements or bytes for int32[3], expected 3");
        value.ty = TensorType::new(DType::F32, &[2]);
        let error = Value::try_from(&proto::Value::from(&value)).unwrap_err();
        assert_eq!(error.to_string(), "fp32[2] stored as Ints, expected Floats");
        let empty = proto::Value { r#type: Some((&value.ty).into()), ..Default::default() };
        assert_eq!(
            Value::try_from(&empty).unwrap_err().to_string(),
            "a value of type fp32[2] has no content"
        );
    }
}
