//! Tools that a model may call, and the parser of calls in answers.
//!
//! Qwen's XML form:
//!
//! ```text
//! <tool_call>
//! <function=weather>
//! <parameter=city>
//! Oslo
//! </parameter>
//! </function>
//! </tool_call>
//! ```

use serde::Serialize;
use serde_json::{Map, Value, json};

mod argument;
mod call_start;
mod markup;
mod python_literal;

pub(crate) use call_start::{CallStart, CodeTracker, find_call_start};
pub(crate) use markup::{ParsedAnswer, parse_answer};

use crate::json_schema::property_schema;

/// The tag that begins a tool call.
const CALL: &str = "<tool_call>";
/// The beginning of a function's tag.
const FUNCTION: &str = "<function=";

/// A function that the model may call.
///
/// ```
/// use q35_runtime::{CancelToken, Message, Sampling, Tool};
/// use serde_json::json;
///
/// # let files = q35_backend_tests::nano_mlx();
/// # let chat = q35_runtime::Chat::from_pretrained(files.path_str())?;
/// let weather = Tool::new("weather", "Tells the weather.", json!({
///     "type": "object", "required": ["city"], "properties": {"city": {"type": "string"}},
/// }));
/// let mut session = chat.session().with_tools(vec![weather]);
/// let reply = session.ask("What is the weather in Oslo?", &Sampling::default().with_max_tokens(64))?;
/// match reply.finish.tool_calls {
///     Ok(calls) => {
///         for call in &calls {
///             session.push(Message::tool(format!("4 degrees in {}", call.arguments["city"])))?;
///         }
///         if !calls.is_empty() {
///             session.respond(&Sampling::default(), CancelToken::new())?.collect_reply()?;
///         }
///     }
///     Err(broken) => println!("{broken}"), // invalid markup or arguments; `broken.valid` holds the valid calls
/// }
/// # Ok::<(), q35_runtime::ChatError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// The description that the model reads.
    pub description: String,
    /// A JSON Schema of type `object` whose `properties` are the parameters.
    pub parameters: Value,
}

impl Tool {
    /// A function with its parameters' JSON Schema.
    pub fn new(name: impl Into<String>, description: impl Into<String>, parameters: Value) -> Self {
        Self { name: name.into(), description: description.into(), parameters }
    }

    /// Parses a tool from the JSON object that chat templates print, or from the function inside of it; `None` if it has no
    /// name.
    pub fn from_json(json: &Value) -> Option<Self> {
        let function = json.get("function").unwrap_or(json);
        let name = function.get("name")?.as_str()?;
        let description = function.get("description").and_then(Value::as_str).unwrap_or_default();
        let none = || json!({"type": "object", "properties": {}});
        let parameters = function.get("parameters").cloned().unwrap_or_else(none);
        Some(Self::new(name, description, parameters))
    }

    /// The JSON object that chat templates print.
    pub fn to_json(&self) -> Value {
        let function =
            json!({"name": self.name, "description": self.description, "parameters": self.parameters});
        json!({"type": "function", "function": function})
    }

    /// The schema of a parameter: of `properties`, a matching pattern, or `additionalProperties`.
    fn parameter_schema(&self, parameter: &str) -> Result<&Value, ToolCallError> {
        const ANY: &Value = &Value::Bool(true);
        if !self.parameters.is_object() {
            return Ok(ANY);
        }
        let schema = property_schema(&self.parameters, &self.parameters, parameter);
        schema.filter(|schema| **schema != Value::Bool(false)).ok_or_else(|| {
            ToolCallError::UnknownParameter { tool: self.name.clone(), parameter: parameter.to_owned() }
        })
    }

    fn required(&self) -> Vec<&str> {
        let names = self.parameters.get("required").and_then(Value::as_array);
        names.into_iter().flatten().filter_map(Value::as_str).collect()
    }
}

/// A call that the model requests.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ToolCall {
    /// The function.
    pub name: String,
    /// Its arguments, of the types that the tool's schema declares.
    pub arguments: Map<String, Value>,
}

impl ToolCall {
    /// The JSON object that chat templates read.
    pub fn to_json(&self) -> Value {
        json!({"type": "function", "function": {"name": self.name, "arguments": self.arguments}})
    }
}

/// An error in the tool calls of an answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ToolCallError {
    /// The markup is invalid.
    #[error(
        "the tool call is broken at byte {at} of the answer\n  expected: {expected}\n  found:    {found:?}"
    )]
    Markup {
        /// Byte offset in the answer.
        at: usize,
        /// The expected markup.
        expected: &'static str,
        /// The text at the offset.
        found: String,
    },
    /// The function was not offered.
    #[error("the model called `{name}`, which was not offered")]
    UnknownTool {
        /// The name called.
        name: String,
    },
    /// The function has no such parameter.
    #[error("the model called `{tool}` with an unknown parameter `{parameter}`")]
    UnknownParameter {
        /// The function.
        tool: String,
        /// The name given.
        parameter: String,
    },
    /// A parameter occurs twice.
    #[error("the model called `{tool}` with `{parameter}` given twice")]
    Duplicate {
        /// The function.
        tool: String,
        /// The parameter.
        parameter: String,
    },
    /// A required parameter is missing.
    #[error("the model called `{tool}` without its required parameter `{parameter}`")]
    Missing {
        /// The function.
        tool: String,
        /// The parameter.
        parameter: String,
    },
    /// A value does not have the declared type.
    #[error(
        "the model called `{tool}` with a wrong `{parameter}`\n  expected: {expected}\n  found:    {found:?}"
    )]
    Value {
        /// The function.
        tool: String,
        /// The parameter.
        parameter: String,
        /// The declared type.
        expected: String,
        /// The text given.
        found: String,
    },
    /// The arguments together violate the tool's schema.
    #[error("the model called `{tool}` with wrong arguments\n  expected: {expected}\n  found:    {found}")]
    Arguments {
        /// The function.
        tool: String,
        /// The violated constraint.
        expected: String,
        /// The arguments as JSON.
        found: String,
    },
}

/// An answer with at least one invalid tool call.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{error}")]
pub struct BrokenToolCalls {
    /// The first error.
    pub error: Box<ToolCallError>,
    /// The calls of the answer that are valid.
    pub valid: Vec<ToolCall>,
}
