//! `CoreML.Specification`: the model file and its description of features.

use std::collections::BTreeMap;

use super::Program;

/// The whole `model.mlmodel` file.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Model {
    /// Specification version; 9 is iOS 18 / macOS 15.
    #[prost(int32, tag = "1")]
    pub specification_version: i32,
    /// Description of the features.
    #[prost(message, optional, tag = "2")]
    pub description: Option<ModelDescription>,
    /// The program (the only supported case of the schema's `oneof Type`).
    #[prost(message, optional, tag = "502")]
    pub ml_program: Option<Program>,
}

/// Description of a model's features: for the model (one function) or per function (several).
#[derive(Clone, PartialEq, prost::Message)]
pub struct ModelDescription {
    /// Inputs of the only function, `main`.
    #[prost(message, repeated, tag = "1")]
    pub input: Vec<FeatureDescription>,
    /// Outputs of the only function.
    #[prost(message, repeated, tag = "10")]
    pub output: Vec<FeatureDescription>,
    /// States of the only function.
    #[prost(message, repeated, tag = "13")]
    pub state: Vec<FeatureDescription>,
    /// One entry per function of a multifunction model, for which the three fields above are empty.
    #[prost(message, repeated, tag = "20")]
    pub functions: Vec<FunctionDescription>,
    /// Name of the default function; only with `functions`.
    #[prost(string, tag = "21")]
    pub default_function_name: String,
    /// Metadata.
    #[prost(message, optional, tag = "100")]
    pub metadata: Option<Metadata>,
}

/// Features of one function.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FunctionDescription {
    /// Name in [`Program::functions`].
    #[prost(string, tag = "1")]
    pub name: String,
    /// Inputs.
    #[prost(message, repeated, tag = "2")]
    pub input: Vec<FeatureDescription>,
    /// Outputs.
    #[prost(message, repeated, tag = "3")]
    pub output: Vec<FeatureDescription>,
    /// States.
    #[prost(message, repeated, tag = "6")]
    pub state: Vec<FeatureDescription>,
}

/// One input, output or state.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FeatureDescription {
    /// Name in the function.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Description for display.
    #[prost(string, tag = "2")]
    pub short_description: String,
    /// Type of the feature.
    #[prost(message, optional, tag = "3")]
    pub r#type: Option<FeatureType>,
}

/// Type of a feature.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FeatureType {
    /// The kind; `None` for unsupported kinds.
    #[prost(oneof = "FeatureKind", tags = "5, 8")]
    pub kind: Option<FeatureKind>,
    /// True if callers may omit the feature.
    #[prost(bool, tag = "1000")]
    pub is_optional: bool,
}

/// Kinds of features of mlprogram functions.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum FeatureKind {
    /// A tensor.
    #[prost(message, tag = "5")]
    MultiArray(ArrayFeatureType),
    /// A state.
    #[prost(message, tag = "8")]
    State(StateFeatureType),
}

/// Type of a state.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StateFeatureType {
    /// The tensor in the state (the schema's only kind).
    #[prost(message, optional, tag = "1")]
    pub array_type: Option<ArrayFeatureType>,
}

/// Shape and element type of a tensor feature.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ArrayFeatureType {
    /// The (default) shape.
    #[prost(int64, repeated, tag = "1")]
    pub shape: Vec<i64>,
    /// `ArrayDataType`: see [`crate::DType::array_code`].
    #[prost(int32, tag = "2")]
    pub data_type: i32,
    /// Allowed shapes of a flexible feature (read for reports; flexible shapes are not supported).
    #[prost(message, optional, tag = "21")]
    pub enumerated_shapes: Option<EnumeratedShapes>,
    /// Allowed ranges of the dimensions of a flexible feature.
    #[prost(message, optional, tag = "31")]
    pub shape_range: Option<ShapeRange>,
}

/// A list of allowed shapes.
#[derive(Clone, PartialEq, prost::Message)]
pub struct EnumeratedShapes {
    /// The shapes.
    #[prost(message, repeated, tag = "1")]
    pub shapes: Vec<ArrayShape>,
}

/// One allowed shape.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ArrayShape {
    /// Its dimensions.
    #[prost(int64, repeated, tag = "1")]
    pub shape: Vec<i64>,
}

/// Ranges of a flexible shape.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ShapeRange {
    /// One per dimension.
    #[prost(message, repeated, tag = "1")]
    pub size_ranges: Vec<SizeRange>,
}

/// Range of one dimension.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct SizeRange {
    /// Smallest size.
    #[prost(uint64, tag = "1")]
    pub lower_bound: u64,
    /// Largest size; negative is unbounded.
    #[prost(int64, tag = "2")]
    pub upper_bound: i64,
}

/// Metadata of a model.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Metadata {
    /// Short description.
    #[prost(string, tag = "1")]
    pub short_description: String,
    /// Version string.
    #[prost(string, tag = "2")]
    pub version_string: String,
    /// Author.
    #[prost(string, tag = "3")]
    pub author: String,
    /// Licence.
    #[prost(string, tag = "4")]
    pub license: String,
    /// Other entries, by key.
    #[prost(btree_map = "string, string", tag = "100")]
    pub user_defined: BTreeMap<String, String>,
}
