//! Element types and tensor types.

use std::fmt;

use crate::proto;

/// The element type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "the variants are their own names")]
pub enum DType {
    Bool,
    String,
    F16,
    F32,
    F64,
    BF16,
    I4,
    I8,
    I16,
    I32,
    I64,
    U1,
    U2,
    U3,
    U4,
    U6,
    U8,
    U16,
    U32,
    U64,
    F8E4M3FN,
    F8E5M2,
}

/// The field of a `TensorValue` message that holds elements of a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the variants are the fields' names")]
pub enum Immediate {
    Floats,
    Ints,
    Bools,
    Strings,
    LongInts,
    Doubles,
    Bytes,
}

struct Row {
    dtype: DType,
    /// `MILSpec.DataType`.
    code: i32,
    /// Code in the header of a weight record, if records may have the type.
    blob: Option<u32>,
    bits: usize,
    immediate: Immediate,
    name: &'static str,
    /// `ArrayDataType`, if features may have the type.
    array: Option<i32>,
}

const fn row(
    dtype: DType,
    code: i32,
    blob: Option<u32>,
    bits: usize,
    immediate: Immediate,
    name: &'static str,
    array: Option<i32>,
) -> Row {
    Row { dtype, code, blob, bits, immediate, name, array }
}

/// One row per type, in the order of the enum.
const TABLE: [Row; 22] = [
    row(DType::Bool, 1, None, 8, Immediate::Bools, "bool", None),
    row(DType::String, 2, None, 0, Immediate::Strings, "string", None),
    row(DType::F16, 10, Some(1), 16, Immediate::Bytes, "fp16", Some(65552)),
    row(DType::F32, 11, Some(2), 32, Immediate::Floats, "fp32", Some(65568)),
    row(DType::F64, 12, None, 64, Immediate::Doubles, "fp64", Some(65600)),
    row(DType::BF16, 13, Some(5), 16, Immediate::Bytes, "bf16", None),
    row(DType::I4, 25, Some(8), 4, Immediate::Bytes, "int4", None),
    row(DType::I8, 21, Some(4), 8, Immediate::Bytes, "int8", Some(131_080)),
    row(DType::I16, 22, Some(6), 16, Immediate::Ints, "int16", None),
    row(DType::I32, 23, Some(14), 32, Immediate::Ints, "int32", Some(131_104)),
    row(DType::I64, 24, None, 64, Immediate::LongInts, "int64", None),
    row(DType::U1, 37, Some(9), 1, Immediate::Bytes, "uint1", None),
    row(DType::U2, 36, Some(10), 2, Immediate::Bytes, "uint2", None),
    row(DType::U3, 39, Some(12), 3, Immediate::Bytes, "uint3", None),
    row(DType::U4, 35, Some(11), 4, Immediate::Bytes, "uint4", None),
    row(DType::U6, 38, Some(13), 6, Immediate::Bytes, "uint6", None),
    row(DType::U8, 31, Some(3), 8, Immediate::Bytes, "uint8", None),
    row(DType::U16, 32, Some(7), 16, Immediate::Ints, "uint16", None),
    row(DType::U32, 33, Some(15), 32, Immediate::Bytes, "uint32", None),
    row(DType::U64, 34, None, 64, Immediate::Bytes, "uint64", None),
    row(DType::F8E4M3FN, 40, Some(16), 8, Immediate::Bytes, "fp8e4m3fn", None),
    row(DType::F8E5M2, 41, Some(17), 8, Immediate::Bytes, "fp8e5m2", None),
];

impl DType {
    fn row(self) -> &'static Row {
        &TABLE[self as usize]
    }

    fn find(hit: impl Fn(&Row) -> bool) -> Option<Self> {
        TABLE.iter().find(|row| hit(row)).map(|row| row.dtype)
    }

    /// The code in the schema's `DataType`.
    pub fn code(self) -> i32 {
        self.row().code
    }

    /// The type with the given code.
    pub fn from_code(code: i32) -> Option<Self> {
        Self::find(|row| row.code == code)
    }

    /// The code in a weight record's header; booleans, strings and 64-bit numbers have none.
    pub fn blob_code(self) -> Option<u32> {
        self.row().blob
    }

    /// The type with the given code.
    pub fn from_blob_code(code: u32) -> Option<Self> {
        Self::find(|row| row.blob == Some(code))
    }

    /// The code in `ArrayDataType`, for types that inputs, outputs and states may have.
    pub fn array_code(self) -> Option<i32> {
        self.row().array
    }

    /// The type with the given code.
    pub fn from_array_code(code: i32) -> Option<Self> {
        Self::find(|row| row.array == Some(code))
    }

    /// Number of bits of an element; 0 for strings.
    pub fn bits(self) -> usize {
        self.row().bits
    }

    /// Size in bytes of `count` packed elements.
    pub fn packed_bytes(self, count: usize) -> usize {
        (count as u128 * self.bits() as u128).div_ceil(8).try_into().unwrap_or(usize::MAX)
    }

    /// The message field for immediate elements.
    pub fn immediate(self) -> Immediate {
        self.row().immediate
    }

    /// Name in MIL's text form and in the parameter of `cast`, e.g. `fp16`.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// The type with the given name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::find(|row| row.name == name)
    }

    /// True for fp16 and fp32, the types of arithmetic.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F16 | Self::F32)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Element type and fixed shape of a tensor. A scalar has no dimensions.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TensorType {
    /// Element type.
    pub dtype: DType,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
}

impl TensorType {
    /// A tensor type.
    pub fn new(dtype: DType, shape: &[usize]) -> Self {
        Self { dtype, shape: shape.to_vec() }
    }

    /// A scalar type.
    pub fn scalar(dtype: DType) -> Self {
        Self::new(dtype, &[])
    }

    /// Number of elements; saturates instead of overflowing.
    pub fn count(&self) -> usize {
        self.shape.iter().fold(1, |product: usize, &size| product.saturating_mul(size))
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// Size in bytes of all elements, packed.
    pub fn packed_bytes(&self) -> usize {
        self.dtype.packed_bytes(self.count())
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.dtype, self.shape)
    }
}

/// The type of a value: a tensor or a state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Type {
    /// A tensor.
    Tensor(TensorType),
    /// A state that holds a tensor, accessed by `read_state` and `write_state`.
    State(TensorType),
}

impl Type {
    /// A tensor type.
    pub fn tensor(dtype: DType, shape: &[usize]) -> Self {
        Self::Tensor(TensorType::new(dtype, shape))
    }

    /// The tensor type, of the state's contents for a state.
    pub fn inner(&self) -> &TensorType {
        match self {
            Self::Tensor(tensor) | Self::State(tensor) => tensor,
        }
    }

    /// The tensor type, `None` for a state.
    pub fn as_tensor(&self) -> Option<&TensorType> {
        match self {
            Self::Tensor(tensor) => Some(tensor),
            Self::State(_) => None,
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tensor(tensor) => tensor.fmt(f),
            Self::State(tensor) => write!(f, "state<{tensor}>"),
        }
    }
}

/// A type in a file is malformed or unsupported.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TypeError {
    /// The message is empty.
    #[error("no type is given")]
    Missing,
    /// A list, tuple or dictionary.
    #[error("{kind} types are not supported, only tensors and states of tensors")]
    Kind {
        /// Kind of the type.
        kind: &'static str,
    },
    /// The element type's code is unknown.
    #[error("unknown element type {code}")]
    DType {
        /// The code.
        code: i32,
    },
    /// `rank` differs from the number of dimensions.
    #[error("rank {rank} but {dimensions} dimensions")]
    Rank {
        /// Value of `rank`.
        rank: i64,
        /// Number of dimensions.
        dimensions: usize,
    },
    /// A dimension without a fixed size.
    #[error("dimension {index} has no fixed size: flexible shapes are not supported")]
    Flexible {
        /// Index of the dimension.
        index: usize,
    },
    /// The number of elements exceeds 63 bits.
    #[error("the shape {shape:?} is too large")]
    Absurd {
        /// The shape.
        shape: Vec<u64>,
    },
}

impl TryFrom<&proto::TensorType> for TensorType {
    type Error = TypeError;

    fn try_from(message: &proto::TensorType) -> Result<Self, TypeError> {
        let dtype =
            DType::from_code(message.data_type).ok_or(TypeError::DType { code: message.data_type })?;
        if message.rank != message.dimensions.len() as i64 {
            return Err(TypeError::Rank { rank: message.rank, dimensions: message.dimensions.len() });
        }
        let mut sizes = Vec::with_capacity(message.dimensions.len());
        for (index, dimension) in message.dimensions.iter().enumerate() {
            match dimension.kind {
                Some(proto::DimensionKind::Constant(constant)) => sizes.push(constant.size),
                _ => return Err(TypeError::Flexible { index }),
            }
        }
        let count = sizes.iter().try_fold(1u64, |product, &size| product.checked_mul(size.max(1)));
        match count {
            Some(count) if count < 1 << 48 => {
                Ok(Self { dtype, shape: sizes.iter().map(|&size| size as usize).collect() })
            }
            _ => Err(TypeError::Absurd { shape: sizes }),
        }
    }
}

impl TryFrom<&proto::ValueType> for Type {
    type Error = TypeError;

    fn try_from(message: &proto::ValueType) -> Result<Self, TypeError> {
        use proto::ValueTypeKind::{Dictionary, List, State, Tensor, Tuple};
        match message.kind.as_ref().ok_or(TypeError::Missing)? {
            Tensor(tensor) => Ok(Self::Tensor(tensor.try_into()?)),
            State(state) => match state.wrapped_type.as_ref().and_then(|wrapped| wrapped.kind.as_ref()) {
                Some(Tensor(tensor)) => Ok(Self::State(tensor.try_into()?)),
                Some(_) => Err(TypeError::Kind { kind: "nested state" }),
                None => Err(TypeError::Missing),
            },
            List(_) => Err(TypeError::Kind { kind: "list" }),
            Tuple(_) => Err(TypeError::Kind { kind: "tuple" }),
            Dictionary(_) => Err(TypeError::Kind { kind: "dictionary" }),
        }
    }
}

impl From<&TensorType> for proto::ValueType {
    fn from(tensor: &TensorType) -> Self {
        let dimension = |&size: &usize| proto::Dimension {
            kind: Some(proto::DimensionKind::Constant(proto::ConstantDimension { size: size as u64 })),
        };
        let message = proto::TensorType {
            data_type: tensor.dtype.code(),
            rank: tensor.shape.len() as i64,
            dimensions: tensor.shape.iter().map(dimension).collect(),
            attributes: Default::default(),
        };
        Self { kind: Some(proto::ValueTypeKind::Tensor(message)) }
    }
}

impl From<&Type> for proto::ValueType {
    fn from(ty: &Type) -> Self {
        match ty {
            Type::Tensor(tensor) => tensor.into(),
            Type::State(tensor) => {
                let state = proto::StateType { wrapped_type: Some(tensor.into()) };
                Self { kind: Some(proto::ValueTypeKind::State(Box::new(state))) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_match_the_enum_and_codes_are_unique() {
        for (index, row) in TABLE.iter().enumerate() {
            assert_eq!(row.dtype as usize, index);
            assert_eq!(DType::from_code(row.code), Some(row.dtype));
            assert_eq!(DType::from_name(row.name), Some(row.dtype));
            if let Some(code) = row.blob {
                assert_eq!(DType::from_blob_code(code), Some(row.dtype));
            }
            if let Some(code) = row.array {
                assert_eq!(DType::from_array_code(code), Some(row.dtype));
            }
        }
        assert_eq!(DType::from_code(0), None);
    }

    #[test]
    fn types_round_trip_through_messages() {
        for ty in [
            Type::tensor(DType::F16, &[1, 2, 3]),
            Type::tensor(DType::Bool, &[]),
            Type::State(TensorType::new(DType::F16, &[4, 32])),
        ] {
            assert_eq!(Type::try_from(&proto::ValueType::from(&ty)), Ok(ty));
        }
    }

    #[test]
    fn sub_byte_elements_are_packed() {
        assert_eq!(DType::U3.packed_bytes(7), 3);
        assert_eq!(DType::I4.packed_bytes(5), 3);
        assert_eq!(DType::F16.packed_bytes(5), 10);
        assert_eq!(DType::F64.packed_bytes(usize::MAX), usize::MAX);
    }

    #[test]
    fn malformed_types_are_errors() {
        let of = |data_type, rank, dimensions: Vec<proto::DimensionKind>| {
            let dimensions =
                dimensions.into_iter().map(|kind| proto::Dimension { kind: Some(kind) }).collect();
            let message = proto::TensorType { data_type, rank, dimensions, attributes: Default::default() };
            TensorType::try_from(&message).unwrap_err().to_string()
        };
        let fixed = |size| proto::DimensionKind::Constant(proto::ConstantDimension { size });
        let unknown = proto::DimensionKind::Unknown(proto::UnknownDimension { variadic: false });
        assert_eq!(of(99, 0, vec![]), "unknown element type 99");
        assert_eq!(of(10, 2, vec![fixed(3)]), "rank 2 but 1 dimensions");
        assert!(of(10, 2, vec![fixed(3), unknown]).contains("dimension 1 has no fixed size"));
        assert!(of(10, 2, vec![fixed(1 << 40), fixed(1 << 40)]).contains("is too large"));
    }
}
