//! Tools that a model may call, and the parser of calls in Qwen's XML form.
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

use crate::generate::CALL;

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
///             session.push(Message::tool(format!("4 degrees in {}", call.arguments["city"])));
///         }
///         if !calls.is_empty() {
///             session.respond(&Sampling::default(), CancelToken::new())?.collect_reply()?;
///         }
///     }
///     Err(broken) => println!("{broken}"), // invalid markup or arguments
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

    /// The JSON object that chat templates print.
    pub fn to_json(&self) -> Value {
        let function =
            json!({"name": self.name, "description": self.description, "parameters": self.parameters});
        json!({"type": "function", "function": function})
    }

    fn schema_of(&self, parameter: &str) -> Option<&Value> {
        self.parameters.get("properties")?.get(parameter)
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
}

/// The part of an answer before its calls.
pub(crate) fn text_before_calls(answer: &str) -> &str {
    answer.find(CALL).map_or(answer, |at| answer[..at].trim_end())
}

/// Parses the calls in an answer: all of them are valid, or the result is an error.
pub(crate) fn parse_calls(answer: &str, tools: &[Tool]) -> Result<Vec<ToolCall>, ToolCallError> {
    let Some(start) = answer.find(CALL) else { return Ok(Vec::new()) };
    let mut scanner = Scanner { text: answer, at: start };
    let mut calls = Vec::new();
    while !scanner.at_end() {
        scanner.expect(CALL, "<tool_call>, or the end of the answer")?;
        calls.push(scanner.call(tools)?);
        scanner.expect("</tool_call>", "</tool_call>")?;
    }
    Ok(calls)
}

struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scanner<'a> {
    fn skip_space(&mut self) {
        self.at = self.text.len() - self.text[self.at..].trim_start().len();
    }

    fn at_end(&mut self) -> bool {
        self.skip_space();
        self.at == self.text.len()
    }

    fn broken(&self, expected: &'static str) -> ToolCallError {
        ToolCallError::Markup {
            at: self.at,
            expected,
            found: self.text[self.at..].chars().take(40).collect(),
        }
    }

    fn takes(&mut self, tag: &str) -> bool {
        self.skip_space();
        let found = self.text[self.at..].starts_with(tag);
        self.at += if found { tag.len() } else { 0 };
        found
    }

    fn expect(&mut self, tag: &str, expected: &'static str) -> Result<(), ToolCallError> {
        if self.takes(tag) { Ok(()) } else { Err(self.broken(expected)) }
    }

    /// Consumes and returns the text up to `end`, and consumes `end`.
    fn until(&mut self, end: &str, expected: &'static str) -> Result<&'a str, ToolCallError> {
        let length = self.text[self.at..].find(end).ok_or_else(|| self.broken(expected))?;
        let found = &self.text[self.at..self.at + length];
        self.at += length + end.len();
        Ok(found)
    }

    fn name(&mut self) -> Result<&'a str, ToolCallError> {
        let before = self.at;
        let name = self.until(">", "a name and >")?;
        if name.trim().is_empty() || name.contains(['\n', '<']) {
            self.at = before;
            return Err(self.broken("a name and >"));
        }
        Ok(name.trim())
    }

    fn call(&mut self, tools: &[Tool]) -> Result<ToolCall, ToolCallError> {
        self.expect("<function=", "<function=")?;
        let name = self.name()?;
        let tool = tools.iter().find(|tool| tool.name == name);
        let tool = tool.ok_or_else(|| ToolCallError::UnknownTool { name: name.to_owned() })?;
        let mut arguments = Map::new();
        while self.takes("<parameter=") {
            let parameter = self.name()?;
            let value = self.until("</parameter>", "</parameter>")?;
            let value = value.strip_prefix('\n').unwrap_or(value);
            let value = value.strip_suffix('\n').unwrap_or(value);
            let (tool_name, parameter) = (name.to_owned(), parameter.to_owned());
            let Some(schema) = tool.schema_of(&parameter) else {
                return Err(ToolCallError::UnknownParameter { tool: tool_name, parameter });
            };
            let value = typed(value, schema).ok_or_else(|| ToolCallError::Value {
                tool: tool_name.clone(),
                parameter: parameter.clone(),
                expected: schema.get("type").unwrap_or(&Value::Null).to_string(),
                found: value.to_owned(),
            })?;
            if arguments.insert(parameter.clone(), value).is_some() {
                return Err(ToolCallError::Duplicate { tool: tool_name, parameter });
            }
        }
        self.expect("</function>", "<parameter= or </function>")?;
        let required = tool.parameters.get("required").and_then(Value::as_array).into_iter().flatten();
        match required.filter_map(Value::as_str).find(|name| !arguments.contains_key(*name)) {
            Some(absent) => {
                Err(ToolCallError::Missing { tool: name.to_owned(), parameter: absent.to_owned() })
            }
            None => Ok(ToolCall { name: name.to_owned(), arguments }),
        }
    }
}

/// Converts the text of an argument to the declared type; `None` if it has another type.
fn typed(text: &str, schema: &Value) -> Option<Value> {
    let declared: Vec<&str> = match schema.get("type") {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(several)) => several.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let parsed: Option<Value> = serde_json::from_str(text.trim()).ok();
    let is = |kind: &str| match (kind, &parsed) {
        ("integer", Some(Value::Number(n))) => n.is_i64() || n.is_u64(),
        ("number", Some(Value::Number(_)))
        | ("boolean", Some(Value::Bool(_)))
        | ("null", Some(Value::Null))
        | ("array", Some(Value::Array(_)))
        | ("object", Some(Value::Object(_))) => true,
        _ => false,
    };
    if declared.iter().any(|kind| is(kind)) {
        return parsed;
    }
    (declared.is_empty() || declared.contains(&"string")).then(|| Value::from(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tools() -> Vec<Tool> {
        let parameters = json!({
            "type": "object", "required": ["city"],
            "properties": {
                "city": {"type": "string"}, "days": {"type": "integer"}, "exact": {"type": "boolean"},
                "tags": {"type": "array"}, "any": {},
            },
        });
        vec![Tool::new("weather", "Tells the weather.", parameters)]
    }

    fn call(body: &str) -> Result<Vec<ToolCall>, ToolCallError> {
        parse_calls(&format!("I look.\n\n<tool_call>\n{body}\n</tool_call>"), &tools())
    }

    #[test]
    fn calls_in_the_agreed_form() {
        let body = "<function=weather>\n<parameter=city>\nNew\nYork\n</parameter>\n<parameter=days>\n3\n</parameter>\n\
                    <parameter=exact>\ntrue\n</parameter>\n<parameter=tags>\n[1, \"a\"]\n</parameter>\n</function>";
        let calls = call(body).unwrap();
        assert_eq!(calls.len(), 1);
        assert_eq!(
            Value::Object(calls[0].arguments.clone()),
            json!({"city": "New\nYork", "days": 3, "exact": true, "tags": [1, "a"]})
        );
        let two =
            "<tool_call><function=weather><parameter=city>1</parameter></function></tool_call>".repeat(2);
        let calls = parse_calls(&two, &tools()).unwrap();
        assert_eq!((calls.len(), &calls[1].arguments["city"]), (2, &json!("1")), "a string stays one");
        assert_eq!(parse_calls("no calls <here>", &tools()), Ok(vec![]));
        assert_eq!(text_before_calls("I look.\n\n<tool_call>x"), "I look.");
    }

    #[test]
    fn broken_calls_are_errors() {
        let cases = [
            ("", "expected: <function="),
            ("{\"name\": \"weather\"}", "expected: <function="),
            ("<function=weather", "expected: a name and >"),
            ("<function=weather>\n<parameter=city>\nOslo\n</function>", "expected: </parameter>"),
            (
                "<function=weather>\n<parameter=city>\nOslo\n</parameter>\n",
                "expected: <parameter= or </function>",
            ),
            ("<function=wether>\n</function>", "`wether`, which was not offered"),
            ("<function=weather>\n</function>", "without its required parameter `city`"),
            (
                "<function=weather>\n<parameter=town>\nOslo\n</parameter>\n</function>",
                "unknown parameter `town`",
            ),
            (
                "<function=weather>\n<parameter=city>\na\n</parameter>\n<parameter=city>\nb\n</parameter>\n</function>",
                "`city` given twice",
            ),
            (
                "<function=weather>\n<parameter=city>\na\n</parameter>\n<parameter=days>\nmany\n</parameter>\n</function>",
                "a wrong `days`\n  expected: \"integer\"\n  found:    \"many\"",
            ),
            (
                "<function=weather>\n<parameter=city>\na\n</parameter>\n</function>\nmore",
                "expected: </tool_call>",
            ),
        ];
        for (body, message) in cases {
            let error = call(body).unwrap_err().to_string();
            assert!(error.contains(message), "{body}: {error}");
        }
        let unfinished = parse_calls("<tool_call>\n<function=weather>\n<parameter=city>\nOs", &tools());
        assert!(unfinished.is_err());
        let trailing =
            "<tool_call><function=weather><parameter=city>1</parameter></function></tool_call> Done!";
        assert!(parse_calls(trailing, &tools()).is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_survived(parts in prop::collection::vec(prop::sample::select(vec![
            "<tool_call>", "</tool_call>", "<function=weather>", "</function>", "<parameter=city>", "</parameter>", "世", "\n", "x>",
        ]), 0..14)) {
            let _ = parse_calls(&parts.concat(), &tools());
        }
    }
}
