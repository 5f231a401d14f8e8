//! Location of the template in a model's directory.

use std::path::Path;

use serde_json::Value as Json;

use super::{BUILT_IN_TEMPLATE, ChatTemplate, TemplateError};
use crate::SpecialTokens;

impl ChatTemplate {
    /// Opens the template of a model's directory: `chat_template.jinja`, or else `chat_template` in
    /// `tokenizer_config.json` (a string, or a list of named templates with one called `default`), or else
    /// [`BUILT_IN_TEMPLATE`].
    ///
    /// # Errors
    /// A file cannot be read, or the template is not valid.
    pub fn from_dir(dir: &Path, tokens: &SpecialTokens) -> Result<Self, TemplateError> {
        let source = match read(&dir.join("chat_template.jinja"))? {
            Some(source) => source,
            None => read(&dir.join("tokenizer_config.json"))?
                .and_then(|config| from_config(&config))
                .unwrap_or_else(|| BUILT_IN_TEMPLATE.to_owned()),
        };
        Ok(Self::new(&source)?.with_special_tokens(tokens))
    }
}

fn read(path: &Path) -> Result<Option<String>, TemplateError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TemplateError::Read { path: path.to_owned(), source }),
    }
}

fn from_config(config: &str) -> Option<String> {
    let config: Json = serde_json::from_str(config).ok()?;
    let template = config.get("chat_template")?;
    if let Some(named) = template.as_array() {
        let default =
            named.iter().find(|entry| entry.get("name").and_then(Json::as_str) == Some("default"))?;
        return default.get("template")?.as_str().map(str::to_owned);
    }
    template.as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_in_a_tokenizer_config() {
        assert_eq!(from_config(r#"{"chat_template": "x"}"#).as_deref(), Some("x"));
        let named = r#"{"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}"#;
        assert_eq!(from_config(named).as_deref(), Some("d"));
        assert_eq!(from_config("{}"), None);
    }
}
