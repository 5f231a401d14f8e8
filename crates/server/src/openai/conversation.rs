//! Messages and tools of a request, as the runtime's types.

use q35_runtime::{Message, Tool, ToolCall};
use serde_json::{Map, Value, json};

use crate::error::ApiError;

/// The conversation of a request. Leading system and developer messages become one system message.
///
/// # Errors
/// A 400 that names the field: an unknown role, content of another kind than text, a later system message, or a tool
/// call that is not one.
pub(crate) fn messages(values: &[Value]) -> Result<Vec<Message>, ApiError> {
    if values.is_empty() {
        return Err(ApiError::field("messages", "at least one message is required"));
    }
    let mut system: Vec<String> = Vec::new();
    let mut messages = Vec::new();
    for (index, value) in values.iter().enumerate() {
        let at = format!("messages[{index}]");
        let role = value.get("role").and_then(Value::as_str);
        let text = || content(value, &at);
        match role {
            Some("system" | "developer") => {
                if !messages.is_empty() {
                    let message = "a system message must come before all others";
                    return Err(ApiError::field(format!("{at}.role"), message));
                }
                system.push(text()?.unwrap_or_default());
            }
            Some("user") => messages.push(Message::user(required(text()?, &at)?)),
            Some("tool") => messages.push(Message::tool(required(text()?, &at)?)),
            Some("assistant") => messages.push(assistant(value, text()?, &at)?),
            Some("function") => {
                return Err(ApiError::field(format!("{at}.role"), "`function` is not supported; use `tool`"));
            }
            other => {
                let found = other.map_or_else(|| "none".to_owned(), |role| format!("`{role}`"));
                let message = format!("expected system, developer, user, assistant or tool, found {found}");
                return Err(ApiError::field(format!("{at}.role"), message));
            }
        }
    }
    if messages.is_empty() {
        return Err(ApiError::field(
            "messages",
            "at least one message besides the system message is required",
        ));
    }
    if !system.is_empty() {
        messages.insert(0, Message::system(system.join("\n\n")));
    }
    Ok(messages)
}

fn required(text: Option<String>, at: &str) -> Result<String, ApiError> {
    text.ok_or_else(|| ApiError::field(format!("{at}.content"), "a text is required"))
}

/// The text of `content`: a string, or a list of text parts; `None` if it is null or absent.
fn content(message: &Value, at: &str) -> Result<Option<String>, ApiError> {
    match message.get("content") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Array(parts)) => {
            let texts = parts.iter().enumerate().map(|(index, part)| {
                let place = format!("{at}.content[{index}]");
                match part.get("type").and_then(Value::as_str) {
                    Some(kind @ ("text" | "input_text" | "output_text" | "refusal")) => {
                        let field = if kind == "refusal" { "refusal" } else { "text" };
                        let text = part.get(field).and_then(Value::as_str);
                        text.ok_or_else(|| {
                            ApiError::field(format!("{place}.{field}"), "a string is required")
                        })
                    }
                    Some(kind) => Err(ApiError::field(
                        place,
                        format!("`{kind}` is not supported: this model reads text only"),
                    )),
                    None => Err(ApiError::field(format!("{place}.type"), "a string is required")),
                }
            });
            texts.collect::<Result<Vec<&str>, _>>().map(|texts| Some(texts.concat()))
        }
        Some(_) => Err(ApiError::field(format!("{at}.content"), "expected a string or a list of text parts")),
    }
}

fn assistant(value: &Value, text: Option<String>, at: &str) -> Result<Message, ApiError> {
    if value.get("function_call").is_some_and(|call| !call.is_null()) {
        return Err(ApiError::field(format!("{at}.function_call"), "not supported; use `tool_calls`"));
    }
    let mut message = Message::assistant(text.unwrap_or_default());
    let reasoning = ["reasoning_content", "reasoning"].iter().find_map(|name| value.get(name)?.as_str());
    message = message.with_reasoning(reasoning.unwrap_or_default());
    let calls = match value.get("tool_calls") {
        None | Some(Value::Null) => &[],
        Some(Value::Array(calls)) => calls.as_slice(),
        Some(_) => return Err(ApiError::field(format!("{at}.tool_calls"), "expected a list")),
    };
    for (index, call) in calls.iter().enumerate() {
        let place = format!("{at}.tool_calls[{index}].function");
        let function =
            call.get("function").ok_or_else(|| ApiError::field(&place, "an object is required"))?;
        let name = function.get("name").and_then(Value::as_str);
        let name = name.ok_or_else(|| ApiError::field(format!("{place}.name"), "a string is required"))?;
        let arguments = arguments(function.get("arguments")).ok_or_else(|| {
            ApiError::field(format!("{place}.arguments"), "expected a JSON object as a string")
        })?;
        message.tool_calls.push(ToolCall { name: name.to_owned(), arguments });
    }
    Ok(message)
}

/// The arguments of a call in the history: a JSON object, as OpenAI sends it in a string, or as it is.
fn arguments(value: Option<&Value>) -> Option<Map<String, Value>> {
    match value {
        None | Some(Value::Null) => Some(Map::new()),
        Some(Value::Object(map)) => Some(map.clone()),
        Some(Value::String(text)) if text.trim().is_empty() => Some(Map::new()),
        Some(Value::String(text)) => serde_json::from_str(text).ok(),
        Some(_) => None,
    }
}

/// The tools of a request.
///
/// # Errors
/// A 400 that names the field: another type than `function`, a name that is none, or parameters that are no schema.
pub(crate) fn tools(values: &[Value]) -> Result<Vec<Tool>, ApiError> {
    let tool = |(index, value): (usize, &Value)| {
        let at = format!("tools[{index}]");
        match value.get("type").and_then(Value::as_str) {
            Some("function") => {}
            Some(other) => {
                return Err(ApiError::field(format!("{at}.type"), format!("`{other}` is not supported")));
            }
            None => return Err(ApiError::field(format!("{at}.type"), "a string is required")),
        }
        let at = format!("{at}.function");
        let function = value.get("function").and_then(Value::as_object);
        let function = function.ok_or_else(|| ApiError::field(&at, "an object is required"))?;
        let name = function.get("name").and_then(Value::as_str).unwrap_or_default();
        let sound = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        if name.is_empty() || name.len() > 64 || !name.chars().all(sound) {
            let message = "expected 1 to 64 letters, digits, `_`, `-` or `.`";
            return Err(ApiError::field(format!("{at}.name"), message));
        }
        let description = function.get("description").and_then(Value::as_str).unwrap_or_default();
        let parameters = match function.get("parameters") {
            None | Some(Value::Null) => json!({"type": "object", "properties": {}}),
            Some(schema @ Value::Object(_)) => schema.clone(),
            Some(_) => return Err(ApiError::field(format!("{at}.parameters"), "expected a JSON schema")),
        };
        Ok(Tool::new(name, description, parameters))
    };
    values.iter().enumerate().map(tool).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use q35_runtime::Role;

    fn refused(values: Value) -> String {
        messages(values.as_array().unwrap()).unwrap_err().param.unwrap_or_default()
    }

    #[test]
    fn openai_shaped_history_is_read() {
        let values = json!([
            {"role": "developer", "content": "Be brief."},
            {"role": "system", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "kind."}]},
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": null, "reasoning_content": "hm", "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{\"city\": \"Oslo\"}"}}]},
            {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
        ]);
        let messages = messages(values.as_array().unwrap()).unwrap();
        assert_eq!(messages[0], Message::system("Be brief.\n\nBe kind."));
        assert_eq!((messages[2].role, messages[2].content.as_str()), (Role::Assistant, ""));
        assert_eq!(messages[2].reasoning.as_deref(), Some("hm"));
        assert_eq!(messages[2].tool_calls[0].arguments["city"], "Oslo");
        assert_eq!(messages[3], Message::tool("rain"));
    }

    #[test]
    fn what_cannot_be_read_is_refused_by_name() {
        let user = json!({"role": "user", "content": "Hi"});
        let cases = [
            (json!([]), "messages"),
            (json!([{"role": "system", "content": "alone"}]), "messages"),
            (json!([{"role": "narrator", "content": "x"}]), "messages[0].role"),
            (json!([{"content": "x"}]), "messages[0].role"),
            (json!([user, {"role": "system", "content": "late"}]), "messages[1].role"),
            (json!([{"role": "user"}]), "messages[0].content"),
            (json!([{"role": "user", "content": 5}]), "messages[0].content"),
            (
                json!([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
                "messages[0].content[0]",
            ),
            (json!([{"role": "user", "content": [{"type": "text"}]}]), "messages[0].content[0].text"),
            (
                json!([user, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}]),
                "messages[1].tool_calls[0].function.arguments",
            ),
            (json!([user, {"role": "assistant", "tool_calls": [{}]}]), "messages[1].tool_calls[0].function"),
        ];
        for (values, param) in cases {
            assert_eq!(refused(values.clone()), param, "{values}");
        }
    }

    #[test]
    fn tools_are_functions_with_names_and_schemas() {
        let read = |value: Value| tools(value.as_array().unwrap());
        let tool = |function: Value| json!([{"type": "function", "function": function}]);
        assert_eq!(read(tool(json!({"name": "now"}))).unwrap().len(), 1);
        let cases = [
            (json!([{"type": "custom"}]), "tools[0].type"),
            (json!([{"type": "function"}]), "tools[0].function"),
            (tool(json!({"name": "no spaces"})), "tools[0].function.name"),
            (tool(json!({"name": "f", "parameters": 1})), "tools[0].function.parameters"),
        ];
        for (value, param) in cases {
            assert_eq!(read(value.clone()).unwrap_err().param.as_deref(), Some(param), "{value}");
        }
    }
}
