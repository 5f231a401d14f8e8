//! The parser of tool calls in an answer.
//!
//! Qwen's XML form is the expected one. Deviations that leave no doubt about the call are accepted: functions without
//! their wrapper, several in one wrapper, a JSON object as the Hermes models write it, text around the calls, and
//! closing tags missing at the end of the answer. Everything else is an error, beside the calls that are valid.

use serde_json::{Map, Value};

use super::{BrokenToolCalls, CALL, FUNCTION, Tool, ToolCall, ToolCallError, argument};
use crate::json_schema::conform;

const CALL_END: &str = "</tool_call>";
const FUNCTION_END: &str = "</function>";
const PARAMETER: &str = "<parameter=";
const PARAMETER_END: &str = "</parameter>";

/// The calls of an answer, and its text outside of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ParsedAnswer {
    pub(crate) calls: Vec<ToolCall>,
    /// The text outside of the calls, its parts joined by empty lines.
    pub(crate) text: String,
}

/// Parses an answer. `whole` is false for an answer that a limit cut: closing tags may then not be missing.
///
/// # Errors
/// One of the calls is invalid. The error holds the valid ones.
pub(crate) fn parse_answer(
    answer: &str,
    tools: &[Tool],
    whole: bool,
) -> Result<ParsedAnswer, BrokenToolCalls> {
    let mut parser = Parser { text: answer, at: 0, tools, whole, calls: Vec::new(), prose: Vec::new() };
    let mut error = None;
    if let Some(json) = bare_json(answer, tools) {
        parser.at = answer.len();
        error = json.map(|call| parser.calls.push(call)).err();
    }
    let mut prose_start = parser.at;
    while let Some(start) = parser.next_call() {
        parser.prose.push(answer[prose_start..start].trim());
        if let Err(broken) = parser.calls_at(start) {
            error = error.or(Some(broken));
        }
        parser.at = parser.at.max(start + 1);
        prose_start = parser.at;
    }
    parser.prose.push(answer[prose_start..].trim());
    let Parser { calls, prose, .. } = parser;
    match error {
        Some(error) => Err(BrokenToolCalls { error: Box::new(error), valid: calls }),
        None => {
            let prose: Vec<&str> = prose.into_iter().filter(|part| !part.is_empty()).collect();
            Ok(ParsedAnswer { calls, text: prose.join("\n\n") })
        }
    }
}

/// An answer that is nothing but a JSON object with the name of a tool.
fn bare_json(answer: &str, tools: &[Tool]) -> Option<Result<ToolCall, ToolCallError>> {
    let object: Value = serde_json::from_str(answer.trim()).ok()?;
    let name = object.get("name")?.as_str()?;
    let has_arguments = object.get("arguments").or_else(|| object.get("parameters")).is_some();
    (has_arguments && tools.iter().any(|tool| tool.name == name)).then(|| call_from_json(&object, tools, 0))
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    tools: &'a [Tool],
    whole: bool,
    calls: Vec<ToolCall>,
    prose: Vec<&'a str>,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn skip_space(&mut self) {
        self.at = self.text.len() - self.rest().trim_start().len();
    }

    fn is_at_end(&self) -> bool {
        self.at == self.text.len()
    }

    /// Consumes `tag` after white space.
    fn eat(&mut self, tag: &str) -> bool {
        self.skip_space();
        let found = self.rest().starts_with(tag);
        self.at += if found { tag.len() } else { 0 };
        found
    }

    fn broken(&self, expected: &'static str) -> ToolCallError {
        let found = self.rest().chars().take(40).collect();
        ToolCallError::Markup { at: self.at, expected, found }
    }

    /// Offset of the next call outside of code, from `self.at` on.
    fn next_call(&self) -> Option<usize> {
        let mut at = self.at;
        let mut line_start = self.text[..at].rsplit('\n').next().is_none_or(|line| line.trim().is_empty());
        while at < self.text.len() {
            let rest = &self.text[at..];
            if rest.starts_with(CALL) || (rest.starts_with(FUNCTION) && is_function_tag(rest)) {
                return Some(at);
            }
            if rest.starts_with('`') {
                at += code_length(rest, line_start);
                line_start = false;
                continue;
            }
            let c = rest.chars().next()?;
            line_start = c == '\n' || (line_start && c == ' ');
            at += c.len_utf8();
        }
        None
    }

    /// Parses the call or calls at `start`, and leaves `self.at` at their end, or at the error.
    fn calls_at(&mut self, start: usize) -> Result<(), ToolCallError> {
        self.at = start;
        if !self.eat(CALL) {
            return self.function();
        }
        let mut empty = true;
        loop {
            self.skip_space();
            if !empty && (self.eat(CALL_END) || self.is_at_end()) {
                return Ok(());
            }
            if self.rest().starts_with(FUNCTION) {
                self.function()?;
            } else if self.rest().starts_with(['{', '[']) {
                self.json()?;
            } else if empty {
                return Err(self.broken("<function= or a JSON object"));
            } else if self.rest().starts_with(CALL) {
                // The closing tag between two calls is missing.
                return Err(self.broken(CALL_END));
            } else {
                let error = self.broken(CALL_END);
                self.skip_to_call_end();
                return Err(error);
            }
            empty = false;
        }
    }

    /// Moves behind the closing tag of the current call, but not beyond the next call.
    fn skip_to_call_end(&mut self) {
        let next = [CALL, FUNCTION].iter().filter_map(|tag| self.rest().find(tag)).min();
        let end = self.rest().find(CALL_END).map(|at| at + CALL_END.len());
        self.at += match (end, next) {
            (Some(end), Some(next)) => end.min(next),
            (Some(end), None) => end,
            (None, Some(next)) => next,
            (None, None) => self.rest().len(),
        };
    }

    /// Parses JSON: one call, or a list of calls.
    fn json(&mut self) -> Result<(), ToolCallError> {
        let at = self.at;
        let mut values = serde_json::Deserializer::from_str(self.rest()).into_iter::<Value>();
        let (value, length) = match values.next() {
            Some(Ok(value)) => (value, values.byte_offset()),
            _ => return Err(self.broken("a JSON object with `name` and `arguments`")),
        };
        self.at += length;
        let objects = match value {
            Value::Array(objects) => objects,
            object => vec![object],
        };
        for object in &objects {
            self.calls.push(call_from_json(object, self.tools, at)?);
        }
        Ok(())
    }

    /// Consumes and returns the text before `end`, and consumes `end`.
    fn until(&mut self, end: &str, expected: &'static str) -> Result<&'a str, ToolCallError> {
        let length = self.rest().find(end).ok_or_else(|| self.broken(expected))?;
        let found = &self.rest()[..length];
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

    fn function(&mut self) -> Result<(), ToolCallError> {
        self.eat(FUNCTION);
        let name = self.name()?;
        let tool = find_tool(self.tools, name)?;
        let mut arguments = Map::new();
        while self.eat(PARAMETER) {
            let parameter = self.name()?;
            let value_start = self.at;
            let text = self.until(PARAMETER_END, PARAMETER_END)?;
            if text.contains(PARAMETER) || text.contains(FUNCTION_END) {
                self.at = value_start;
                return Err(self.broken(PARAMETER_END));
            }
            let text = text.strip_prefix('\n').unwrap_or(text);
            let text = text.strip_suffix('\n').unwrap_or(text);
            let value = tool.argument_from_text(parameter, text)?;
            if arguments.insert(parameter.to_owned(), value).is_some() {
                return Err(ToolCallError::Duplicate {
                    tool: name.to_owned(),
                    parameter: parameter.to_owned(),
                });
            }
        }
        let ends = self.eat(FUNCTION_END) || (self.is_at_end() && self.whole);
        if !ends {
            return Err(self.broken("<parameter= or </function>"));
        }
        self.calls.push(tool.call(arguments)?);
        Ok(())
    }
}

/// True if `text` begins with a complete `<function=NAME>`.
fn is_function_tag(text: &str) -> bool {
    let name = text[FUNCTION.len()..].split_once('>').map(|(name, _)| name);
    name.is_some_and(|name| !name.trim().is_empty() && !name.contains(['\n', '<']))
}

/// Length of the code that begins with the backticks at the start of `text`, or of the backticks alone if the code has
/// no end on its line. A fenced block without an end reaches to the end of the text.
fn code_length(text: &str, line_start: bool) -> usize {
    let run = text.bytes().take_while(|byte| *byte == b'`').count();
    if run >= 3 && line_start {
        let mut offset = 0;
        for (index, line) in text.split_inclusive('\n').enumerate() {
            offset += line.len();
            let fence = line.trim_start_matches(' ').bytes().take_while(|byte| *byte == b'`').count();
            if index > 0 && fence >= run {
                return offset;
            }
        }
        return text.len();
    }
    let line = text.split('\n').next().unwrap_or(text);
    let mut at = run;
    while let Some(next) = line[at..].find('`') {
        let start = at + next;
        let length = line[start..].bytes().take_while(|byte| *byte == b'`').count();
        if length == run {
            return start + length;
        }
        at = start + length;
    }
    run
}

fn find_tool<'t>(tools: &'t [Tool], name: &str) -> Result<&'t Tool, ToolCallError> {
    let tool = tools.iter().find(|tool| tool.name == name);
    tool.ok_or_else(|| ToolCallError::UnknownTool { name: name.to_owned() })
}

/// A call in JSON: `name`, and `arguments` as an object or as its text.
fn call_from_json(object: &Value, tools: &[Tool], at: usize) -> Result<ToolCall, ToolCallError> {
    let malformed = |expected| {
        let found: String = object.to_string().chars().take(40).collect();
        ToolCallError::Markup { at, expected, found }
    };
    let object = object.get("function").filter(|function| function.is_object()).unwrap_or(object);
    let name =
        object.get("name").and_then(Value::as_str).ok_or_else(|| malformed("a JSON object with `name`"))?;
    let tool = find_tool(tools, name)?;
    let given = object.get("arguments").or_else(|| object.get("parameters"));
    let arguments = match given {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(arguments)) => arguments.clone(),
        Some(Value::String(text)) => match serde_json::from_str(text) {
            Ok(Value::Object(arguments)) => arguments,
            _ => return Err(malformed("`arguments` as an object")),
        },
        Some(_) => return Err(malformed("`arguments` as an object")),
    };
    tool.call(arguments)
}

impl Tool {
    /// The value of a parameter that the model wrote as text.
    fn argument_from_text(&self, parameter: &str, text: &str) -> Result<Value, ToolCallError> {
        let schema = self.parameter_schema(parameter)?;
        argument::from_text(&self.parameters, schema, text).map_err(|_| ToolCallError::Value {
            tool: self.name.clone(),
            parameter: parameter.to_owned(),
            expected: describe(schema),
            found: text.to_owned(),
        })
    }

    /// A call with these arguments, checked and converted by the schema.
    fn call(&self, arguments: Map<String, Value>) -> Result<ToolCall, ToolCallError> {
        let mut checked = Map::new();
        for (parameter, value) in arguments {
            let schema = self.parameter_schema(&parameter)?;
            let value = conform(&self.parameters, schema, &value).map_err(|_| ToolCallError::Value {
                tool: self.name.clone(),
                parameter: parameter.clone(),
                expected: describe(schema),
                found: value.to_string(),
            })?;
            checked.insert(parameter, value);
        }
        if let Some(missing) = self.required().into_iter().find(|name| !checked.contains_key(*name)) {
            return Err(ToolCallError::Missing { tool: self.name.clone(), parameter: missing.to_owned() });
        }
        if !self.parameters.is_object() {
            return Ok(ToolCall { name: self.name.clone(), arguments: checked });
        }
        let checked = Value::Object(checked);
        match conform(&self.parameters, &self.parameters, &checked) {
            Ok(Value::Object(arguments)) => Ok(ToolCall { name: self.name.clone(), arguments }),
            Ok(other) => Err(self.arguments_error("an object".into(), &other)),
            Err(mismatch) => Err(self.arguments_error(mismatch.expected, &checked)),
        }
    }

    fn arguments_error(&self, expected: String, found: &Value) -> ToolCallError {
        ToolCallError::Arguments { tool: self.name.clone(), expected, found: found.to_string() }
    }
}

/// A schema for an error message: its type, or the whole schema if it has none.
fn describe(schema: &Value) -> String {
    let text = schema.get("type").unwrap_or(schema).to_string();
    if text.len() > 160 { text.chars().take(157).collect::<String>() + "..." } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn tools() -> Vec<Tool> {
        let parameters = json!({
            "type": "object", "required": ["city"],
            "properties": {
                "city": {"type": "string"}, "days": {"type": "integer"}, "exact": {"type": "boolean"},
                "tags": {"type": "array"}, "any": {},
            },
        });
        let open = json!({
            "type": "object", "$defs": {"Unit": {"enum": ["C", "F"]}},
            "properties": {"unit": {"$ref": "#/$defs/Unit"}, "where": {"anyOf": [
                {"type": "string"}, {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}]}},
            "patternProperties": {"^n_": {"type": "integer"}}, "additionalProperties": {"type": "boolean"},
        });
        let none = json!({"type": "object", "properties": {}});
        vec![
            Tool::new("weather", "Tells the weather.", parameters),
            Tool::new("set", "Sets.", open),
            Tool::new("now", "Tells the time.", none),
        ]
    }

    fn parse(answer: &str) -> Result<ParsedAnswer, BrokenToolCalls> {
        parse_answer(answer, &tools(), true)
    }

    fn call(body: &str) -> Result<Vec<ToolCall>, BrokenToolCalls> {
        parse(&format!("I look.\n\n<tool_call>\n{body}\n</tool_call>")).map(|parsed| parsed.calls)
    }

    fn names(calls: &[ToolCall]) -> Vec<&str> {
        calls.iter().map(|call| call.name.as_str()).collect()
    }

    const OSLO: &str =
        "<tool_call>\n<function=weather>\n<parameter=city>\nOslo\n</parameter>\n</function>\n</tool_call>";

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
        let calls = parse(&two).unwrap().calls;
        assert_eq!((calls.len(), &calls[1].arguments["city"]), (2, &json!("1")), "a string stays one");
        assert_eq!(parse("no calls <here>").unwrap().calls, []);
        assert_eq!(parse(&format!("I look.\n\n{OSLO}")).unwrap().text, "I look.");
    }

    #[test]
    fn calls_in_other_forms() {
        let now = "<function=now>\n</function>";
        let json = r#"{"name": "weather", "arguments": {"city": "Oslo", "days": 2.0}}"#;
        let cases = [
            (format!("Let me see.\n{OSLO}\nThat is one.\n{OSLO}\nDone!"), vec!["weather", "weather"]),
            (now.to_owned(), vec!["now"]),
            (format!("Sure.\n\n{now}\n{now}"), vec!["now", "now"]),
            (format!("<tool_call>\n{now}\n{now}\n</tool_call>"), vec!["now", "now"]),
            (format!("<tool_call>\n{now}"), vec!["now"]),
            ("<tool_call>\n<function=now>\n".to_owned(), vec!["now"]),
            (
                "<tool_call>\n<function=weather>\n<parameter=city>\nOslo\n</parameter>\n".to_owned(),
                vec!["weather"],
            ),
            (format!("<tool_call>\n{json}\n</tool_call>"), vec!["weather"]),
            (format!("<tool_call>\n{json}"), vec!["weather"]),
            (format!("<tool_call>\n[{json}, {json}]\n</tool_call>"), vec!["weather", "weather"]),
            (format!("<tool_call>{json}{json}</tool_call>"), vec!["weather", "weather"]),
            (json.to_owned(), vec!["weather"]),
            (
                r#"<tool_call>{"name": "weather", "arguments": "{\"city\": \"Oslo\"}"}</tool_call>"#
                    .to_owned(),
                vec!["weather"],
            ),
            (format!("Use `<tool_call>` and\n```xml\n{OSLO}\n```\n{now}"), vec!["now"]),
            (format!("It`s odd. {OSLO}"), vec!["weather"]),
            ("```\n<tool_call>\n".to_owned(), vec![]),
            ("In `<function=now>` ticks.".to_owned(), vec![]),
            (r#"{"name": "Ada", "age": 3}"#.to_owned(), vec![]),
        ];
        for (answer, expected) in cases {
            let parsed = parse(&answer).unwrap_or_else(|error| panic!("{answer}: {error}"));
            assert_eq!(names(&parsed.calls), expected, "{answer}");
        }
        let text = parse(&format!("Before.\n{OSLO}\nBetween.\n{OSLO} After.")).unwrap().text;
        assert_eq!(text, "Before.\n\nBetween.\n\nAfter.");
        let call = &parse(json).unwrap().calls[0];
        assert_eq!(Value::Object(call.arguments.clone()).to_string(), r#"{"city":"Oslo","days":2}"#);
    }

    #[test]
    fn arguments_of_the_schema() {
        let body = "<function=set>\n<parameter=unit>\nC\n</parameter>\n<parameter=where>\n[59.9, 10]\n</parameter>\n\
                    <parameter=n_x>\n4.0\n</parameter>\n<parameter=more>\nTrue\n</parameter>\n</function>";
        let expected = json!({"unit": "C", "where": [59.9, 10], "n_x": 4, "more": true});
        assert_eq!(Value::Object(call(body).unwrap()[0].arguments.clone()), expected);
        for (name, value) in [("unit", "K"), ("n_x", "four"), ("more", "yes")] {
            let body = format!("<function=set>\n<parameter={name}>\n{value}\n</parameter>\n</function>");
            let error = call(&body).unwrap_err();
            assert!(matches!(*error.error, ToolCallError::Value { .. }), "{name}: {error}");
        }
    }

    #[test]
    fn broken_calls_are_errors() {
        let cases = [
            ("", "expected: <function="),
            ("{\"name\": \"weather\"}", "without its required parameter `city`"),
            ("{\"name\": \"weather\", \"arguments\": {\"city\": 3}}", "a wrong `city`"),
            ("{\"name\": ", "expected: a JSON object"),
            ("weather(city=\"Oslo\")", "expected: <function="),
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
        assert!(parse("<tool_call>\n<function=weather>\n<parameter=city>\nOs").is_err());
    }

    #[test]
    fn valid_calls_survive_a_broken_one() {
        let cases = [
            (format!("{OSLO}\n<tool_call>\nhm\n</tool_call>\n{OSLO}"), 2),
            (OSLO.replace("</tool_call>", "word\n</tool_call>") + OSLO, 2),
            (
                format!(
                    "<tool_call>\n<function=wether>\n</function>\n<function=now>\n</function>\n</tool_call>{OSLO}"
                ),
                2,
            ),
            (format!("{OSLO}<tool_call>\n<function=weather>\n<parameter=city>\nOs"), 1),
            (format!("{OSLO}\n<tool_call>"), 1),
        ];
        for (answer, valid) in cases {
            let error = parse(&answer).unwrap_err();
            assert_eq!(error.valid.len(), valid, "{answer}: {error}");
        }
    }

    #[test]
    fn a_cut_answer_has_no_missing_tags_to_forgive() {
        let cut = "<tool_call>\n<function=weather>\n<parameter=city>\nOslo\n</parameter>\n";
        assert!(parse(cut).is_ok() && parse_answer(cut, &tools(), false).is_err());
        let whole = format!("{cut}</function>\n");
        assert_eq!(parse_answer(&whole, &tools(), false).unwrap().calls.len(), 1, "the function is whole");
    }

    proptest! {
        #[test]
        fn any_text_is_survived(parts in prop::collection::vec(prop::sample::select(vec![
            "<tool_call>", "</tool_call>", "<function=weather>", "</function>", "<parameter=city>", "</parameter>", "世",
            "\n", "x>", "`", "```", "{\"name\": \"now\"}", "<function=now>",
        ]), 0..14)) {
            let _ = parse(&parts.concat());
        }
    }
}
