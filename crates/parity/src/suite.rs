//! The texts that a model is judged on.

use serde::Deserialize;

/// Texts and conversations, as `manifests/suite.json` holds them.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Suite {
    /// Version of this file's form: 1.
    pub schema_version: u32,
    /// What the suite is for, to people.
    pub description: String,
    /// The texts.
    pub items: Vec<SuiteItem>,
}

/// One text or conversation.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SuiteItem {
    /// Unique name.
    pub name: String,
    /// What it exercises: "chat", "prose", "code", "numbers", "scripts", "long".
    pub kind: String,
    /// The text as it is; or
    #[serde(default)]
    pub text: Option<String>,
    /// a conversation, rendered with the checkpoint's own template.
    #[serde(default)]
    pub messages: Option<serde_json::Value>,
    /// Whether the template is asked for thinking.
    #[serde(default)]
    pub thinking: bool,
    /// At most so many tokens are taken, from the beginning.
    #[serde(default)]
    pub max_tokens: Option<usize>,
    /// Logits are compared for so many tokens at the end; for all if absent.
    #[serde(default)]
    pub scored_tail: Option<usize>,
    /// Whether it belongs to the short suite that follows a conversion.
    #[serde(default)]
    pub short: bool,
    /// Whether greedy continuation is tried on it.
    #[serde(default)]
    pub greedy: bool,
}

/// Turns text into tokens: the checkpoint's tokenizer and chat template.
pub trait TextEncoder {
    /// Token ids of a text, without special tokens added.
    ///
    /// # Errors
    /// The tokenizer's own words.
    fn encode(&self, text: &str) -> Result<Vec<u32>, String>;

    /// The prompt that the chat template makes of messages (a JSON array of role and content), with the beginning
    /// of the assistant's turn.
    ///
    /// # Errors
    /// The template's own words.
    fn render(&self, messages: &serde_json::Value, thinking: bool) -> Result<String, String>;
}

/// A sequence of tokens to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// The item's name.
    pub name: String,
    /// What it exercises.
    pub kind: String,
    /// Its tokens.
    pub ids: Vec<u32>,
    /// Logits are compared from this position on.
    pub scored_from: usize,
    /// Whether greedy continuation is tried on it.
    pub greedy: bool,
}

impl Prompt {
    /// A prompt of which every position is compared.
    pub fn new(name: impl Into<String>, kind: impl Into<String>, ids: Vec<u32>) -> Self {
        Self { name: name.into(), kind: kind.into(), ids, scored_from: 0, greedy: false }
    }

    /// Positions that are compared.
    pub fn scored(&self) -> usize {
        self.ids.len().saturating_sub(self.scored_from)
    }
}

/// Why a suite cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SuiteError {
    /// Not the JSON that a suite is.
    #[error("not a suite: {0}")]
    Json(#[from] serde_json::Error),
    /// Another version.
    #[error("a suite of schema version {found}; this program reads version 1")]
    Version {
        /// The file's version.
        found: u32,
    },
    /// An item that cannot be turned into tokens.
    #[error("suite item `{item}`: {message}")]
    Item {
        /// Its name.
        item: String,
        /// What is wrong.
        message: String,
    },
}

impl Suite {
    /// Reads a suite.
    ///
    /// # Errors
    /// Not JSON of this form or version, an item with both or neither of `text` and `messages`, a name used twice.
    pub fn from_json(text: &str) -> Result<Self, SuiteError> {
        let suite: Self = serde_json::from_str(text)?;
        if suite.schema_version != 1 {
            return Err(SuiteError::Version { found: suite.schema_version });
        }
        for (index, item) in suite.items.iter().enumerate() {
            let fail =
                |message: &str| SuiteError::Item { item: item.name.clone(), message: message.to_owned() };
            if item.text.is_some() == item.messages.is_some() {
                return Err(fail("needs either `text` or `messages`"));
            }
            if suite.items[..index].iter().any(|other| other.name == item.name) {
                return Err(fail("the name is used twice"));
            }
        }
        Ok(suite)
    }

    /// The prompts that this tokenizer makes of the suite: of all items, or of the short ones. At most
    /// `most_positions` are compared in all; the prompts beyond are left out, the last one is cut.
    ///
    /// # Errors
    /// The tokenizer or the template fails on an item.
    pub fn prompts(
        &self,
        encoder: &dyn TextEncoder,
        short: bool,
        most_positions: Option<usize>,
    ) -> Result<Vec<Prompt>, SuiteError> {
        let mut left = most_positions.unwrap_or(usize::MAX);
        let mut prompts = Vec::new();
        for item in self.items.iter().filter(|item| item.short || !short) {
            let fail = |message: String| SuiteError::Item { item: item.name.clone(), message };
            let text = match (&item.text, &item.messages) {
                (Some(text), _) => text.clone(),
                (None, Some(messages)) => encoder.render(messages, item.thinking).map_err(fail)?,
                (None, None) => return Err(fail("needs either `text` or `messages`".into())),
            };
            let mut ids = encoder.encode(&text).map_err(fail)?;
            ids.truncate(item.max_tokens.unwrap_or(usize::MAX));
            let scored = item.scored_tail.unwrap_or(ids.len()).min(ids.len());
            let scored_from = ids.len() - scored;
            if scored > left {
                ids.truncate(scored_from + left);
            }
            left -= scored.min(left);
            if ids.len() >= 2 && ids.len() > scored_from {
                prompts.push(Prompt {
                    name: item.name.clone(),
                    kind: item.kind.clone(),
                    ids,
                    scored_from,
                    greedy: item.greedy,
                });
            }
        }
        Ok(prompts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A token a byte; the template is a line a message.
    struct Bytes;

    impl TextEncoder for Bytes {
        fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
            Ok(text.bytes().map(u32::from).collect())
        }

        fn render(&self, messages: &serde_json::Value, _thinking: bool) -> Result<String, String> {
            let messages = messages.as_array().ok_or("not a list")?;
            Ok(messages.iter().filter_map(|m| m["content"].as_str()).collect::<Vec<_>>().join("\n"))
        }
    }

    fn suite(items: &str) -> Result<Suite, SuiteError> {
        Suite::from_json(&format!(r#"{{"schema_version": 1, "description": "", "items": [{items}]}}"#))
    }

    #[test]
    fn items_become_prompts() {
        let suite = suite(
            r#"{"name": "a", "kind": "prose", "text": "0123456789", "max_tokens": 8, "scored_tail": 3},
               {"name": "b", "kind": "chat", "messages": [{"role": "user", "content": "hello"}], "short": true}"#,
        )
        .unwrap();
        let prompts = suite.prompts(&Bytes, false, None).unwrap();
        assert_eq!((prompts[0].ids.len(), prompts[0].scored_from, prompts[0].scored()), (8, 5, 3));
        assert_eq!(prompts[1].ids.len(), 5);
        assert_eq!(suite.prompts(&Bytes, true, None).unwrap().len(), 1);
        let cut = suite.prompts(&Bytes, false, Some(5)).unwrap();
        assert_eq!(cut.iter().map(Prompt::scored).collect::<Vec<_>>(), [3, 2]);
        assert_eq!(suite.prompts(&Bytes, false, Some(2)).unwrap().len(), 1);
    }

    #[test]
    fn malformed_suites_are_refused() {
        let cases = [
            (r#"{"name": "a", "kind": "x"}"#, "needs either `text` or `messages`"),
            (r#"{"name": "a", "kind": "x", "text": "t", "messages": []}"#, "needs either"),
            (
                r#"{"name": "a", "kind": "x", "text": "t"}, {"name": "a", "kind": "x", "text": "t"}"#,
                "the name is used twice",
            ),
            (r#"{"name": "a", "kind": "x", "text": "t", "colour": 1}"#, "unknown field `colour`"),
        ];
        for (items, expected) in cases {
            let error = suite(items).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let version = Suite::from_json(r#"{"schema_version": 2, "description": "", "items": []}"#);
        assert!(version.unwrap_err().to_string().contains("version 2"));
    }
}
