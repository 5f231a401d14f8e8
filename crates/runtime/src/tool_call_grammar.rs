//! A grammar of tool calls in Qwen's XML form, for replies that must be calls.

use serde_json::{Value, json};

use crate::tools::Tool;

/// A Lark grammar whose language is one call of one of `tools`, or one or more if `parallel`.
///
/// Parameters come in the order of the schema; those that are not required may be absent. A parameter of type string is
/// free text up to its closing tag; any other is JSON under its schema.
pub(crate) fn tool_call_grammar(tools: &[Tool], parallel: bool) -> String {
    let mut rules = String::new();
    let mut calls = Vec::new();
    for (index, tool) in tools.iter().enumerate() {
        let list = |name: &str| tool.parameters.get(name);
        let properties = list("properties").and_then(Value::as_object).into_iter().flatten();
        let required = list("required").and_then(Value::as_array).into_iter().flatten();
        let required: Vec<&str> = required.filter_map(Value::as_str).collect();
        let mut body = String::new();
        for (at, (name, schema)) in properties.enumerate() {
            let open = literal(&format!("<parameter={name}>\n"));
            let close = literal("\n</parameter>\n");
            match is_text(schema) {
                true => {
                    rules += &format!("parameter_{index}_{at}: {open} text_{index}_{at}\n");
                    rules += &format!("text_{index}_{at}[suffix={close}]: /(?s:.*)/\n");
                }
                false => {
                    let schema = resolved(schema, &tool.parameters);
                    rules += &format!("parameter_{index}_{at}: {open} value_{index}_{at} {close}\n");
                    rules += &format!("value_{index}_{at}: %json {schema}\n");
                }
            }
            let optional = if required.contains(&name.as_str()) { "" } else { "?" };
            body += &format!(" parameter_{index}_{at}{optional}");
        }
        let open = literal(&format!("<tool_call>\n<function={}>\n", tool.name));
        let close = literal("</function>\n</tool_call>");
        rules += &format!("call_{index}: {open}{body} {close}\n");
        calls.push(format!("call_{index}"));
    }
    let start = if parallel { "call (\"\\n\" call)*" } else { "call" };
    format!("start: {start}\ncall: {}\n{rules}", calls.join(" | "))
}

/// A Lark string literal.
fn literal(text: &str) -> String {
    json!(text).to_string()
}

/// True if a parameter's value is written as plain text.
fn is_text(schema: &Value) -> bool {
    schema.get("type").and_then(Value::as_str) == Some("string") && schema.get("enum").is_none()
}

/// The schema with the definitions of the tool's parameters, to which its references point.
fn resolved(schema: &Value, parameters: &Value) -> Value {
    let mut schema = schema.clone();
    if let Value::Object(fields) = &mut schema {
        for name in ["$defs", "definitions"] {
            if let Some(definitions) = parameters.get(name) {
                fields.entry(name).or_insert_with(|| definitions.clone());
            }
        }
    }
    schema
}
