//! A checkpoint's tokenizer.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use serde_json::Value;
use tokenizers::AddedToken;

use crate::byte_level::Alphabet;
use crate::tokenizer_file;

/// An error of reading or using a tokenizer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// A file could not be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file is not what its name says.
    #[error("`{file}` is not a usable tokenizer: {message}")]
    Malformed {
        /// The file's name.
        file: &'static str,
        /// The reason.
        message: String,
    },
    /// The vocabulary is not byte-level, as Qwen's is.
    #[error(
        "tokenizer.json: the entry {entry:?} (id {id}) is not written in the byte-level alphabet\n  \
         expected: a byte-level BPE vocabulary, as Qwen3.5 has"
    )]
    NotByteLevel {
        /// The entry.
        entry: String,
        /// Its id.
        id: u32,
    },
    /// A text could not be encoded.
    #[error("cannot tokenize: {message}")]
    Encode {
        /// The message of the `tokenizers` crate.
        message: String,
    },
}

/// The special tokens that `tokenizer_config.json` names, `eos_token` to `<|im_end|>` and so on.
pub type SpecialTokens = BTreeMap<String, String>;

/// A byte-level BPE tokenizer: the `tokenizers` crate encodes text to ids, a byte table decodes ids.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Concatenated bytes of all tokens; token `i` is `bytes[starts[i]..starts[i + 1]]`.
    bytes: Vec<u8>,
    starts: Vec<u32>,
    special: HashSet<u32>,
    special_tokens: SpecialTokens,
    /// Bytes of the tables in `inner`.
    inner_bytes: usize,
}

const SPECIAL_NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

impl Tokenizer {
    /// Reads `tokenizer.json` and, if present, `tokenizer_config.json` of a model's directory.
    ///
    /// # Errors
    /// No such file, or not a byte-level tokenizer.
    pub fn from_dir(dir: &Path) -> Result<Self, TokenizerError> {
        let path = dir.join("tokenizer.json");
        let json = std::fs::read(&path).map_err(|source| TokenizerError::Read { path, source })?;
        let path = dir.join("tokenizer_config.json");
        let config = match std::fs::read(&path) {
            Ok(bytes) => Some(bytes),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(source) => return Err(TokenizerError::Read { path, source }),
        };
        Self::from_bytes(&json, config.as_deref())
    }

    /// Reads the contents of `tokenizer.json` and `tokenizer_config.json`.
    ///
    /// # Errors
    /// Not a byte-level tokenizer.
    pub fn from_bytes(json: &[u8], config: Option<&[u8]>) -> Result<Self, TokenizerError> {
        let malformed = |file, message| TokenizerError::Malformed { file, message };
        let inner = match tokenizer_file::read(json) {
            Some(tokenizer) => tokenizer,
            None => tokenizers::Tokenizer::from_bytes(json)
                .map_err(|error| malformed("tokenizer.json", error.to_string()))?,
        };
        let config: Value = match config {
            None => Value::Null,
            Some(bytes) => serde_json::from_slice(bytes)
                .map_err(|error| malformed("tokenizer_config.json", error.to_string()))?,
        };
        let mut inner = inner;
        // Settings of the training that saved the file: transformers applies them only on request.
        inner.with_padding(None);
        let _ = inner.with_truncation(None);
        let declared =
            added_tokens(&config).map_err(|message| malformed("tokenizer_config.json", message))?;
        add_missing_tokens(&mut inner, &declared)
            .map_err(|message| malformed("tokenizer_config.json", message))?;
        let special_tokens = special_tokens(&config);
        let (bytes, starts, inner_bytes) = byte_table(&inner)?;
        let special = special_ids(&inner, &declared);
        Ok(Self { inner, bytes, starts, special, special_tokens, inner_bytes })
    }

    /// Encodes `text`. Special tokens written in the text (`<|im_start|>`) become their ids; none are added.
    ///
    /// # Errors
    /// The `tokenizers` crate fails.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        match self.inner.encode_fast(text, false) {
            Ok(encoding) => Ok(encoding.get_ids().to_vec()),
            Err(error) => Err(TokenizerError::Encode { message: error.to_string() }),
        }
    }

    /// The text of `ids` without special tokens; bytes that are no UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        let visible = ids.iter().filter(|id| !self.is_special(**id));
        let bytes: Vec<u8> = visible.flat_map(|id| self.bytes_of(*id)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The bytes of token `id`; empty for an id outside the vocabulary.
    pub fn bytes_of(&self, id: u32) -> &[u8] {
        let id = id as usize;
        match (self.starts.get(id), self.starts.get(id + 1)) {
            (Some(start), Some(end)) => &self.bytes[*start as usize..*end as usize],
            _ => &[],
        }
    }

    /// The id of an entry or added token by its exact name, as in `<think>`.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// True if `id` is a control token, which is never shown as text.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }

    /// Largest id plus one. A model may have more rows of logits than that; they are padding.
    pub fn vocab_size(&self) -> usize {
        self.starts.len() - 1
    }

    /// Memory of the tokenizer in bytes. The part of the `tokenizers` crate is estimated from the sizes of its tables,
    /// because the crate does not report it.
    pub fn size_bytes(&self) -> u64 {
        (self.inner_bytes + self.bytes.capacity() + 4 * self.starts.capacity()) as u64
    }

    /// The special tokens by name, for the chat template.
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.special_tokens
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({} tokens)", self.vocab_size())
    }
}

/// Tags of reasoning and tool calls, which replies are parsed by. They are text even where a resaved tokenizer flags them
/// as special.
const TAGS: [&str; 6] =
    ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"];

/// `added_tokens_decoder` of tokenizer_config.json, by ascending id.
fn added_tokens(config: &Value) -> Result<BTreeMap<u32, AddedToken>, String> {
    let Some(declared) = config.get("added_tokens_decoder").and_then(Value::as_object) else {
        return Ok(BTreeMap::new());
    };
    let entry = |(id, token): (&String, &Value)| {
        let id_number = id.parse().map_err(|_| format!("`added_tokens_decoder` has the id {id:?}"))?;
        let content = token.get("content").and_then(Value::as_str);
        let content =
            content.ok_or_else(|| format!("`added_tokens_decoder` has no content for the id {id}"))?;
        let flag = |name: &str| token.get(name).and_then(Value::as_bool).unwrap_or(false);
        let special = flag("special");
        let normalized = token.get("normalized").and_then(Value::as_bool).unwrap_or(!special);
        let token = AddedToken::from(content, special)
            .single_word(flag("single_word"))
            .lstrip(flag("lstrip"))
            .rstrip(flag("rstrip"))
            .normalized(normalized);
        Ok((id_number, token))
    };
    declared.iter().map(entry).collect()
}

/// Adds the tokens that tokenizer_config.json declares and tokenizer.json does not have, as transformers does.
fn add_missing_tokens(
    inner: &mut tokenizers::Tokenizer,
    declared: &BTreeMap<u32, AddedToken>,
) -> Result<(), String> {
    for (id, token) in declared {
        if inner.token_to_id(&token.content).is_some() {
            continue;
        }
        let _ = inner.add_tokens([token.clone()]);
        let found = inner.token_to_id(&token.content);
        if found != Some(*id) {
            let found = found.map_or_else(|| "none".to_owned(), |found| found.to_string());
            return Err(format!(
                "it declares the token {:?}, which tokenizer.json does not have, with an id that is not the next one\n  \
                 expected: {id}\n  found:    {found}",
                token.content
            ));
        }
    }
    Ok(())
}

/// Ids of the tokens that readers never see. The flags of tokenizer_config.json take precedence, as in transformers.
fn special_ids(inner: &tokenizers::Tokenizer, declared: &BTreeMap<u32, AddedToken>) -> HashSet<u32> {
    let added = inner.get_added_tokens_decoder();
    let is_special = |token: &AddedToken| {
        let declared = declared.values().find(|declared| declared.content == token.content);
        declared.map_or(token.special, |declared| declared.special) && !TAGS.contains(&token.content.as_str())
    };
    added.iter().filter(|(_, token)| is_special(token)).map(|(id, _)| *id).collect()
}

/// Special tokens by name. Each value in the config is the token itself or an object with its `content`.
fn special_tokens(config: &Value) -> SpecialTokens {
    let text = |value: &Value| value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned);
    SPECIAL_NAMES.into_iter().filter_map(|name| Some((name.to_owned(), text(config.get(name)?)?))).collect()
}

/// Upper bound of ids; a file with a larger one is damaged.
const LARGEST_ID: u32 = 1 << 24;

/// Returns the concatenated bytes of all tokens, the offset of each, and the estimated bytes of `inner`'s tables.
fn byte_table(inner: &tokenizers::Tokenizer) -> Result<(Vec<u8>, Vec<u32>, usize), TokenizerError> {
    let alphabet = Alphabet::new();
    let added = inner.get_added_tokens_decoder();
    let (mut bytes, mut starts) = (Vec::new(), vec![0u32]);
    let (count, mut found, mut text_bytes, mut last_used) = (inner.get_vocab_size(true), 0, 0, 1);
    for id in 0..LARGEST_ID {
        if found == count {
            break;
        }
        // Unused ids decode to no bytes.
        let entry = inner.id_to_token(id);
        if let Some(entry) = entry {
            found += 1;
            text_bytes += allocated_bytes(&entry);
            match added.get(&id) {
                Some(token) => bytes.extend_from_slice(token.content.as_bytes()),
                None => match alphabet.decode(&entry) {
                    Some(decoded) => bytes.extend(decoded),
                    None => return Err(TokenizerError::NotByteLevel { entry, id }),
                },
            }
            last_used = starts.len() + 1;
        }
        starts.push(bytes.len() as u32);
    }
    // With two entries of one id the loop above runs to its limit.
    starts.truncate(last_used);
    bytes.shrink_to_fit();
    starts.shrink_to_fit();
    // Text to id, id to text, and merges, of which nearly every entry has one.
    let tables = hash_table_bytes(count, 32) + hash_table_bytes(count, 32) + hash_table_bytes(count, 16);
    Ok((bytes, starts, tables + 2 * text_bytes))
}

/// Bytes of a hash table: a power of two of buckets with a load of at most 7/8, and one control byte per bucket.
fn hash_table_bytes(entries: usize, entry_bytes: usize) -> usize {
    (entries * 8 / 7).next_power_of_two() * (entry_bytes + 1)
}

/// Bytes that an allocator reserves for a short text.
fn allocated_bytes(text: &str) -> usize {
    (text.len() + 8).next_multiple_of(16).max(32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 256 single bytes, one merge, two added tokens at ids that leave a hole.
    fn small() -> Tokenizer {
        let letters: Vec<char> = (0..256u32)
            .map(|byte| {
                let alphabet = Alphabet::new();
                (0..0x144u32)
                    .filter_map(char::from_u32)
                    .find(|c| alphabet.decode(&c.to_string()) == Some(vec![byte as u8]))
                    .unwrap()
            })
            .collect();
        let mut vocab: serde_json::Map<String, Value> =
            letters.iter().enumerate().map(|(id, c)| (c.to_string(), id.into())).collect();
        vocab.insert("ab".into(), 256.into());
        let json = serde_json::json!({
            "version": "1.0",
            "added_tokens": [
                {"id": 257, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false,
                 "normalized": false, "special": true},
                {"id": 258, "content": "<think>", "single_word": false, "lstrip": false, "rstrip": false,
                 "normalized": false, "special": false},
            ],
            "normalizer": null, "post_processor": null,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "vocab": vocab, "merges": ["a b"]},
        });
        let config = br#"{"eos_token": {"content": "<|end|>"}, "bos_token": null, "pad_token": "ab"}"#;
        Tokenizer::from_bytes(json.to_string().as_bytes(), Some(config)).unwrap()
    }

    #[test]
    fn text_goes_in_and_comes_out() {
        let tokenizer = small();
        for text in ["ab c", "🦀 世界\n", "<think>x"] {
            assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap()), text);
        }
        assert_eq!(tokenizer.encode("ab<|end|>").unwrap(), [256, 257]);
        assert_eq!(tokenizer.decode(&[256, 257]), "ab", "special tokens give no text");
        assert_eq!(tokenizer.bytes_of(257), b"<|end|>");
        assert_eq!(tokenizer.bytes_of(9999), b"");
        assert_eq!((tokenizer.vocab_size(), tokenizer.id_of("<think>")), (259, Some(258)));
    }

    /// [`small`] as JSON, and its tokenizer_config.json, for changes.
    fn with_changes(change: impl FnOnce(&mut Value), config: Value) -> Result<Tokenizer, TokenizerError> {
        let mut json: Value = serde_json::from_str(&small().inner.to_string(false).unwrap()).unwrap();
        change(&mut json);
        Tokenizer::from_bytes(json.to_string().as_bytes(), Some(config.to_string().as_bytes()))
    }

    #[test]
    fn saved_truncation_and_padding_are_not_applied() {
        let truncation = serde_json::json!(
            {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0});
        let padding = serde_json::json!({"strategy": {"Fixed": 8}, "direction": "Left", "pad_to_multiple_of": null,
            "pad_id": 257, "pad_type_id": 0, "pad_token": "<|end|>"});
        let change = |json: &mut Value| {
            json["truncation"] = truncation;
            json["padding"] = padding;
        };
        let tokenizer = with_changes(change, serde_json::json!({})).unwrap();
        assert_eq!(tokenizer.encode("abcdef").unwrap(), small().encode("abcdef").unwrap());
        assert_eq!(tokenizer.encode("c").unwrap().len(), 1);
    }

    #[test]
    fn tags_of_reasoning_are_text_although_flagged_as_special() {
        let change = |json: &mut Value| json["added_tokens"][1]["special"] = true.into();
        let tokenizer = with_changes(change, serde_json::json!({})).unwrap();
        assert!(!tokenizer.is_special(258) && tokenizer.is_special(257));
        assert_eq!(tokenizer.decode(&[258]), "<think>");
    }

    #[test]
    fn tokens_of_the_config_alone_are_added_at_the_next_id() {
        let token = |content: &str, special: bool| {
            serde_json::json!({"content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": special})
        };
        let config = serde_json::json!({"added_tokens_decoder": {
            "259": token("<new>", false), "260": token("<|other|>", true), "257": token("<|end|>", false)}});
        let tokenizer = with_changes(|_| {}, config).unwrap();
        assert_eq!(tokenizer.encode("<new>").unwrap(), [259]);
        assert_eq!(
            (tokenizer.vocab_size(), tokenizer.decode(&[259, 260, 257])),
            (261, "<new><|end|>".to_owned())
        );
        let config = serde_json::json!({"added_tokens_decoder": {"300": token("<far>", false)}});
        let error = with_changes(|_| {}, config).unwrap_err().to_string();
        assert!(error.contains("\"<far>\"") && error.contains("expected: 300"), "{error}");
    }

    #[test]
    fn special_tokens_are_strings_objects_or_absent() {
        let tokens = small().special_tokens().clone();
        assert_eq!(tokens.get("eos_token").map(String::as_str), Some("<|end|>"));
        assert_eq!(tokens.get("pad_token").map(String::as_str), Some("ab"));
        assert!(!tokens.contains_key("bos_token"));
    }

    #[test]
    fn other_vocabularies_are_refused() {
        let json = serde_json::json!({
            "version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null,
            "post_processor": null, "decoder": null,
            "model": {"type": "WordLevel", "vocab": {"two words": 0}, "unk_token": "two words"},
        });
        let error = Tokenizer::from_bytes(json.to_string().as_bytes(), None).unwrap_err();
        assert!(matches!(error, TokenizerError::NotByteLevel { id: 0, .. }), "{error}");
        let error = Tokenizer::from_bytes(b"{", None).unwrap_err();
        assert!(error.to_string().starts_with("`tokenizer.json` is not a usable tokenizer"), "{error}");
    }
}
