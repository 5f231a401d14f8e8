//! config.json in the two directory forms.

use std::path::Path;

use q35_architecture::{LayerKind, TextConfig};
use q35_checkpoint::{Checkpoint, CheckpointError, read_json};
use q35_quant::affine::AffineSpec;
use serde_json::{Map, Value, json};

use crate::WriteError;
use crate::plan::{Action, Step};

/// The file's text: top-level keys sorted, indented as mlx-lm indents.
pub(crate) fn text(config: Map<String, Value>) -> String {
    let mut entries: Vec<(String, Value)> = config.into_iter().collect();
    entries.sort_by(|(a, _), (b, _)| a.cmp(b));
    let sorted: Map<String, Value> = entries.into_iter().collect();
    format!("{:#}\n", Value::Object(sorted))
}

/// The nested form, which mlx-lm opens; also for a text-only source, whose flat form mlx-lm does not open.
pub(crate) fn mlx_lm(
    checkpoint: &Checkpoint,
    default: AffineSpec,
    steps: &[Step<'_>],
) -> Result<Map<String, Value>, WriteError> {
    let source = object(checkpoint.config_json());
    let config = checkpoint.config();
    let (mut root, mut text) = match source.get("text_config") {
        Some(text) => (source.clone(), object(text)),
        None => (Map::new(), source),
    };
    for (key, value) in object(&config.to_json()) {
        text.entry(key).or_insert(value);
    }
    complete_rope(&mut text, config);
    text.insert("model_type".to_owned(), "qwen3_5_text".into());
    text.insert("tie_word_embeddings".to_owned(), config.tie_word_embeddings.into());
    text.insert("full_attention_interval".to_owned(), interval(config)?.into());
    // The key names the class of a text-only export.
    text.shift_remove("architectures");
    root.entry("architectures").or_insert_with(|| json!(["Qwen3_5ForConditionalGeneration"]));
    root.insert("model_type".to_owned(), "qwen3_5".into());
    root.insert("tie_word_embeddings".to_owned(), config.tie_word_embeddings.into());
    root.insert("text_config".to_owned(), Value::Object(text));
    // There is no vision tower in the output; mlx-lm's conversions drop these keys too.
    root.shift_remove("vision_config");
    root.shift_remove("_name_or_path");
    // End-of-sequence ids come from generation_config.json; mlx-lm reads them here.
    if let Some(eos) = read_optional(checkpoint.dir(), "generation_config.json")?
        .as_ref()
        .and_then(|g| g.get("eos_token_id"))
    {
        root.insert("eos_token_id".to_owned(), eos.clone());
    }
    let quantization = quantization(default, steps);
    root.insert("quantization".to_owned(), quantization.clone());
    root.insert("quantization_config".to_owned(), quantization);
    Ok(root)
}

/// The default bits and group size, and an entry for every matrix that differs.
fn quantization(default: AffineSpec, steps: &[Step<'_>]) -> Value {
    let entry =
        |spec: AffineSpec| json!({"group_size": spec.group_size(), "bits": spec.bits(), "mode": "affine"});
    let mut table = object(&entry(default));
    for step in steps {
        if let Action::Quantize(spec) = step.action
            && spec != default
        {
            table.insert(step.output.clone(), entry(spec));
        }
    }
    Value::Object(table)
}

/// Writes `rope_theta` and `partial_rotary_factor` into `rope_parameters`, the only place where mlx-lm reads them, and
/// removes contradicting values from elsewhere.
fn complete_rope(text: &mut Map<String, Value>, config: &TextConfig) {
    let mut rope = text.get("rope_parameters").map(object).unwrap_or_default();
    for (key, value) in
        [("rope_theta", config.rope_theta), ("partial_rotary_factor", config.partial_rotary_factor)]
    {
        let differs = |found: Option<&Value>| found.and_then(Value::as_f64) != Some(value);
        if differs(rope.get(key)) {
            rope.insert(key.to_owned(), value.into());
        }
        if text.contains_key(key) && differs(text.get(key)) {
            text.shift_remove(key);
        }
    }
    if text.get("rope_scaling").is_some_and(|scaling| !scaling.is_null()) {
        text.shift_remove("rope_scaling");
    }
    if !rope.contains_key("type") {
        rope.entry("rope_type").or_insert_with(|| "default".into());
    }
    text.insert("rope_parameters".to_owned(), Value::Object(rope));
}

/// The n for which exactly every n-th layer is full attention; mlx-lm cannot express another pattern.
fn interval(config: &TextConfig) -> Result<usize, WriteError> {
    let first = config.layers_of(LayerKind::FullAttention).next();
    let interval = first.map_or(config.num_hidden_layers + 1, |first| first + 1);
    let regular = config
        .layer_types
        .iter()
        .enumerate()
        .all(|(i, kind)| (*kind == LayerKind::FullAttention) == (i + 1).is_multiple_of(interval));
    if regular {
        Ok(interval)
    } else {
        Err(WriteError::Inexpressible {
            form: "mlx-lm",
            reason: "its full-attention layers are not every n-th layer".to_owned(),
            hint: "hint: mlx-lm ignores layer_types; only regular models can be converted",
        })
    }
}

/// The flat form, which speech-swift's loader opens.
pub(crate) fn speech_swift(
    checkpoint: &Checkpoint,
    spec: AffineSpec,
) -> Result<Map<String, Value>, WriteError> {
    let inexpressible = |reason: &str, hint| WriteError::Inexpressible {
        form: "speech-swift",
        reason: reason.to_owned(),
        hint,
    };
    let config = checkpoint.config();
    if !config.tie_word_embeddings {
        return Err(inexpressible("it has a head of its own", "hint: its loader knows only tied models"));
    }
    let tokenizer = read_optional(checkpoint.dir(), "tokenizer.json")?;
    let token = |content: &str| tokenizer.as_ref().and_then(|tokenizer| special_token_id(tokenizer, content));
    let needs_tokenizer = "hint: the source needs a tokenizer.json with Qwen's special tokens";
    let end = token("<|im_end|>")
        .ok_or_else(|| inexpressible("the id of <|im_end|> is unknown", needs_tokenizer))?;
    let pad = token("<|endoftext|>")
        .ok_or_else(|| inexpressible("the id of <|endoftext|> is unknown", needs_tokenizer))?;
    // The value in speech-swift's published models; its runtime allocates caches of this length.
    const MAX_SEQ_LEN: usize = 2048;
    let fields = json!({
        "max_seq_len": config.max_position_embeddings.min(MAX_SEQ_LEN),
        "rope_theta": config.rope_theta,
        "partial_rotary_factor": config.partial_rotary_factor,
        "eos_token_id": end,
        "pad_token_id": pad,
        "full_attention_interval": interval(config)?,
        "quantization": format!("int{}", spec.bits()),
        "quantization_bits": spec.bits(),
        "quantization_group_size": spec.group_size(),
    });
    let mut flat = object(&config.to_json());
    flat.shift_remove("rope_parameters");
    flat.extend(object(&fields));
    Ok(flat)
}

fn object(value: &Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}

/// The JSON file `name` of the source, if it has one.
fn read_optional(source: &Path, name: &str) -> Result<Option<Value>, CheckpointError> {
    let path = source.join(name);
    if path.is_file() { read_json(&path).map(Some) } else { Ok(None) }
}

/// The id of the special token `content` in a tokenizer.json.
fn special_token_id(tokenizer: &Value, content: &str) -> Option<u64> {
    let added = tokenizer.get("added_tokens")?.as_array()?;
    added.iter().find(|token| token["content"] == content).and_then(|token| token["id"].as_u64())
}
