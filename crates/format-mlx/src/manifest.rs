//! The MLX part of manifest.json: settings, and a record per tensor.

use q35_output_dir::TensorRecord;
use serde_json::{Map, Value, json};

use crate::step::{Action, Step};
use crate::{Form, Recipe};

/// Settings of the conversion, followed by those of the recipe.
pub(crate) fn settings(recipe: &dyn Recipe, form: Form) -> Map<String, Value> {
    let spec = recipe.default_spec();
    let mut settings = object(json!({
        "bits": spec.bits(),
        "group_size": spec.group_size(),
        "mode": "affine",
        "recipe": recipe.name(),
        "form": form.name(),
    }));
    settings.extend(recipe.settings());
    settings
}

/// The record of one tensor.
pub(crate) fn record(step: &Step<'_>, recipe: &dyn Recipe) -> TensorRecord {
    let dtype = step.tensor.dtype.torch_name();
    let mut details = object(json!({"as": step.output, "dtype": dtype, "shape": step.tensor.shape()}));
    if let Action::Quantize(spec) = step.action {
        details.insert("bits".to_owned(), spec.bits().into());
        details.insert("group_size".to_owned(), spec.group_size().into());
    }
    if recipe.float_values(step.tensor.spec).is_some() {
        details.insert("learned".to_owned(), true.into());
    }
    TensorRecord {
        name: step.tensor.source_name.to_owned(),
        decision: step.action.label().to_owned(),
        details,
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
