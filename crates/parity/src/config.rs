//! Comparison of two model configurations.

use q35_architecture::TextConfig;
use serde::{Deserialize, Serialize};

use crate::ParityError;

/// A field of config.json with different values.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct ConfigDifference {
    /// Name of the field.
    pub field: String,
    /// The reference's value.
    pub reference: String,
    /// The candidate's value.
    pub candidate: String,
}

/// The differing fields that change arithmetic and no shape.
///
/// # Errors
/// A size or the kind of a layer differs, so that tensors cannot be compared.
pub fn compare_configs(
    reference: &TextConfig,
    candidate: &TextConfig,
) -> Result<Vec<ConfigDifference>, ParityError> {
    // These change arithmetic and no shape; all others decide shapes.
    const ARITHMETIC: [&str; 3] = ["rms_norm_eps", "rope_theta", "partial_rotary_factor"];
    // A conversion may choose another context length.
    const IGNORED: [&str; 2] = ["max_position_embeddings", "model_type"];
    let mut differences = Vec::new();
    let [left, right] = [reference, candidate].map(TextConfig::to_json);
    let (Some(fields), Some(_)) = (left.as_object(), right.as_object()) else { return Ok(differences) };
    let nested = fields.get("rope_parameters").and_then(|v| v.as_object()).into_iter().flatten();
    for (field, _) in fields.iter().filter(|(field, _)| *field != "rope_parameters").chain(nested) {
        let find = |root: &serde_json::Value| {
            root.get(field).or_else(|| root["rope_parameters"].get(field)).cloned().unwrap_or_default()
        };
        let (reference_value, candidate_value) = (find(&left), find(&right));
        let same = match (reference_value.as_f64(), candidate_value.as_f64()) {
            (Some(a), Some(b)) => (a - b).abs() <= 1e-9 * a.abs(),
            _ => reference_value == candidate_value,
        };
        if same || IGNORED.contains(&field.as_str()) {
            continue;
        }
        let (reference, candidate) = (reference_value.to_string(), candidate_value.to_string());
        if !ARITHMETIC.contains(&field.as_str()) {
            return Err(ParityError::AnotherModel { field: field.clone(), reference, candidate });
        }
        differences.push(ConfigDifference { field: field.clone(), reference, candidate });
    }
    Ok(differences)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_differs_and_shapes_refuse() {
        let plain = q35_testkit::tiny();
        assert_eq!(compare_configs(&plain, &plain).unwrap(), []);
        let eps = TextConfig { rms_norm_eps: 1e-5, ..plain.clone() };
        let found = compare_configs(&plain, &eps).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].field.as_str(), found[0].candidate.as_str()), ("rms_norm_eps", "0.00001"));
        let theta = TextConfig { rope_theta: 1e4, ..plain.clone() };
        assert_eq!(compare_configs(&plain, &theta).unwrap()[0].field, "rope_theta");
        let context = TextConfig { max_position_embeddings: 17, ..plain.clone() };
        assert_eq!(compare_configs(&plain, &context).unwrap(), []);
        let other = TextConfig { hidden_size: 256, ..plain.clone() };
        let error = compare_configs(&plain, &other).unwrap_err();
        assert!(error.to_string().contains("hidden_size"), "{error}");
    }
}
