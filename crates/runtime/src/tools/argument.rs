//! Conversion of a call's argument to the type that the tool's schema declares.

use serde_json::Value;

use super::python_literal;
use crate::json_schema::{Mismatch, conform, mentioned_types, type_of};

/// Converts the text of an argument. A text that is a literal (JSON or Python) of a type that the schema mentions is
/// that literal; otherwise it is a string. `root` is the document of the schema's references.
///
/// # Errors
/// No reading of the text is valid under the schema.
pub(super) fn from_text(root: &Value, schema: &Value, text: &str) -> Result<Value, Mismatch> {
    let types = mentioned_types(root, schema);
    let json = serde_json::from_str(text.trim()).ok();
    let literals: Vec<Value> = json.into_iter().chain(python_literal::parse(text)).collect();
    let mut mismatch = None;
    let typed = literals.iter().filter(|literal| !literal.is_string() && types.contains(&type_of(literal)));
    for literal in typed {
        match conform(root, schema, literal) {
            Ok(value) => return Ok(value),
            Err(error) => mismatch = mismatch.or(Some(error)),
        }
    }
    // A text without quotes is the string itself; with quotes it may be a string literal.
    let as_is = Value::from(text);
    match conform(root, schema, &as_is) {
        Ok(value) => return Ok(value),
        Err(error) => mismatch = mismatch.or(Some(error)),
    }
    let rest = literals.iter().find_map(|literal| conform(root, schema, literal).ok());
    rest.ok_or_else(|| mismatch.unwrap_or(Mismatch { at: String::new(), expected: "a value".into() }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn typed(schema: Value, text: &str) -> Option<Value> {
        from_text(&schema, &schema, text).ok()
    }

    /// Schema, text, and the value; null stands for an error.
    #[test]
    fn texts_become_the_declared_types() {
        let string_or_null = json!({"anyOf": [{"type": "string"}, {"type": "null"}]});
        let cases = [
            (json!({"type": "string"}), "3", json!("3")),
            (json!({"type": "string"}), "true", json!("true")),
            (json!({"type": "string"}), "\"a\"", json!("\"a\"")),
            (json!({"type": "integer"}), "3.0", json!(3)),
            (json!({"type": "integer"}), "3.5", json!("ERROR")),
            (json!({"type": "number"}), "3", json!(3)),
            (json!({"type": "boolean"}), "True", json!(true)),
            (json!({"type": "boolean"}), "yes", json!("ERROR")),
            (json!({"type": "array"}), "['a', None]", json!(["a", null])),
            (json!({"type": "object"}), "{'a': True}", json!({"a": true})),
            (json!({"items": {"type": "integer"}}), "[1, 2.0]", json!([1, 2])),
            (json!({"properties": {"a": {"type": "integer"}}}), "{\"a\": 1}", json!({"a": 1})),
            (
                json!({"anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "string"}}]}),
                "[\"x\"]",
                json!(["x"]),
            ),
            (json!({"anyOf": [{"type": "integer"}, {"type": "boolean"}]}), "many", json!("ERROR")),
            (json!({"oneOf": [{"type": "string"}, {"type": "integer"}]}), "7", json!(7)),
            (json!({"allOf": [{"type": "integer"}, {"minimum": 3}]}), "2", json!("ERROR")),
            (json!({"$defs": {"L": {"type": "array"}}, "$ref": "#/$defs/L"}), "[1]", json!([1])),
            (json!({"enum": ["red", "green"]}), "red", json!("red")),
            (json!({"enum": ["red", "green"]}), "\"red\"", json!("red")),
            (json!({"enum": ["1", "2"]}), "1", json!("1")),
            (json!({"enum": [1, 2]}), "1", json!(1)),
            (json!({"enum": ["red"]}), "blue", json!("ERROR")),
            (json!({"const": 5}), "5", json!(5)),
            (string_or_null.clone(), "a", json!("a")),
            (json!({"type": ["integer", "string"]}), "x", json!("x")),
            (json!({"type": "integer", "nullable": true}), "4", json!(4)),
            (json!({}), "3", json!("3")),
            (json!(true), "[1]", json!("[1]")),
        ];
        for (schema, text, expected) in cases {
            let expected = Some(expected).filter(|expected| expected != "ERROR");
            assert_eq!(typed(schema.clone(), text), expected, "{schema}: {text}");
        }
        for text in ["None", "null"] {
            assert_eq!(typed(string_or_null.clone(), text), Some(Value::Null));
        }
    }
}
