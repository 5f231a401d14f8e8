//! Files of a model's directory that may hold its chat template.

use std::path::Path;

use serde_json::Value as Json;

use super::{BUILT_IN_TEMPLATE, ChatTemplate, TemplateError};
use crate::SpecialTokens;

/// The templates of a model.
#[derive(Debug, Default, PartialEq, Eq)]
struct Located {
    default: Option<String>,
    /// The template for conversations with tools, where it is a separate one.
    tool_use: Option<String>,
}

impl ChatTemplate {
    /// The template of a model's directory, from the first of these places, as transformers looks for it:
    ///
    /// 1. `chat_template.jinja`, with `additional_chat_templates/tool_use.jinja` for conversations with tools
    /// 2. `chat_template` in `chat_template.json`, as older processors saved it
    /// 3. `chat_template` in `tokenizer_config.json`: a text, or a list of named ones, of which `default` and `tool_use`
    ///    count
    ///
    /// A directory without any has [`BUILT_IN_TEMPLATE`]; [`ChatTemplate::is_built_in`] tells.
    ///
    /// # Errors
    /// A file cannot be read or parsed, has a template in no known form, or the template is not valid.
    pub fn from_dir(dir: &Path, tokens: &SpecialTokens) -> Result<Self, TemplateError> {
        let mut located = Located { default: read(&dir.join("chat_template.jinja"))?, tool_use: None };
        if located.default.is_some() {
            located.tool_use = read(&dir.join("additional_chat_templates/tool_use.jinja"))?;
        }
        for name in ["chat_template.json", "tokenizer_config.json"] {
            let path = dir.join(name);
            if located.default.is_none()
                && let Some(text) = read(&path)?
            {
                located = from_json(&text)
                    .map_err(|message| TemplateError::Malformed { path: path.clone(), message })?;
            }
        }
        let source = located.default.as_deref().unwrap_or(BUILT_IN_TEMPLATE);
        let template = Self::new(source)?.with_special_tokens(tokens);
        match located.tool_use {
            Some(tool_use) => template.with_tool_template(&tool_use),
            None => Ok(template),
        }
    }
}

fn read(path: &Path) -> Result<Option<String>, TemplateError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TemplateError::Read { path: path.to_owned(), source }),
    }
}

/// The templates under `chat_template` of a JSON file.
fn from_json(text: &str) -> Result<Located, String> {
    let json: Json = serde_json::from_str(text).map_err(|error| error.to_string())?;
    match json.get("chat_template") {
        None | Some(Json::Null) => Ok(Located::default()),
        Some(Json::String(template)) => Ok(Located { default: Some(template.clone()), tool_use: None }),
        Some(Json::Array(named)) => {
            let template = |name: &str| {
                let entry = named.iter().find(|entry| entry.get("name").and_then(Json::as_str) == Some(name));
                entry.and_then(|entry| entry.get("template")).and_then(Json::as_str).map(str::to_owned)
            };
            let default = template("default").ok_or_else(|| {
                let names: Vec<&str> =
                    named.iter().filter_map(|entry| entry.get("name").and_then(Json::as_str)).collect();
                format!(
                    "its list of chat templates has no `default`\n  found:    {}\nhint: choose one with a template file",
                    names.join(", ")
                )
            })?;
            Ok(Located { default: Some(default), tool_use: template("tool_use") })
        }
        Some(other) => Err(format!("`chat_template` is neither a text nor a list of named ones: {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RenderInput;

    #[test]
    fn templates_in_json_files() {
        let text = |template: &str| Some(template.to_owned());
        let located = from_json(r#"{"chat_template": "x"}"#).unwrap();
        assert_eq!(located, Located { default: text("x"), tool_use: None });
        let named = r#"{"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}"#;
        assert_eq!(from_json(named).unwrap(), Located { default: text("d"), tool_use: text("t") });
        assert_eq!(from_json("{}").unwrap(), Located::default());
        for (json, message) in [
            ("{", "EOF"),
            (r#"{"chat_template": [{"name": "rag", "template": "t"}]}"#, "no `default`\n  found:    rag"),
            (r#"{"chat_template": 3}"#, "neither a text nor a list"),
        ] {
            assert!(from_json(json).unwrap_err().contains(message), "{json}");
        }
    }

    #[test]
    fn the_first_file_with_a_template_counts() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let source = || {
            let template = ChatTemplate::from_dir(dir.path(), &SpecialTokens::new()).unwrap();
            (template.source().to_owned(), template.is_built_in())
        };
        assert!(source().1);
        write("tokenizer_config.json", r#"{"chat_template": "config"}"#);
        assert_eq!(source(), ("config".to_owned(), false));
        write("chat_template.json", r#"{"chat_template": "json"}"#);
        assert_eq!(source().0, "json");
        write("chat_template.jinja", "jinja");
        assert_eq!(source().0, "jinja");
    }

    #[test]
    fn a_broken_tokenizer_config_is_an_error_and_not_the_built_in_template() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tokenizer_config.json"), "{").unwrap();
        let error = ChatTemplate::from_dir(dir.path(), &SpecialTokens::new()).unwrap_err().to_string();
        assert!(error.contains("tokenizer_config.json"), "{error}");
    }

    #[test]
    fn conversations_with_tools_have_the_tool_template() {
        let dir = tempfile::tempdir().unwrap();
        let named = r#"{"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}"#;
        std::fs::write(dir.path().join("tokenizer_config.json"), named).unwrap();
        let template = ChatTemplate::from_dir(dir.path(), &SpecialTokens::new()).unwrap();
        let tools = serde_json::json!([]);
        let input = RenderInput::new(&[]);
        assert_eq!(template.render(&input).unwrap(), "d");
        assert_eq!(template.render(&input.with_tools(Some(&tools))).unwrap(), "t");
    }
}
