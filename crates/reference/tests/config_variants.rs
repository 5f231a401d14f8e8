//! Variants of config.json and of the head, each read as transformers reads it, or refused by name.
//!
//! `golden/config_variants.json` holds the variants and the results of transformers in float32; it is made by
//! `scripts/goldens/config_variants.py`.

use std::path::Path;

use q35_checkpoint::{Checkpoint, sha256_hex};
use q35_inference::{LogitsFor, Model, Observer};
use q35_reference::{Device, Reference};
use q35_testkit::{Precision, TinyCheckpoint};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Map, Value};

/// Variants that transformers computes and q35 refuses, with a part of the refusal.
const REFUSED: [(&str, &str); 18] = [
    ("rope-type-yarn", "`rope_parameters.rope_type` is not supported"),
    ("rope-type-old-name-yarn", "`rope_parameters.type` is not supported"),
    ("rope-type-linear", "found:    \"linear\""),
    ("rope-type-dynamic", "found:    \"dynamic\""),
    ("rope-type-llama3", "found:    \"llama3\""),
    ("rope-type-longrope", "found:    \"longrope\""),
    ("rope-type-proportional", "found:    \"proportional\""),
    ("scaling-beside-yarn", "`rope_scaling.rope_type` is not supported"),
    ("scaling-instead-yarn", "`rope_scaling.rope_type` is not supported"),
    ("scaling-old-name-yarn", "`rope_scaling.type` is not supported"),
    ("scaling-linear", "found:    \"linear\""),
    ("flat-scaling-yarn", "`rope_scaling.rope_type` is not supported"),
    ("act-gelu", "`hidden_act`"),
    // Ignored by transformers, but a model trained with it would be computed wrongly.
    ("gate-false", "`attn_output_gate` is not supported"),
    ("softcapping", "`final_logit_softcapping` is not supported"),
    ("experts", "a dense model"),
    ("sliding-window", "`use_sliding_window` is not supported"),
    ("type-nested-moe", "unsupported architecture `qwen3_5_moe_text`"),
];

/// Variants that transformers does not open, or opens with a random head, and the variant that q35 reads them as.
const ACCEPTED: [(&str, &str); 4] = [
    // Without a head and without a flag there is only one usable reading; it is said.
    ("no-flag-no-head", "unchanged"),
    ("tied-nested-alone", "unchanged"),
    // The nested type suffices.
    ("type-top-absent", "unchanged"),
    // Flat configurations of other software.
    ("flat-type-multimodal", "flat-unchanged"),
];

struct LastLogits(Vec<f32>);

impl Observer for LastLogits {
    fn logits(&mut self, _position: usize, logits: &[f32]) {
        self.0 = logits.to_vec();
    }
}

fn set(config: &mut Value, path: &str, value: Option<&Value>) {
    let (outer, key) = path.rsplit_once('.').map_or((None, path), |(outer, key)| (Some(outer), key));
    let mut object = config;
    for name in outer.into_iter().flat_map(|outer| outer.split('.')) {
        object = &mut object[name];
    }
    let object: &mut Map<String, Value> = object.as_object_mut().unwrap();
    match value {
        Some(value) => drop(object.insert(key.to_owned(), value.clone())),
        None => drop(object.remove(key)),
    }
}

/// Adds a head to the file: the embedding, or its rows in reverse order. May remove the embedding.
fn add_head(path: &Path, kind: &str, keep_embedding: bool) {
    const EMBEDDING: &str = "model.language_model.embed_tokens.weight";
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let embedding = file.tensor(EMBEDDING).unwrap();
    let row = embedding.data().len() / embedding.shape()[0];
    let head: Vec<u8> = match kind {
        "same" => embedding.data().to_vec(),
        _ => embedding.data().chunks(row).rev().flatten().copied().collect(),
    };
    let head = TensorView::new(embedding.dtype(), embedding.shape().to_vec(), &head).unwrap();
    let mut tensors = file.tensors();
    tensors.retain(|(name, _)| keep_embedding || name != EMBEDDING);
    tensors.push(("lm_head.weight".to_owned(), head));
    safetensors::serialize_to_file(tensors, None, path).unwrap();
}

/// The selected logits of the last token, or the refusal.
fn read(dir: &Path, tokens: &[u32], columns: &[usize]) -> Result<Vec<f32>, String> {
    let checkpoint = Checkpoint::open(dir).map_err(|error| error.to_string())?;
    let model = Reference::load(&checkpoint, Device::Cpu).unwrap();
    let mut last = LastLogits(Vec::new());
    model.new_sequence(64).unwrap().extend(tokens, LogitsFor::LastToken, &mut last).unwrap();
    Ok(columns.iter().map(|&column| last.0[column]).collect())
}

#[test]
fn every_variant_is_read_as_transformers_reads_it_or_refused() {
    let golden: Value = serde_json::from_str(include_str!("golden/config_variants.json")).unwrap();
    let numbers = |key: &str| -> Vec<u32> { serde_json::from_value(golden[key].clone()).unwrap() };
    let (tokens, columns) = (numbers("tokens"), numbers("columns"));
    let columns: Vec<usize> = columns.into_iter().map(|column| column as usize).collect();
    let bases = tempfile::tempdir().unwrap();
    let (nested, flat) = (bases.path().join("nested"), bases.path().join("flat"));
    TinyCheckpoint::new().precision(Precision::F32).write_to(&nested);
    TinyCheckpoint::new().precision(Precision::F32).text_only().untied().write_to(&flat);
    let weights = std::fs::read(nested.join("model.safetensors")).unwrap();
    assert_eq!(golden["checkpoint_sha256"], sha256_hex(&weights), "hint: run scripts/goldens/make_all.sh");

    let variants = golden["variants"].as_object().unwrap();
    let logits =
        |name: &str| -> Vec<f32> { serde_json::from_value(variants[name]["logits"].clone()).unwrap() };
    let mut failures = Vec::new();
    for (name, variant) in variants {
        let work = tempfile::tempdir().unwrap();
        let base = if variant["base"] == "flat" { &flat } else { &nested };
        for file in ["config.json", "model.safetensors"] {
            std::fs::copy(base.join(file), work.path().join(file)).unwrap();
        }
        let path = work.path().join("config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        for (path, value) in variant["set"].as_object().unwrap() {
            set(&mut config, path, Some(value));
        }
        for path in variant["remove"].as_array().unwrap() {
            set(&mut config, path.as_str().unwrap(), None);
        }
        std::fs::write(&path, config.to_string()).unwrap();
        if let Some(kind) = variant["head"].as_str() {
            add_head(&work.path().join("model.safetensors"), kind, variant["embedding"].is_null());
        }

        let found = read(work.path(), &tokens, &columns);
        let refused = REFUSED.iter().find(|(refused, _)| refused == name).map(|(_, message)| *message);
        let accepted = ACCEPTED.iter().find(|(accepted, _)| accepted == name).map(|(_, like)| logits(like));
        let expected = variant.get("logits").map(|_| logits(name)).or(accepted);
        let failure = match (&found, &expected, refused) {
            (Err(error), _, Some(message)) => (!error.contains(message)).then(|| error.clone()),
            (Err(error), None, None) => (!error.contains("config")).then(|| error.clone()),
            (Err(error), Some(_), None) => Some(format!("refused: {error}")),
            (Ok(_), _, Some(_)) => Some("must be refused".to_owned()),
            (Ok(_), None, None) => Some(format!("transformers fails: {variant}")),
            (Ok(found), Some(expected), None) => {
                let difference = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                (difference > 2e-4).then(|| format!("logits differ by {difference}"))
            }
        };
        failures.extend(failure.map(|failure| format!("{name}: {failure}")));
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
