//! `CoreML.Specification`: the model file and its description of features.

use std::collections::BTreeMap;

use super::Program;

/// The whole `model.mlmodel` file.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Model {
    /// Which Core ML versions can read it; 9 is iOS 18 / macOS 15.
    #[prost(int32, tag = "1")]
    pub specification_version: i32,
    /// What callers see.
    #[prost(message, optional, tag = "2")]
    pub description: Option<ModelDescription>,
    /// The program (one case of the schema's `oneof Type`, the only one read here).
    #[prost(message, optional, tag = "502")]
    pub ml_program: Option<Program>,
}

/// What callers see of a model: features per model (one function) or per function (several).
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
    /// One entry per function of a multifunction model; then the three fields above are empty.
    #[prost(message, repeated, tag = "20")]
    pub functions: Vec<FunctionDescription>,
    /// The function that runs when none is named; only with `functions`.
    #[prost(string, tag = "21")]
    pub default_function_name: String,
    /// Words about the model.
    #[prost(message, optional, tag = "100")]
    pub metadata: Option<Metadata>,
}

/// Features of one function.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FunctionDescription {
    /// Its name in [`Program::functions`].
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
    /// Its name in the function.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Words about it.
    #[prost(string, tag = "2")]
    pub short_description: String,
    /// What it holds.
    #[prost(message, optional, tag = "3")]
    pub r#type: Option<FeatureType>,
}

/// What a feature holds.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FeatureType {
    /// The kinds that are read here; others leave this empty.
    #[prost(oneof = "FeatureKind", tags = "5, 8")]
    pub kind: Option<FeatureKind>,
    /// Whether callers may leave it out.
    #[prost(bool, tag = "1000")]
    pub is_optional: bool,
}

/// The kinds of feature that mlprogram functions of tensors have.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum FeatureKind {
    /// A tensor.
    #[prost(message, tag = "5")]
    MultiArray(ArrayFeatureType),
    /// A state.
    #[prost(message, tag = "8")]
    State(StateFeatureType),
}

/// What a state holds.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StateFeatureType {
    /// A tensor (the schema's only kind).
    #[prost(message, optional, tag = "1")]
    pub array_type: Option<ArrayFeatureType>,
}

/// Shape and element type of a tensor feature.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ArrayFeatureType {
    /// Its (default) shape.
    #[prost(int64, repeated, tag = "1")]
    pub shape: Vec<i64>,
    /// `ArrayDataType`: see [`crate::DType::array_code`].
    #[prost(int32, tag = "2")]
    pub data_type: i32,
    /// The shapes it may take, if more than one (kept to be reported; nothing here runs flexible shapes).
    #[prost(message, optional, tag = "21")]
    pub enumerated_shapes: Option<EnumeratedShapes>,
    /// The ranges of its dimensions, if flexible.
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

/// Words about a model.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Metadata {
    /// What it is.
    #[prost(string, tag = "1")]
    pub short_description: String,
    /// Its version, in its author's words.
    #[prost(string, tag = "2")]
    pub version_string: String,
    /// Who made it.
    #[prost(string, tag = "3")]
    pub author: String,
    /// Its licence.
    #[prost(string, tag = "4")]
    pub license: String,
    /// Anything else, by key.
    #[prost(btree_map = "string, string", tag = "100")]
    pub user_defined: BTreeMap<String, String>,
}
