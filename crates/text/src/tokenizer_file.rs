//! Fast reader of tokenizer.json.
//!
//! The `tokenizers` crate deserializes an untagged model: into a tree of JSON values first, then into each model type
//! in turn until one fits. With a vocabulary of a quarter of a million entries this costs most of a second and several
//! times the memory of the tokenizer. Here the model type is known to be BPE, so the large tables are deserialized
//! directly. A file with other fields than those of a BPE model is left to the crate.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Value, json};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::{AddedToken, Tokenizer};

#[derive(Deserialize)]
struct File {
    version: Value,
    #[serde(default)]
    truncation: Value,
    #[serde(default)]
    padding: Value,
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    model: Model,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Model {
    r#type: String,
    #[serde(default)]
    dropout: Option<f32>,
    #[serde(default)]
    unk_token: Option<String>,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
    #[serde(default)]
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    fuse_unk: bool,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    vocab: Entries,
    merges: Vec<Merge>,
}

/// Ids by token text.
struct Entries(Vocab);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Vocab;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a vocabulary")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vocab, A::Error> {
                let mut vocab = Vocab::default();
                while let Some((text, id)) = map.next_entry::<String, u32>()? {
                    vocab.insert(text, id);
                }
                Ok(vocab)
            }
        }
        deserializer.deserialize_map(Read).map(Self)
    }
}

/// A BPE merge of two entries: `["a", "b"]`, or `"a b"` in older files.
struct Merge(String, String);

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Merge;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("two entries")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Merge, E> {
                match text.split(' ').collect::<Vec<_>>()[..] {
                    [a, b] => Ok(Merge(a.to_owned(), b.to_owned())),
                    _ => Err(E::custom("not two entries")),
                }
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Merge, A::Error> {
                match (seq.next_element()?, seq.next_element()?, seq.next_element::<String>()?) {
                    (Some(a), Some(b), None) => Ok(Merge(a, b)),
                    _ => Err(serde::de::Error::custom("not two entries")),
                }
            }
        }
        deserializer.deserialize_any(Read)
    }
}

/// Reads the tokenizer in `json`; `None` if the `tokenizers` crate must read it, or refuse it with its own message.
pub(crate) fn read(json: &[u8]) -> Option<Tokenizer> {
    let File {
        version,
        truncation,
        padding,
        added_tokens,
        normalizer,
        pre_tokenizer,
        post_processor,
        decoder,
        model,
    } = serde_json::from_slice(json).ok()?;
    if model.r#type != "BPE" {
        return None;
    }
    let mut builder = BPE::builder()
        .vocab_and_merges(model.vocab.0, model.merges.into_iter().map(|merge| (merge.0, merge.1)).collect())
        .fuse_unk(model.fuse_unk)
        .byte_fallback(model.byte_fallback)
        .ignore_merges(model.ignore_merges);
    if let Some(dropout) = model.dropout {
        builder = builder.dropout(dropout);
    }
    if let Some(token) = model.unk_token {
        builder = builder.unk_token(token);
    }
    if let Some(prefix) = model.continuing_subword_prefix {
        builder = builder.continuing_subword_prefix(prefix);
    }
    if let Some(suffix) = model.end_of_word_suffix {
        builder = builder.end_of_word_suffix(suffix);
    }
    // The rest is small and goes through the crate.
    let rest = json!({
        "version": version, "truncation": truncation, "padding": padding, "added_tokens": [],
        "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": post_processor,
        "decoder": decoder, "model": {"type": "BPE", "vocab": {}, "merges": []},
    });
    let mut tokenizer = Tokenizer::from_bytes(rest.to_string()).ok()?;
    tokenizer.with_model(builder.build().ok()?);
    tokenizer.add_tokens(added_tokens).ok()?;
    Some(tokenizer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(merges: Value) -> Value {
        json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": [
                {"id": 4, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false,
                 "normalized": false, "special": true},
                {"id": 1, "content": "b", "single_word": false, "lstrip": true, "rstrip": false,
                 "normalized": true, "special": false},
            ],
            "normalizer": {"type": "NFC"}, "post_processor": null,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
                "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "ignore_merges": true,
                "vocab": {"a": 0, "b": 1, "c": 2, "ac": 3}, "merges": merges,
            },
        })
    }

    #[test]
    fn read_as_the_crate_reads_it() {
        for merges in [json!(["a c"]), json!([["a", "c"]])] {
            let json = file(merges).to_string();
            let ours = read(json.as_bytes()).unwrap();
            let theirs = Tokenizer::from_bytes(json.as_bytes()).unwrap();
            assert_eq!(ours.to_string(false).unwrap(), theirs.to_string(false).unwrap());
            let ids = |tokenizer: &Tokenizer| {
                tokenizer.encode_fast("acb a<|end|>c", false).unwrap().get_ids().to_vec()
            };
            assert_eq!(ids(&ours), ids(&theirs));
        }
    }

    #[test]
    fn other_forms_are_left_to_the_crate() {
        let mut unknown = file(json!([]));
        unknown["model"]["window"] = json!(3);
        let mut other = file(json!([]));
        other["model"]["type"] = json!("Unigram");
        for json in [unknown, other, file(json!(["a c b"])), file(json!([["a", "x"]])), json!({})] {
            assert!(read(json.to_string().as_bytes()).is_none(), "{json}");
        }
    }
}
