//! `CoreML.Specification.MILSpec`: the program.

use std::collections::BTreeMap;

/// A program: functions by name.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Program {
    /// Must be 1.
    #[prost(int64, tag = "1")]
    pub version: i64,
    /// The functions. A model of one function calls it `main`.
    #[prost(btree_map = "string, message", tag = "2")]
    pub functions: BTreeMap<String, Function>,
    /// Documentation. coremltools cannot load programs in which it is set.
    #[prost(string, tag = "3")]
    pub doc_string: String,
    /// Attributes, e.g. `buildInfo`.
    #[prost(btree_map = "string, message", tag = "4")]
    pub attributes: BTreeMap<String, Value>,
}

/// A function: typed inputs and one block per operator set.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Function {
    /// Inputs, states among them.
    #[prost(message, repeated, tag = "1")]
    pub inputs: Vec<NamedValueType>,
    /// Operator set in use, e.g. `CoreML8`.
    #[prost(string, tag = "2")]
    pub opset: String,
    /// Blocks by operator set; [`Function::opset`] selects one.
    #[prost(btree_map = "string, message", tag = "3")]
    pub block_specializations: BTreeMap<String, Block>,
    /// Attributes; coremltools cannot load any here.
    #[prost(btree_map = "string, message", tag = "4")]
    pub attributes: BTreeMap<String, Value>,
}

/// Operations in execution order.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Block {
    /// Values passed in by the enclosing operation; a function's block has none.
    #[prost(message, repeated, tag = "1")]
    pub inputs: Vec<NamedValueType>,
    /// Names of the block's results, in order.
    #[prost(string, repeated, tag = "2")]
    pub outputs: Vec<String>,
    /// The operations.
    #[prost(message, repeated, tag = "3")]
    pub operations: Vec<Operation>,
    /// Attributes; coremltools cannot load any here.
    #[prost(btree_map = "string, message", tag = "4")]
    pub attributes: BTreeMap<String, Value>,
}

/// One operation.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Operation {
    /// Operator name, e.g. `linear`.
    #[prost(string, tag = "1")]
    pub r#type: String,
    /// Arguments by parameter name.
    #[prost(btree_map = "string, message", tag = "2")]
    pub inputs: BTreeMap<String, Argument>,
    /// Names and types of the results.
    #[prost(message, repeated, tag = "3")]
    pub outputs: Vec<NamedValueType>,
    /// Nested blocks of control flow.
    #[prost(message, repeated, tag = "4")]
    pub blocks: Vec<Block>,
    /// Attributes: `name`; `val` of a `const`; the parameters of an iOS 16 `constexpr_*`.
    #[prost(btree_map = "string, message", tag = "5")]
    pub attributes: BTreeMap<String, Value>,
}

/// The bindings of one parameter: one, or several for a variadic parameter.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Argument {
    /// The bindings.
    #[prost(message, repeated, tag = "1")]
    pub arguments: Vec<Binding>,
}

/// A value by name or in place.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Binding {
    /// The kind of binding.
    #[prost(oneof = "BindingKind", tags = "1, 2")]
    pub kind: Option<BindingKind>,
}

/// A value by name or in place.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum BindingKind {
    /// The name of an earlier result or input.
    #[prost(string, tag = "1")]
    Name(String),
    /// The value itself.
    #[prost(message, tag = "2")]
    Value(Value),
}

/// A name with its type.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NamedValueType {
    /// The name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The type.
    #[prost(message, optional, tag = "2")]
    pub r#type: Option<ValueType>,
}

/// The type of a value.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ValueType {
    /// The kind.
    #[prost(oneof = "ValueTypeKind", tags = "1, 2, 3, 4, 5")]
    pub kind: Option<ValueTypeKind>,
}

/// The kinds of type.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum ValueTypeKind {
    /// A tensor; a scalar has rank 0.
    #[prost(message, tag = "1")]
    Tensor(TensorType),
    /// A list.
    #[prost(message, tag = "2")]
    List(Box<ListType>),
    /// A tuple.
    #[prost(message, tag = "3")]
    Tuple(TupleType),
    /// A dictionary.
    #[prost(message, tag = "4")]
    Dictionary(Box<DictionaryType>),
    /// A state around a tensor.
    #[prost(message, tag = "5")]
    State(Box<StateType>),
}

/// Element type and dimensions.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TensorType {
    /// `DataType`: see [`crate::DType::code`].
    #[prost(int32, tag = "1")]
    pub data_type: i32,
    /// Number of dimensions; -1 if unknown.
    #[prost(int64, tag = "2")]
    pub rank: i64,
    /// The dimensions, outermost first.
    #[prost(message, repeated, tag = "3")]
    pub dimensions: Vec<Dimension>,
    /// Attributes; coremltools cannot load any here.
    #[prost(btree_map = "string, message", tag = "4")]
    pub attributes: BTreeMap<String, Value>,
}

/// One dimension.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Dimension {
    /// The size, if known.
    #[prost(oneof = "DimensionKind", tags = "1, 2")]
    pub kind: Option<DimensionKind>,
}

/// Known or unknown size.
#[derive(Clone, Copy, PartialEq, prost::Oneof)]
pub enum DimensionKind {
    /// A fixed size.
    #[prost(message, tag = "1")]
    Constant(ConstantDimension),
    /// A size known only at run time.
    #[prost(message, tag = "2")]
    Unknown(UnknownDimension),
}

/// A fixed size.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct ConstantDimension {
    /// The size.
    #[prost(uint64, tag = "1")]
    pub size: u64,
}

/// A size known at run time.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct UnknownDimension {
    /// True if the dimension represents any number of dimensions.
    #[prost(bool, tag = "1")]
    pub variadic: bool,
}

/// The type of a state.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StateType {
    /// Type of the contents.
    #[prost(message, optional, tag = "1")]
    pub wrapped_type: Option<ValueType>,
}

/// The type of a list.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ListType {
    /// Types of the elements.
    #[prost(message, optional, tag = "1")]
    pub r#type: Option<ValueType>,
    /// Number of elements.
    #[prost(message, optional, tag = "2")]
    pub length: Option<Dimension>,
}

/// The type of a tuple.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TupleType {
    /// Types of the elements.
    #[prost(message, repeated, tag = "1")]
    pub types: Vec<ValueType>,
}

/// The type of a dictionary.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DictionaryType {
    /// Type of the keys.
    #[prost(message, optional, tag = "1")]
    pub key_type: Option<ValueType>,
    /// Type of the values.
    #[prost(message, optional, tag = "2")]
    pub value_type: Option<ValueType>,
}

/// A constant.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Value {
    /// Documentation. coremltools cannot load values in which it is set.
    #[prost(string, tag = "1")]
    pub doc_string: String,
    /// Type of the constant.
    #[prost(message, optional, tag = "2")]
    pub r#type: Option<ValueType>,
    /// Contents.
    #[prost(oneof = "ValueKind", tags = "3, 5")]
    pub kind: Option<ValueKind>,
}

/// Contents of a constant.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum ValueKind {
    /// Immediate contents.
    #[prost(message, tag = "3")]
    Immediate(ImmediateValue),
    /// A record of a weight file.
    #[prost(message, tag = "5")]
    BlobFile(BlobFileValue),
}

/// Immediate contents. Tuples, lists and dictionaries are not supported and skipped.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ImmediateValue {
    /// A tensor's elements.
    #[prost(message, optional, tag = "1")]
    pub tensor: Option<TensorValue>,
}

/// Reference to a record of a weight file.
#[derive(Clone, PartialEq, prost::Message)]
pub struct BlobFileValue {
    /// `@model_path/weights/weight.bin`.
    #[prost(string, tag = "1")]
    pub file_name: String,
    /// Offset of the record's header.
    #[prost(uint64, tag = "2")]
    pub offset: u64,
}

/// A tensor's elements, row-major.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TensorValue {
    /// The elements; an empty tensor may have none.
    #[prost(oneof = "Elements", tags = "1, 2, 3, 4, 5, 6, 7")]
    pub elements: Option<Elements>,
}

/// Elements by kind; [`crate::DType::immediate`] maps types to kinds.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Elements {
    /// FLOAT32.
    #[prost(message, tag = "1")]
    Floats(RepeatedFloats),
    /// INT32, INT16, UINT16.
    #[prost(message, tag = "2")]
    Ints(RepeatedInts),
    /// BOOL.
    #[prost(message, tag = "3")]
    Bools(RepeatedBools),
    /// STRING.
    #[prost(message, tag = "4")]
    Strings(RepeatedStrings),
    /// INT64.
    #[prost(message, tag = "5")]
    LongInts(RepeatedLongInts),
    /// FLOAT64.
    #[prost(message, tag = "6")]
    Doubles(RepeatedDoubles),
    /// Other types, little-endian and bit-packed.
    #[prost(message, tag = "7")]
    Bytes(RepeatedBytes),
}

macro_rules! repeated {
    ($($(#[$doc:meta])* $name:ident($kind:ident, $element:ty);)*) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, prost::Message)]
        pub struct $name {
            /// The elements.
            #[prost($kind, repeated, tag = "1")]
            pub values: Vec<$element>,
        }
    )*};
}

repeated! {
    /// 32-bit floats.
    RepeatedFloats(float, f32);
    /// 32-bit integers.
    RepeatedInts(int32, i32);
    /// Booleans.
    RepeatedBools(bool, bool);
    /// Strings.
    RepeatedStrings(string, String);
    /// 64-bit integers.
    RepeatedLongInts(int64, i64);
    /// 64-bit floats.
    RepeatedDoubles(double, f64);
}

/// Bytes.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RepeatedBytes {
    /// The bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub values: Vec<u8>,
}
