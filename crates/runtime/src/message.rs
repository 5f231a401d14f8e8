//! The messages of a conversation.

use serde_json::{Map, Value, json};

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

    /// Parses a message from the JSON object that chat templates read.
    ///
    /// # Errors
    /// A description of the first invalid field.
    pub fn from_json(json: &Value) -> Result<Self, String> {
        let text = |name: &str| json.get(name).and_then(Value::as_str);
        let role = match text("role") {
            Some("system") => Role::System,
            Some("user") => Role::User,
            Some("assistant") => Role::Assistant,
            Some("tool") => Role::Tool,
            other => return Err(format!("a message's role is {other:?}")),
        };
        let mut message = Self::new(role, text("content").unwrap_or_default());
        message = message.with_reasoning(text("reasoning_content").unwrap_or_default());
        for call in json.get("tool_calls").and_then(Value::as_array).into_iter().flatten() {
            let function = call.get("function").unwrap_or(call);
            let name = function.get("name").and_then(Value::as_str);
            let arguments = function.get("arguments").and_then(Value::as_object);
            match (name, arguments) {
                (Some(name), Some(arguments)) => {
                    message.tool_calls.push(ToolCall { name: name.to_owned(), arguments: arguments.clone() })
                }
                _ => return Err(format!("a tool call is {}", json!(call))),
            }
        }
        Ok(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
