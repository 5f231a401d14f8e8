//! Consistency of the model description with the functions.

use std::collections::{BTreeMap, HashMap};

use super::{Defect, Report};
use crate::proto::{FeatureDescription, FeatureKind};
use crate::{DType, Package, Type, proto};

pub(super) fn check(package: &Package, report: &mut Report) {
    let (model, program) = (package.model(), package.program());
    let Some(description) = &model.description else {
        return report.error("description", Defect::NoDescription);
    };
    let default = &description.default_function_name;
    if description.functions.is_empty() {
        let names: Vec<&str> = program.functions.keys().map(String::as_str).collect();
        if names != ["main"] {
            let (described, actual) = ("main".to_owned(), names.join(", "));
            report.error("description", Defect::Functions { described, actual });
        }
        if !default.is_empty() {
            let expected = "nothing, as there are no described functions".to_owned();
            report.error("description", Defect::DefaultFunction { found: default.clone(), expected });
        }
        if let Some(function) = program.functions.get("main") {
            let roles = [&description.input, &description.output, &description.state];
            signature("main", roles.map(Vec::as_slice), function, report);
        }
        return;
    }
    if !(description.input.is_empty() && description.output.is_empty() && description.state.is_empty()) {
        report.error("description", Defect::BothLevels);
    }
    let mut described: Vec<&str> = description.functions.iter().map(|f| f.name.as_str()).collect();
    described.sort_unstable();
    let actual: Vec<&str> = program.functions.keys().map(String::as_str).collect();
    if described != actual {
        let (described, actual) = (described.join(", "), actual.join(", "));
        report.error("description", Defect::Functions { described, actual });
    }
    if !description.functions.iter().any(|f| f.name == *default) {
        let expected = format!("one of {}", described.join(", "));
        report.error("description", Defect::DefaultFunction { found: default.clone(), expected });
    }
    if model.specification_version < 9 {
        let (feature, found) = ("a description of several functions".to_owned(), model.specification_version);
        report.error("description", Defect::TooOld { feature, needed: 9, found });
    }
    for entry in &description.functions {
        if let Some(function) = program.functions.get(&entry.name) {
            let roles = [&entry.input, &entry.output, &entry.state];
            signature(&entry.name, roles.map(Vec::as_slice), function, report);
        }
    }
}

/// Compares the described inputs, outputs and states with a function's.
fn signature(
    name: &str,
    [inputs, outputs, states]: [&[FeatureDescription]; 3],
    function: &proto::Function,
    report: &mut Report,
) {
    let Some(block) = function.block_specializations.get(&function.opset) else { return };
    let typed = |value: &proto::NamedValueType| {
        let ty = value.r#type.as_ref().and_then(|ty| Type::try_from(ty).ok());
        ty.map(|ty| (value.name.clone(), ty))
    };
    let all_inputs: BTreeMap<String, Type> = function.inputs.iter().filter_map(typed).collect();
    let is_state = |ty: &Type| matches!(ty, Type::State(_));
    let own = |state: bool| -> BTreeMap<String, Type> {
        all_inputs
            .iter()
            .filter(|(_, ty)| is_state(ty) == state)
            .map(|(n, ty)| (n.clone(), ty.clone()))
            .collect()
    };
    let mut values: HashMap<&str, &proto::NamedValueType> = HashMap::new();
    values.extend(function.inputs.iter().map(|input| (input.name.as_str(), input)));
    let results = block.operations.iter().flat_map(|operation| &operation.outputs);
    values.extend(results.map(|output| (output.name.as_str(), output)));
    let results: BTreeMap<String, Type> = block
        .outputs
        .iter()
        .filter_map(|output| values.get(output.as_str()).and_then(|value| typed(value)))
        .collect();
    let described_order: Vec<&str> = outputs.iter().map(|feature| feature.name.as_str()).collect();
    let same_names = described_order.len() == block.outputs.len()
        && described_order.iter().all(|name| block.outputs.iter().any(|output| output == name));
    if same_names && described_order != block.outputs {
        report.note(name, Defect::OutputOrder);
    }
    for (role, features, actual) in
        [("input", inputs, own(false)), ("output", outputs, results), ("state", states, own(true))]
    {
        let mut described: Vec<&str> = features.iter().map(|feature| feature.name.as_str()).collect();
        described.sort_unstable();
        if !described.iter().copied().eq(actual.keys().map(String::as_str)) {
            let described = described.join(", ");
            let actual = actual.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            report.error(name, Defect::Features { role, described, actual });
        }
        for feature in features {
            if let Some(ty) = actual.get(&feature.name) {
                let described = described_type(feature);
                // The description of an output may omit its shape.
                let shapeless =
                    role == "output" && described.as_ref().is_some_and(|(_, shape)| shape.is_empty());
                let fits = described.as_ref().is_some_and(|(described, shape)| {
                    let own = ty.inner();
                    described.inner().dtype == own.dtype
                        && is_state(described) == is_state(ty)
                        && (shapeless || shape.iter().copied().eq(own.shape.iter().map(|&size| size as i64)))
                });
                if !fits {
                    let described = described.map_or_else(
                        || "no tensor of a known type".to_owned(),
                        |(ty, shape)| format!("{}{shape:?}", ty.inner().dtype),
                    );
                    let place = format!("{name}: {role} {}", feature.name);
                    report.error(&place, Defect::Feature { described, actual: ty.to_string() });
                }
            }
        }
    }
}

/// Element type (as a type with an empty shape) and shape of a described feature.
fn described_type(feature: &FeatureDescription) -> Option<(Type, Vec<i64>)> {
    let (array, state) = match feature.r#type.as_ref()?.kind.as_ref()? {
        FeatureKind::MultiArray(array) => (array, false),
        FeatureKind::State(state) => (state.array_type.as_ref()?, true),
    };
    let dtype = DType::from_array_code(array.data_type)?;
    let tensor = crate::TensorType::scalar(dtype);
    Some((if state { Type::State(tensor) } else { Type::Tensor(tensor) }, array.shape.clone()))
}
