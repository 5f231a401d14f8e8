//! The messages of a conversation.

use serde_json::{Map, Value};

use crate::tools::ToolCall;

/// The author of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Instructions for the whole conversation; only the first message has this role.
    System,
    /// The user.
    User,
    /// The model.
    Assistant,
    /// The result of a tool call.
    Tool,
}

/// One message.
///
/// ```
/// use q35_runtime::{Message, Role};
/// let message = Message::assistant("Four.").with_reasoning("2 + 2");
/// assert_eq!(message.role, Role::Assistant);
/// assert_eq!(Message::from_json(&message.to_json()).unwrap(), message);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// The author.
    pub role: Role,
    /// The text.
    pub content: String,
    /// The reasoning before the text; the template decides if it is part of later prompts.
    pub reasoning: Option<String>,
    /// The tool calls of the model.
    pub tool_calls: Vec<ToolCall>,
}

/// A message that cannot be read, because one of its fields is missing or has another form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` of a message\n  expected: {expected}\n  found:    {found}")]
pub struct MessageError {
    /// The field, as `messages[2].tool_calls[0].function.arguments`.
    pub field: String,
    /// The forms that are accepted.
    pub expected: &'static str,
    /// The value in the field.
    pub found: String,
}

fn error<T>(field: &str, expected: &'static str, found: Option<&Value>) -> Result<T, MessageError> {
    let found = found.map_or("nothing".into(), Value::to_string);
    let found =
        if found.chars().count() > 80 { found.chars().take(77).collect::<String>() + "..." } else { found };
    Err(MessageError { field: field.into(), expected, found })
}

impl Message {
    fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into(), reasoning: None, tool_calls: Vec::new() }
    }

    /// A system prompt.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new(Role::System, content)
    }

    /// A message of the user.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new(Role::User, content)
    }

    /// A message of the model.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new(Role::Assistant, content)
    }

    /// The result of a tool call.
    pub fn tool(content: impl Into<String>) -> Self {
        Self::new(Role::Tool, content)
    }

    /// Adds reasoning before the text.
    pub fn with_reasoning(mut self, reasoning: impl Into<String>) -> Self {
        self.reasoning = Some(reasoning.into()).filter(|text| !text.is_empty());
        self
    }

    /// The JSON object that chat templates read.
    pub fn to_json(&self) -> Value {
        let role = match self.role {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        };
        let mut message = Map::new();
        message.insert("role".into(), role.into());
        message.insert("content".into(), self.content.as_str().into());
        if let Some(reasoning) = &self.reasoning {
            message.insert("reasoning_content".into(), reasoning.as_str().into());
        }
        if !self.tool_calls.is_empty() {
            message.insert("tool_calls".into(), self.tool_calls.iter().map(ToolCall::to_json).collect());
        }
        Value::Object(message)
    }

    /// Parses a message from the JSON object that chat templates read, or from that of OpenAI's chat completions: the
    /// role `developer` is a system prompt, `content` may be a list of text parts (their texts are joined) or, beside
    /// tool calls, null, and a call's `arguments` may be JSON text.
    ///
    /// ```
    /// use q35_runtime::Message;
    /// use serde_json::json;
    /// let call = json!({"id": "1", "type": "function", "function": {"name": "now", "arguments": "{\"zone\": \"CET\"}"}});
    /// let message = Message::from_json(&json!({"role": "assistant", "content": null, "tool_calls": [call]})).unwrap();
    /// assert_eq!(message.tool_calls[0].arguments["zone"], "CET");
    /// let picture = json!({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]});
    /// assert_eq!(Message::from_json(&picture).unwrap_err().field, "content[0].type");
    /// ```
    ///
    /// # Errors
    /// The first field that has another form.
    pub fn from_json(json: &Value) -> Result<Self, MessageError> {
        let Some(fields) = json.as_object() else { return error("message", "a JSON object", Some(json)) };
        let role = match fields.get("role").and_then(Value::as_str) {
            Some("system" | "developer") => Role::System,
            Some("user") => Role::User,
            Some("assistant") => Role::Assistant,
            Some("tool") => Role::Tool,
            _ => return error("role", "system, developer, user, assistant or tool", fields.get("role")),
        };
        for unsupported in ["function_call", "refusal", "audio", "images", "parts"] {
            if fields.get(unsupported).is_some_and(|value| !value.is_null()) {
                return error(unsupported, "no such field", fields.get(unsupported));
            }
        }
        let tool_calls = tool_calls(fields.get("tool_calls"))?;
        if !tool_calls.is_empty() && role != Role::Assistant {
            return error(
                "tool_calls",
                "a list in a message of the assistant only",
                fields.get("tool_calls"),
            );
        }
        let content = match fields.get("content") {
            None | Some(Value::Null) if !tool_calls.is_empty() => String::new(),
            content => text(content)?,
        };
        let reasoning = match fields.get("reasoning_content").or_else(|| fields.get("reasoning")) {
            None | Some(Value::Null) => "",
            Some(Value::String(reasoning)) => reasoning,
            other => return error("reasoning_content", "a text", other),
        };
        Ok(Self { tool_calls, ..Self::new(role, content).with_reasoning(reasoning) })
    }

    /// Parses a conversation: a list of messages, or an object with such a list in `messages`.
    ///
    /// # Errors
    /// The first field that has another form, and a system prompt that is not the first message.
    pub fn list_from_json(json: &Value) -> Result<Vec<Self>, MessageError> {
        let list = json.as_array().or_else(|| json.get("messages")?.as_array());
        let Some(list) = list else {
            return error("messages", "a list of messages, or an object with one in `messages`", Some(json));
        };
        let mut messages: Vec<Self> = Vec::with_capacity(list.len());
        for (index, json) in list.iter().enumerate() {
            let named = |error: MessageError| MessageError {
                field: format!("messages[{index}].{}", error.field),
                ..error
            };
            let message = Self::from_json(json).map_err(named)?;
            if index > 0 && message.role == Role::System {
                let field = format!("messages[{index}].role");
                return error(&field, "a system prompt as the first message only", json.get("role"));
            }
            messages.push(message);
        }
        Ok(messages)
    }
}

/// The text of a `content` field: a text, or a list of text parts.
fn text(content: Option<&Value>) -> Result<String, MessageError> {
    let parts = match content {
        Some(Value::String(text)) => return Ok(text.clone()),
        Some(Value::Array(parts)) => parts,
        other => return error("content", "a text, or a list of text parts", other),
    };
    let mut text = String::new();
    for (index, part) in parts.iter().enumerate() {
        let kind = part.get("type");
        if kind.is_some_and(|kind| !["text", "input_text", "output_text"].iter().any(|text| kind == *text)) {
            return error(&format!("content[{index}].type"), "text: this model reads nothing else", kind);
        }
        match part.get("text").or(Some(part)).and_then(Value::as_str) {
            Some(part) => text.push_str(part),
            None => return error(&format!("content[{index}].text"), "a text", part.get("text")),
        }
    }
    Ok(text)
}

fn tool_calls(calls: Option<&Value>) -> Result<Vec<ToolCall>, MessageError> {
    let calls = match calls {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(calls)) => calls,
        other => return error("tool_calls", "a list of calls", other),
    };
    let mut parsed = Vec::with_capacity(calls.len());
    for (index, call) in calls.iter().enumerate() {
        let field = |name: &str| format!("tool_calls[{index}].{name}");
        if call.get("type").is_some_and(|kind| kind != "function") {
            return error(&field("type"), "function", call.get("type"));
        }
        let function = call.get("function").unwrap_or(call);
        let Some(name) = function.get("name").and_then(Value::as_str).filter(|name| !name.is_empty()) else {
            return error(&field("function.name"), "the name of a function", function.get("name"));
        };
        let arguments = match function.get("arguments") {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(arguments)) => arguments.clone(),
            Some(Value::String(text)) if text.trim().is_empty() => Map::new(),
            Some(Value::String(text)) if text.trim_start().starts_with('{') => {
                match serde_json::from_str(text) {
                    Ok(arguments) => arguments,
                    Err(_) => {
                        return error(
                            &field("function.arguments"),
                            "an object, or its JSON text",
                            function.get("arguments"),
                        );
                    }
                }
            }
            other => return error(&field("function.arguments"), "an object, or its JSON text", other),
        };
        parsed.push(ToolCall { name: name.to_owned(), arguments });
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn json_and_back() {
        let call = ToolCall { name: "f".into(), arguments: Map::from_iter([("x".to_owned(), json!(1))]) };
        let mut message = Message::assistant("So.").with_reasoning("Why?");
        message.tool_calls.push(call);
        for message in [message, Message::system("s"), Message::tool("t"), Message::user("")] {
            assert_eq!(Message::from_json(&message.to_json()).unwrap(), message);
        }
        assert!(Message::from_json(&json!({"role": "narrator"})).is_err());
        assert!(Message::from_json(&json!({"role": "assistant", "tool_calls": [{}]})).is_err());
    }

    #[test]
    fn a_conversation_as_openai_writes_it() {
        let history = json!({"model": "m", "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "name": "Ada", "content": [{"type": "text", "text": "One, "}, {"type": "text", "text": "two."}]},
            {"role": "assistant", "content": null, "refusal": null, "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{\"x\": [1]}"}},
                {"id": "b", "type": "function", "function": {"name": "g", "arguments": ""}},
            ]},
            {"role": "tool", "tool_call_id": "a", "content": "4"},
            {"role": "assistant", "content": "Done.", "tool_calls": null},
        ]});
        let messages = Message::list_from_json(&history).unwrap();
        assert_eq!((messages[0].role, messages[1].content.as_str()), (Role::System, "One, two."));
        assert_eq!(messages[2].tool_calls[0].arguments["x"], json!([1]));
        assert!(messages[2].content.is_empty() && messages[2].tool_calls[1].arguments.is_empty());
        assert_eq!(Message::list_from_json(&history["messages"]).unwrap(), messages);
    }

    #[test]
    fn other_forms_are_refused_by_field() {
        let cases = [
            (json!({"role": "user"}), "content"),
            (json!({"role": "user", "content": null}), "content"),
            (json!({"role": "assistant", "content": null}), "content"),
            (json!({"role": "assistant", "content": null, "tool_calls": []}), "content"),
            (json!({"role": "user", "content": 5}), "content"),
            (json!({"role": "user", "content": [{"type": "input_audio"}]}), "content[0].type"),
            (json!({"role": "user", "content": ["a", {"type": "text"}]}), "content[1].text"),
            (json!({"role": "function", "content": "x"}), "role"),
            (json!({"content": "x"}), "role"),
            (json!({"role": "assistant", "content": "x", "function_call": {"name": "f"}}), "function_call"),
            (json!({"role": "assistant", "content": "x", "tool_calls": {}}), "tool_calls"),
            (
                json!({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "x=1"}}]}),
                "tool_calls[0].function.arguments",
            ),
            (
                json!({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}),
                "tool_calls[0].function.arguments",
            ),
            (
                json!({"role": "assistant", "tool_calls": [{"function": {"arguments": {}}}]}),
                "tool_calls[0].function.name",
            ),
            (json!({"role": "assistant", "tool_calls": [{"type": "custom"}]}), "tool_calls[0].type"),
            (
                json!({"role": "user", "content": "x", "tool_calls": [{"function": {"name": "f"}}]}),
                "tool_calls",
            ),
            (json!({"role": "assistant", "content": "x", "reasoning_content": []}), "reasoning_content"),
            (json!("Hi"), "message"),
        ];
        for (json, field) in cases {
            assert_eq!(Message::from_json(&json).unwrap_err().field, field, "{json}");
            let history = json!([{"role": "user", "content": "Hi"}, json]);
            assert_eq!(Message::list_from_json(&history).unwrap_err().field, format!("messages[1].{field}"));
        }
        let late = json!([{"role": "user", "content": "Hi"}, {"role": "system", "content": "S"}]);
        assert_eq!(Message::list_from_json(&late).unwrap_err().field, "messages[1].role");
        assert_eq!(Message::list_from_json(&json!({"text": 1})).unwrap_err().field, "messages");
    }
}
