//! Combination of functions to a model message.

use std::collections::BTreeMap;

use crate::proto::{self, FeatureKind};
use crate::{TensorType, Type};

/// Specification version of built models: iOS 18 / macOS 15, the first with states and several functions.
pub const SPECIFICATION_VERSION: i32 = 9;

/// An input, state or output of a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feature {
    /// Name.
    pub name: String,
    /// Type.
    pub ty: Type,
}

/// A function with its signature.
#[derive(Clone, Debug, PartialEq)]
pub struct FinishedFunction {
    /// Name.
    pub name: String,
    /// Inputs and states, in order.
    pub inputs: Vec<Feature>,
    /// Outputs, in order.
    pub outputs: Vec<Feature>,
    /// The function message.
    pub function: proto::Function,
}

impl FinishedFunction {
    fn described(&self, states: bool) -> Vec<proto::FeatureDescription> {
        let wanted = |feature: &&Feature| matches!(feature.ty, Type::State(_)) == states;
        self.inputs.iter().filter(wanted).map(describe).collect()
    }
}

fn describe(feature: &Feature) -> proto::FeatureDescription {
    let array = |tensor: &TensorType| proto::ArrayFeatureType {
        shape: tensor.shape.iter().map(|&size| size as i64).collect(),
        data_type: tensor.dtype.array_code().unwrap_or(0),
        ..Default::default()
    };
    let kind = match &feature.ty {
        Type::Tensor(tensor) => FeatureKind::MultiArray(array(tensor)),
        Type::State(tensor) => {
            FeatureKind::State(proto::StateFeatureType { array_type: Some(array(tensor)) })
        }
    };
    proto::FeatureDescription {
        name: feature.name.clone(),
        short_description: String::new(),
        r#type: Some(proto::FeatureType { kind: Some(kind), is_optional: false }),
    }
}

/// Builds a model from functions. The features of a single function `main` are described for the model; otherwise
/// features are described per function, and the first function is the default.
pub fn model(functions: Vec<FinishedFunction>, metadata: proto::Metadata) -> proto::Model {
    let single = functions.len() == 1 && functions[0].name == "main";
    let mut description = proto::ModelDescription { metadata: Some(metadata), ..Default::default() };
    if single {
        description.input = functions[0].described(false);
        description.state = functions[0].described(true);
        description.output = functions[0].outputs.iter().map(describe).collect();
    } else {
        description.default_function_name =
            functions.first().map(|function| function.name.clone()).unwrap_or_default();
        description.functions = functions
            .iter()
            .map(|function| proto::FunctionDescription {
                name: function.name.clone(),
                input: function.described(false),
                output: function.outputs.iter().map(describe).collect(),
                state: function.described(true),
            })
            .collect();
    }
    let program = proto::Program {
        version: 1,
        functions: functions.into_iter().map(|f| (f.name, f.function)).collect(),
        doc_string: String::new(),
        attributes: BTreeMap::new(),
    };
    proto::Model {
        specification_version: SPECIFICATION_VERSION,
        description: Some(description),
        ml_program: Some(program),
    }
}
