//! A checkpoint's own chat template, rendered as transformers renders it.
//!
//! transformers runs the template in a Jinja2 sandbox with `trim_blocks`, `lstrip_blocks`, loop controls, a `tojson`
//! that does not escape for HTML, and the functions `raise_exception` and `strftime_now`; values print as Python
//! prints them. minijinja agrees with Jinja2 except on those points, which this module adds.

mod clock;
mod locate;
mod methods;
mod python;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value};
use serde_json::Value as Json;

use crate::SpecialTokens;
pub use clock::Clock;

/// The template for directories without one: ChatML with Qwen3.5's thinking tags and tool-call markup.
pub const BUILT_IN_TEMPLATE: &str = include_str!("built_in.jinja");

/// An error of reading a template or rendering a conversation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// A file could not be read.
    #[error("cannot read the chat template `{}`", path.display())]
    Read {
        /// The file.
        path: std::path::PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// A JSON file with a template cannot be used.
    #[error("`{}` holds no usable chat template: {message}", path.display())]
    Malformed {
        /// The file.
        path: std::path::PathBuf,
        /// The defect.
        message: String,
    },
    /// The template itself is not valid.
    #[error("the chat template is not valid, line {line}: {message}")]
    Syntax {
        /// Line of the template, from 1; 0 if unknown.
        line: usize,
        /// The parser's message.
        message: String,
    },
    /// The template refused the conversation by `raise_exception`.
    #[error("{message}")]
    Refused {
        /// The argument of `raise_exception`.
        message: String,
    },
    /// An expression of the template failed on this conversation.
    #[error("the chat template failed, line {line}: {message}")]
    Failed {
        /// Line of the template, from 1; 0 if unknown.
        line: usize,
        /// The renderer's message.
        message: String,
    },
}

/// The variables of one rendering.
#[derive(Clone, Debug)]
pub struct RenderInput<'a> {
    /// The conversation: objects with at least `role`.
    pub messages: &'a [Json],
    /// Tools on offer, in the JSON form that the template prints.
    pub tools: Option<&'a Json>,
    /// True if the rendering ends with the opening of an assistant turn.
    pub add_generation_prompt: bool,
    /// The variable `enable_thinking`; `None` leaves it undefined, so that the template's default applies.
    pub enable_thinking: Option<bool>,
    /// Further variables, for example `add_vision_id`.
    pub extra: Vec<(String, Json)>,
}

impl<'a> RenderInput<'a> {
    /// Input with these messages, a generation prompt, and no other variables.
    pub fn new(messages: &'a [Json]) -> Self {
        Self { messages, tools: None, add_generation_prompt: true, enable_thinking: None, extra: Vec::new() }
    }

    /// Sets the tools on offer.
    pub fn with_tools(mut self, tools: Option<&'a Json>) -> Self {
        self.tools = tools;
        self
    }

    /// Sets the generation prompt: the opening of an assistant turn at the end.
    pub fn with_generation_prompt(mut self, add: bool) -> Self {
        self.add_generation_prompt = add;
        self
    }

    /// Sets `enable_thinking`.
    pub fn with_thinking(mut self, enable: Option<bool>) -> Self {
        self.enable_thinking = enable;
        self
    }
}

/// A chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    /// The template for conversations with tools, where it is a separate one.
    tool_source: Option<String>,
    special_tokens: SpecialTokens,
}

/// The source of an error that `raise_exception` raised.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

impl ChatTemplate {
    /// Parses the template.
    ///
    /// # Errors
    /// It is not valid Jinja.
    pub fn new(source: &str) -> Result<Self, TemplateError> {
        let template = Self {
            environment: environment().map_err(invalid)?,
            source: without_generation_tags(source),
            tool_source: None,
            special_tokens: SpecialTokens::new(),
        };
        template.environment.template_from_named_str(NAME, &template.source).map_err(invalid)?;
        Ok(template)
    }

    /// Sets a separate template for conversations with tools.
    ///
    /// # Errors
    /// It is not valid Jinja.
    pub fn with_tool_template(mut self, source: &str) -> Result<Self, TemplateError> {
        let source = without_generation_tags(source);
        self.environment.template_from_named_str(NAME, &source).map_err(invalid)?;
        self.tool_source = Some(source);
        Ok(self)
    }

    /// True for [`BUILT_IN_TEMPLATE`], which replaces that of a directory without one.
    pub fn is_built_in(&self) -> bool {
        self.source == BUILT_IN_TEMPLATE
    }

    /// Sets the special tokens that the template may print by name.
    pub fn with_special_tokens(mut self, tokens: &SpecialTokens) -> Self {
        self.special_tokens = tokens.clone();
        self
    }

    /// Sets the clock behind `strftime_now`.
    pub fn with_clock(mut self, clock: Clock) -> Self {
        clock::install(&mut self.environment, clock);
        self
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders the conversation as the model's prompt.
    ///
    /// # Errors
    /// The template refuses the conversation, or fails on it.
    pub fn render(&self, input: &RenderInput<'_>) -> Result<String, TemplateError> {
        let mut variables: Vec<(String, Value)> = self
            .special_tokens
            .iter()
            .map(|(name, token)| (name.clone(), Value::from(token.as_str())))
            .collect();
        variables.push(("messages".into(), input.messages.iter().map(python::from_json).collect()));
        // transformers passes None for both when they are not given, so `tools is defined` holds.
        variables.push(("tools".into(), input.tools.map_or(Value::from(()), python::from_json)));
        variables.push(("documents".into(), Value::from(())));
        variables.push(("add_generation_prompt".into(), input.add_generation_prompt.into()));
        if let Some(enable) = input.enable_thinking {
            variables.push(("enable_thinking".into(), enable.into()));
        }
        variables.extend(input.extra.iter().map(|(name, value)| (name.clone(), python::from_json(value))));
        let source = self.tool_source.as_ref().filter(|_| input.tools.is_some()).unwrap_or(&self.source);
        self.environment
            .render_named_str(NAME, source, Value::from_pairs(variables))
            .map_err(|error| explain(&error))
    }
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ChatTemplate({} bytes)", self.source.len())
    }
}

fn invalid(error: Error) -> TemplateError {
    TemplateError::Syntax {
        line: error.line().unwrap_or(0),
        message: error.detail().unwrap_or("syntax error").to_owned(),
    }
}

/// A name without an extension, which would switch escaping on.
const NAME: &str = "chat_template";

fn environment() -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(methods::call);
    environment.set_formatter(|out, _, value| {
        out.write_str(&python::text(value)).map_err(|_| Error::from(ErrorKind::WriteFailure))
    });
    environment.add_filter("tojson", to_json);
    environment.add_filter("string", |value: &Value| match value.is_safe() {
        true => value.clone(),
        false => Value::from(python::text(value)),
    });
    environment.add_filter("trim", |value: &Value, chars: Option<String>| {
        methods::strip(&python::text(value), chars.as_deref()).to_owned()
    });
    environment.add_test("sequence", |value: &Value| {
        use ValueKind::{Map, Seq, String, Undefined};
        matches!(value.kind(), Undefined | String | Seq | Map)
    });
    // Python's None cannot be iterated over; Jinja2's undefined can.
    environment.add_test("iterable", |value: &Value| {
        use ValueKind::{Iterable, Map, Seq, String, Undefined};
        matches!(value.kind(), Undefined | String | Seq | Map | Iterable)
    });
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Refusal(message)))
    });
    clock::install(&mut environment, Clock::utc());
    Ok(environment)
}

fn to_json(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let separators: Option<Vec<String>> = options.get("separators")?;
    let form = python::JsonForm {
        ensure_ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        indent: options.get("indent")?,
        separators: match separators.as_deref() {
            Some([item, key]) => Some((item.clone(), key.clone())),
            Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "separators must be two strings")),
            None => None,
        },
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    python::json(value, &form).map(Value::from_safe_string)
}

/// Replaces the `{% generation %}` tags, which mark the assistant's part for training, by a true condition.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else { break };
        let tag = &rest[start..start + length + 2];
        out.push_str(&rest[..start]);
        match tag[2..tag.len() - 2].trim_matches(['-', '+']).trim() {
            "generation" => out.push_str(&tag.replacen("generation", "if true", 1)),
            "endgeneration" => out.push_str(&tag.replacen("endgeneration", "endif", 1)),
            _ => out.push_str(tag),
        }
        rest = &rest[start + tag.len()..];
    }
    out.push_str(rest);
    out
}

fn explain(error: &Error) -> TemplateError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(Refusal(message)) = current.downcast_ref() {
            return TemplateError::Refused { message: message.clone() };
        }
        cause = current.source();
    }
    let message = match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    TemplateError::Failed { line: error.line().unwrap_or(0), message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn render(template: &str, messages: &[Json]) -> Result<String, TemplateError> {
        ChatTemplate::new(template)?.render(&RenderInput::new(messages))
    }

    /// Left: a template over `messages[0]` called `m`. Right: the rendering of Jinja2 3.1 in transformers 5.23.
    #[test]
    fn values_print_as_python_prints_them() {
        let message = json!({
            "t": true, "n": null, "f": 1e16, "g": 0.1, "h": 100.0, "i": 1e-7, "list": [1, "a'b", null, true, 2.5],
            "map": {"k": "v\n", "x": {"y": []}}, "s": "  a\u{1f}\u{a0} ",
        });
        let cases = [
            (
                "{{ m.t }} {{ m.n }} {{ m.f }} {{ m.g }} {{ m.h }} {{ m.i }}",
                "True None 1e+16 0.1 100.0 1e-07",
            ),
            ("{{ m.list }}", r#"[1, "a'b", None, True, 2.5]"#),
            ("{{ m.map }}", r"{'k': 'v\n', 'x': {'y': []}}"),
            ("{{ m.t | string }}{{ m.n | string }}", "TrueNone"),
            ("[{{ m.s | trim }}][{{ m.s.strip() }}][{{ m.s.lstrip() }}]", "[a][a][a\u{1f}\u{a0} ]"),
            ("{{ m.list | tojson }}", r#"[1, "a'b", null, true, 2.5]"#),
            ("{{ m.map | tojson }}", r#"{"k": "v\n", "x": {"y": []}}"#),
            ("{{ m.map | tojson(separators=(',', ':')) }}", r#"{"k":"v\n","x":{"y":[]}}"#),
            ("{{ m.map | tojson(indent=1) }}", "{\n \"k\": \"v\\n\",\n \"x\": {\n  \"y\": []\n }\n}"),
            (
                "{{ '<é&>' | tojson }}{{ 'é🦀' | tojson(ensure_ascii=true) }}",
                "\"<é&>\"\"\\u00e9\\ud83e\\udd80\"",
            ),
            (
                "{{ m.absent }}|{{ m.map is sequence }} {{ 'x' is sequence }} {{ 1 is sequence }}",
                "|True True False",
            ),
            (
                "{{ tools is iterable }} {{ m.list is iterable }} {{ m.absent is iterable }} {{ m.n is iterable }}",
                "False True True False",
            ),
            ("{{ 'a b  c'.split() }}{{ 'x--y'.split('--')[-1] }}", "['a', 'b', 'c']y"),
            (
                "{%- for i in range(5) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}",
                "02",
            ),
            ("a\n  {% if true %}\nb\n  {% endif %}\nc\n", "a\nb\nc"),
            ("{% generation %}x{%- endgeneration %}", "x"),
        ];
        for (template, expected) in cases {
            let template = format!("{{%- set m = messages[0] -%}}{template}");
            assert_eq!(render(&template, std::slice::from_ref(&message)).unwrap(), expected, "{template}");
        }
    }

    #[test]
    fn refusals_are_the_templates_own_words() {
        let error = render("{% macro f() %}{{ raise_exception('No way.') }}{% endmacro %}{{ f() }}", &[])
            .unwrap_err();
        assert!(matches!(error, TemplateError::Refused { .. }));
        assert_eq!(error.to_string(), "No way.");
    }

    #[test]
    fn failures_name_the_line() {
        let error = render("a\n{{ messages[0].x + 1 }}", &[json!({})]).unwrap_err();
        assert!(error.to_string().starts_with("the chat template failed, line 2:"), "{error}");
        let error = ChatTemplate::new("a\n{% if %}").unwrap_err();
        assert!(error.to_string().starts_with("the chat template is not valid, line 2:"), "{error}");
    }

    #[test]
    fn variables_given_and_not_given() {
        let template =
            ChatTemplate::new("{{ eos_token }}{{ tools is none }}{{ enable_thinking is defined }}").unwrap();
        let tokens = SpecialTokens::from([("eos_token".to_owned(), "<e>".to_owned())]);
        let template = template.with_special_tokens(&tokens);
        assert_eq!(template.render(&RenderInput::new(&[])).unwrap(), "<e>TrueFalse");
        let tools = json!([]);
        let input = RenderInput::new(&[]).with_thinking(Some(false)).with_tools(Some(&tools));
        assert_eq!(template.render(&input).unwrap(), "<e>FalseTrue");
    }
}
