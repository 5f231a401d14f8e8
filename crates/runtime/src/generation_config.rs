//! `generation_config.json` of a model's directory: the ids that end a reply, and sampling settings.

use std::path::Path;

use serde_json::Value;

use crate::ChatError;

const FILE: &str = "generation_config.json";

/// A valid generation_config.json.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct GenerationConfig {
    /// The file's contents; null where there is no file.
    pub(crate) json: Value,
    /// Ids of `eos_token_id`, which may be a number or a list.
    pub(crate) end_ids: Vec<u32>,
}

/// Sampling settings with the values that are accepted. Null means absent.
type Check = (&'static str, fn(&Value) -> bool, &'static str);
const SAMPLING: [Check; 6] = [
    ("do_sample", Value::is_boolean, "true or false"),
    ("temperature", |value| number(value).is_some_and(|n| n >= 0.0), "a number from 0"),
    ("top_k", |value| value.as_u64().is_some(), "a whole number from 0"),
    ("top_p", |value| number(value).is_some_and(|n| n > 0.0 && n <= 1.0), "a number above 0, at most 1"),
    ("min_p", |value| number(value).is_some_and(|n| (0.0..=1.0).contains(&n)), "a number from 0 to 1"),
    ("repetition_penalty", |value| number(value).is_some_and(|n| n > 0.0), "a number above 0"),
];

fn number(value: &Value) -> Option<f64> {
    value.as_f64().filter(|number| number.is_finite())
}

impl GenerationConfig {
    /// Reads the file in `dir`, for a tokenizer with `vocab_size` ids. Where it names no end of reply, config.json does,
    /// as in transformers.
    ///
    /// # Errors
    /// The file is not a JSON object, or a setting that is used has an invalid value.
    pub(crate) fn from_dir(dir: &Path, vocab_size: usize) -> Result<Self, ChatError> {
        let invalid = |message: String| ChatError::GenerationConfig { path: dir.join(FILE), message };
        let json = match std::fs::read(dir.join(FILE)) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| invalid(error.to_string()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Value::Null,
            Err(source) => return Err(ChatError::File { path: dir.join(FILE), source }),
        };
        if !json.is_object() && !json.is_null() {
            return Err(invalid("it is not a JSON object".to_owned()));
        }
        for (key, accepts, expected) in SAMPLING {
            if let Some(found) = json.get(key).filter(|value| !value.is_null() && !accepts(value)) {
                return Err(invalid(format!("`{key}`\n  expected: {expected}\n  found:    {found}")));
            }
        }
        let end_ids = match json.get("eos_token_id") {
            None | Some(Value::Null) => model_end_ids(dir, vocab_size),
            Some(value) => ids(value, vocab_size).ok_or_else(|| {
                invalid(format!(
                    "`eos_token_id`\n  expected: an id below {vocab_size}, or a list of them\n  found:    {value}"
                ))
            })?,
        };
        Ok(Self { json, end_ids })
    }
}

/// An id or a list of ids, all within the vocabulary.
fn ids(value: &Value, vocab_size: usize) -> Option<Vec<u32>> {
    let id = |value: &Value| value.as_u64().filter(|id| *id < vocab_size as u64).map(|id| id as u32);
    match value {
        Value::Array(list) => list.iter().map(id).collect(),
        other => id(other).map(|id| vec![id]),
    }
}

/// `eos_token_id` of config.json. The file has been checked when the model was opened; here it only supplements.
fn model_end_ids(dir: &Path, vocab_size: usize) -> Vec<u32> {
    let config: Option<Value> =
        std::fs::read(dir.join("config.json")).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let Some(config) = config else { return Vec::new() };
    let sections = [Some(&config), config.get("text_config")];
    sections
        .into_iter()
        .flatten()
        .filter_map(|section| section.get("eos_token_id"))
        .find_map(|value| ids(value, vocab_size))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<GenerationConfig, String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), text).unwrap();
        GenerationConfig::from_dir(dir.path(), 300).map_err(|error| error.to_string())
    }

    #[test]
    fn one_id_or_several_end_a_reply() {
        assert_eq!(read(r#"{"eos_token_id": 7}"#).unwrap().end_ids, [7]);
        assert_eq!(read(r#"{"eos_token_id": [7, 299], "temperature": null}"#).unwrap().end_ids, [7, 299]);
        assert_eq!(read("{}").unwrap().end_ids, [0u32; 0]);
    }

    #[test]
    fn config_json_names_the_end_where_there_is_no_file() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), r#"{"text_config": {"eos_token_id": 9}}"#).unwrap();
        let config = GenerationConfig::from_dir(dir.path(), 300).unwrap();
        assert_eq!((config.json, config.end_ids), (Value::Null, vec![9]));
    }

    #[test]
    fn broken_files_and_absurd_values_are_errors() {
        for (text, message) in [
            ("{", "EOF"),
            ("[]", "not a JSON object"),
            (r#"{"eos_token_id": 300}"#, "an id below 300"),
            (r#"{"eos_token_id": [1, -1]}"#, "found:    [1,-1]"),
            (r#"{"eos_token_id": "<|im_end|>"}"#, "`eos_token_id`"),
            (r#"{"temperature": "hot"}"#, "`temperature`"),
            (r#"{"temperature": -1}"#, "a number from 0"),
            (r#"{"top_p": 0}"#, "`top_p`"),
            (r#"{"top_k": 2.5}"#, "`top_k`"),
            (r#"{"repetition_penalty": 0}"#, "`repetition_penalty`"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(message) && error.contains(FILE), "{text}: {error}");
        }
    }
}
