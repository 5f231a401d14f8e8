//! A byte tokenizer, as the tokenizer files of a Hugging Face checkpoint.

use std::path::Path;

use serde_json::{Map, Value, json};

/// Id of `<|endoftext|>`.
pub const END_OF_TEXT: u32 = 256;
/// Id of `<|im_start|>`.
pub const MESSAGE_START: u32 = 257;
/// Id of `<|im_end|>`.
pub const MESSAGE_END: u32 = 258;

/// Added tokens from id 256 on; true for special ones.
const ADDED_TOKENS: [(&str, bool); 9] = [
    ("<|endoftext|>", true),
    ("<|im_start|>", true),
    ("<|im_end|>", true),
    ("<tool_call>", false),
    ("</tool_call>", false),
    ("<tool_response>", false),
    ("</tool_response>", false),
    ("<think>", false),
    ("</think>", false),
];

const CHAT_TEMPLATE: &str = "{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if enable_thinking is defined and enable_thinking is false -%}{{- '<think>\\n\\n</think>\\n\\n' -}}
{%- else -%}{{- '<think>\\n' -}}{%- endif -%}
{%- endif -%}
";

/// Writes tokenizer.json, tokenizer_config.json, generation_config.json and chat_template.jinja: byte `b` is token
/// `b`, then come the special tokens of the Qwen3.5 chat format.
///
/// # Panics
/// The directory cannot be written.
pub fn write_tokenizer(dir: &Path) {
    let vocab: Map<String, Value> =
        (0..=255u8).map(|byte| (visible(byte).to_string(), Value::from(byte))).collect();
    let added = |(index, (content, special)): (usize, &(&str, bool))| {
        json!({
            "id": 256 + index, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": special,
        })
    };
    let added: Vec<Value> = ADDED_TOKENS.iter().enumerate().map(added).collect();
    let byte_level = |add_prefix_space: bool| json!({"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": false, "use_regex": false});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": {"type": "NFC"},
        "pre_tokenizer": byte_level(false), "post_processor": null, "decoder": byte_level(true),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": [],
        },
    });
    let tokenizer_config = json!({
        "tokenizer_class": "Qwen2Tokenizer", "bos_token": null, "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>", "unk_token": null, "add_prefix_space": false, "model_max_length": 4096,
    });
    let generation_config = json!({
        "bos_token_id": END_OF_TEXT, "pad_token_id": END_OF_TEXT, "eos_token_id": [MESSAGE_END, END_OF_TEXT],
        "do_sample": true, "temperature": 1.0, "top_k": 20, "top_p": 0.95,
    });
    let files = [
        ("tokenizer.json", &tokenizer),
        ("tokenizer_config.json", &tokenizer_config),
        ("generation_config.json", &generation_config),
    ];
    for (name, value) in files {
        std::fs::write(dir.join(name), serde_json::to_string_pretty(value).unwrap()).unwrap();
    }
    std::fs::write(dir.join("chat_template.jinja"), CHAT_TEMPLATE).unwrap();
}

/// The character that represents a byte in byte-level vocabularies: itself if printable, else one from U+0100 on.
fn visible(byte: u8) -> char {
    let shown = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if shown(byte) {
        return char::from(byte);
    }
    let hidden_before = (0..byte).filter(|b| !shown(*b)).count() as u32;
    char::from_u32(256 + hidden_before).expect("below U+0200")
}

#[cfg(test)]
mod tests {
    use super::visible;

    #[test]
    fn bytes_have_the_usual_characters() {
        assert_eq!(visible(b'a'), 'a');
        assert_eq!(visible(b' '), 'Ġ');
        assert_eq!(visible(b'\n'), 'Ċ');
        assert_eq!((0..=255).map(visible).collect::<std::collections::BTreeSet<_>>().len(), 256);
    }
}
