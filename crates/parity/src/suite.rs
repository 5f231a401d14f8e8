//! The texts on which models are compared.

use serde::Deserialize;

/// A list of texts and conversations, the format of `manifests/suite.json`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Suite {
    /// Version of the file format: 1.
    pub schema_version: u32,
    /// Purpose of the suite.
    pub description: String,
    /// The texts and conversations.
    pub items: Vec<SuiteItem>,
}

/// One text or conversation.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SuiteItem {
    /// Unique name.
    pub name: String,
    /// Kind of text: "chat", "prose", "code", "numbers", "scripts", "long".
    pub kind: String,
    /// A plain text; an item has either this or `messages`.
    #[serde(default)]
    pub text: Option<String>,
    /// A conversation, rendered with the checkpoint's chat template.
    #[serde(default)]
    pub messages: Option<serde_json::Value>,
    /// True if the template is rendered with thinking enabled.
    #[serde(default)]
    pub thinking: bool,
    /// Largest number of tokens; the rest is cut off.
    #[serde(default)]
    pub max_tokens: Option<usize>,
    /// Number of tokens at the end whose logits are compared; all if absent.
    #[serde(default)]
    pub scored_tail: Option<usize>,
    /// True if it belongs to the short suite, which is run after a conversion.
    #[serde(default)]
    pub short: bool,
    /// True if greedy continuations are compared on it.
    #[serde(default)]
    pub greedy: bool,
}

/// A checkpoint's tokenizer and chat template.
pub trait TextEncoder {
    /// Token ids of a text, without special tokens added.
    ///
    /// # Errors
    /// The tokenizer's message.
    fn encode(&self, text: &str) -> Result<Vec<u32>, String>;

    /// Renders messages (a JSON array of role and content) with the chat template, generation prompt included.
    ///
    /// # Errors
    /// The template's message.
    fn render(&self, messages: &serde_json::Value, thinking: bool) -> Result<String, String>;
}

/// A sequence of tokens on which models are compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// Name of the suite item.
    pub name: String,
    /// Kind of text.
    pub kind: String,
    /// Its tokens.
    pub ids: Vec<u32>,
    /// First position whose logits are compared.
    pub scored_from: usize,
    /// True if greedy continuations are compared on it.
    pub greedy: bool,
}

impl Prompt {
    /// A prompt with all positions compared.
    pub fn new(name: impl Into<String>, kind: impl Into<String>, ids: Vec<u32>) -> Self {
        Self { name: name.into(), kind: kind.into(), ids, scored_from: 0, greedy: false }
    }

    /// Number of positions that are compared.
    pub fn scored(&self) -> usize {
        self.ids.len().saturating_sub(self.scored_from)
    }
}

/// A suite that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SuiteError {
    /// Not JSON of this format.
    #[error("not a suite: {0}")]
    Json(#[from] serde_json::Error),
    /// An unsupported version.
    #[error("a suite of schema version {found}; this program reads version 1")]
    Version {
        /// The file's version.
        found: u32,
    },
    /// An invalid item, or one that the tokenizer or template rejects.
    #[error("suite item `{item}`: {message}")]
    Item {
        /// Its name.
        item: String,
        /// The problem.
        message: String,
    },
}

impl Suite {
    /// Reads a suite.
    ///
    /// # Errors
    /// Not JSON of this format or version, an item with both or neither of `text` and `messages`, a name used twice.
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

    /// All plain texts, separated by blank lines: a text for perplexity.
    pub fn plain_text(&self) -> String {
        self.items.iter().filter_map(|item| item.text.as_deref()).collect::<Vec<_>>().join("\n\n")
    }

    /// Tokenizes the short items for a quick check: every prompt is cut to the same number of compared positions, at most
    /// `max_positions` in total, so that all kinds of text have the same weight.
    ///
    /// # Errors
    /// The tokenizer or the template fails on an item.
    pub fn quick_prompts(
        &self,
        encoder: &dyn TextEncoder,
        max_positions: usize,
    ) -> Result<Vec<Prompt>, SuiteError> {
        let mut prompts = self.prompts(encoder, true, None)?;
        let share = max_positions / prompts.len().max(1);
        for prompt in &mut prompts {
            prompt.ids.truncate(prompt.scored_from + share.max(2));
        }
        Ok(prompts)
    }

    /// Tokenizes all items, or the short ones. At most `max_positions` positions are compared in total: the prompt that
    /// exceeds it is cut, later ones are left out.
    ///
    /// # Errors
    /// The tokenizer or the template fails on an item.
    pub fn prompts(
        &self,
        encoder: &dyn TextEncoder,
        short: bool,
        max_positions: Option<usize>,
    ) -> Result<Vec<Prompt>, SuiteError> {
        let mut remaining = max_positions.unwrap_or(usize::MAX);
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
            if scored > remaining {
                ids.truncate(scored_from + remaining);
            }
            remaining -= scored.min(remaining);
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

    /// One token per byte; the template writes one line per message.
    struct ByteEncoder;

    impl TextEncoder for ByteEncoder {
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
        let prompts = suite.prompts(&ByteEncoder, false, None).unwrap();
        assert_eq!((prompts[0].ids.len(), prompts[0].scored_from, prompts[0].scored()), (8, 5, 3));
        assert_eq!(prompts[1].ids.len(), 5);
        assert_eq!(suite.plain_text(), "0123456789");
        assert_eq!(suite.prompts(&ByteEncoder, true, None).unwrap().len(), 1);
        let quick = suite.quick_prompts(&ByteEncoder, 3).unwrap();
        assert_eq!(quick.iter().map(Prompt::scored).collect::<Vec<_>>(), [3]);
        let cut = suite.prompts(&ByteEncoder, false, Some(5)).unwrap();
        assert_eq!(cut.iter().map(Prompt::scored).collect::<Vec<_>>(), [3, 2]);
        assert_eq!(suite.prompts(&ByteEncoder, false, Some(2)).unwrap().len(), 1);
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
