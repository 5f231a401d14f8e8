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
    /// Words about it. coremltools cannot load a program that has any.
    #[prost(string, tag = "3")]
    pub doc_string: String,
    /// Only `buildInfo` is known.
    #[prost(btree_map = "string, message", tag = "4")]
    pub attributes: BTreeMap<String, Value>,
}

/// A function: typed inputs and one block per operator set.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Function {
    /// Inputs, states among them.
    #[prost(message, repeated, tag = "1")]
    pub inputs: Vec<NamedValueType>,
    /// Which operator set its block uses, `CoreML8`.
    #[prost(string, tag = "2")]
    pub opset: String,
    /// The blocks by operator set; [`Function::opset`] names the one that counts.
    #[prost(btree_map = "string, message", tag = "3")]
    pub block_specializations: BTreeMap<String, Block>,
    /// Nothing that coremltools would load.
    #[prost(btree_map = "string, message", tag = "4")]
    pub attributes: BTreeMap<String, Value>,
}

/// Operations in execution order.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Block {
    /// Values that the enclosing operation hands in; a function's block has none.
    #[prost(message, repeated, tag = "1")]
    pub inputs: Vec<NamedValueType>,
    /// Names of the values it results in, in order.
    #[prost(string, repeated, tag = "2")]
    pub outputs: Vec<String>,
    /// The operations.
    #[prost(message, repeated, tag = "3")]
    pub operations: Vec<Operation>,
    /// Nothing that coremltools would load.
    #[prost(btree_map = "string, message", tag = "4")]
    pub attributes: BTreeMap<String, Value>,
}

/// One operation.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Operation {
    /// Which operator, `linear`.
    #[prost(string, tag = "1")]
    pub r#type: String,
    /// Arguments by parameter name.
    #[prost(btree_map = "string, message", tag = "2")]
    pub inputs: BTreeMap<String, Argument>,
    /// Names and types of its results.
    #[prost(message, repeated, tag = "3")]
    pub outputs: Vec<NamedValueType>,
    /// Nested blocks of control flow.
    #[prost(message, repeated, tag = "4")]
    pub blocks: Vec<Block>,
    /// `name` always; `val` of a `const`; the parameters of an iOS 16 `constexpr_*`.
    #[prost(btree_map = "string, message", tag = "5")]
    pub attributes: BTreeMap<String, Value>,
}

/// What is bound to one parameter: one binding, or several for variadic ones.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Argument {
    /// The bindings.
    #[prost(message, repeated, tag = "1")]
    pub arguments: Vec<Binding>,
}

/// A value by name or in place.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Binding {
    /// Which.
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
    /// Nothing that coremltools would load.
    #[prost(btree_map = "string, message", tag = "4")]
    pub attributes: BTreeMap<String, Value>,
}

/// One dimension.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Dimension {
    /// Known or not.
    #[prost(oneof = "DimensionKind", tags = "1, 2")]
    pub kind: Option<DimensionKind>,
}

/// Known or unknown size.
#[derive(Clone, Copy, PartialEq, prost::Oneof)]
pub enum DimensionKind {
    /// A fixed size.
    #[prost(message, tag = "1")]
    Constant(ConstantDimension),
    /// A size that is known only at run time.
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
    /// Whether it stands for any number of dimensions.
    #[prost(bool, tag = "1")]
    pub variadic: bool,
}

/// The type of a state.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StateType {
    /// What it holds.
    #[prost(message, optional, tag = "1")]
    pub wrapped_type: Option<ValueType>,
}

/// The type of a list.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ListType {
    /// Of its elements.
    #[prost(message, optional, tag = "1")]
    pub r#type: Option<ValueType>,
    /// How many.
    #[prost(message, optional, tag = "2")]
    pub length: Option<Dimension>,
}

/// The type of a tuple.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TupleType {
    /// Of its elements.
    #[prost(message, repeated, tag = "1")]
    pub types: Vec<ValueType>,
}

/// The type of a dictionary.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DictionaryType {
    /// Of its keys.
    #[prost(message, optional, tag = "1")]
    pub key_type: Option<ValueType>,
    /// Of its values.
    #[prost(message, optional, tag = "2")]
    pub value_type: Option<ValueType>,
}

/// A constant.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Value {
    /// Words about it. coremltools cannot load a value that has any.
    #[prost(string, tag = "1")]
    pub doc_string: String,
    /// Its type.
    #[prost(message, optional, tag = "2")]
    pub r#type: Option<ValueType>,
    /// Its content.
    #[prost(oneof = "ValueKind", tags = "3, 5")]
    pub kind: Option<ValueKind>,
}

/// Where a constant's content is.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum ValueKind {
    /// In the message.
    #[prost(message, tag = "3")]
    Immediate(ImmediateValue),
    /// In the weight file.
    #[prost(message, tag = "5")]
    BlobFile(BlobFileValue),
}

/// Content in the message. Tuples, lists and dictionaries, which no tensor program needs, are skipped.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ImmediateValue {
    /// A tensor's elements.
    #[prost(message, optional, tag = "1")]
    pub tensor: Option<TensorValue>,
}

/// Content in a file.
#[derive(Clone, PartialEq, prost::Message)]
pub struct BlobFileValue {
    /// `@model_path/weights/weight.bin`.
    #[prost(string, tag = "1")]
    pub file_name: String,
    /// Of the record's header.
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

/// Elements by kind; [`crate::DType::immediate`] says which type uses which.
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
    /// Everything else, little-endian and bit-packed.
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
    /// Truth values.
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
