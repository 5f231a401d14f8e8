//! Checkpoints in every layout, and in every way that they can be wrong.

use std::fs;
use std::path::{Path, PathBuf};

use q35_architecture::tensor_table;
use q35_checkpoint::{Checkpoint, CheckpointError, Part, Problem};
use q35_inference::Weights;
use q35_testkit::{Precision, TinyCheckpoint, tiny_more_value_heads};
use safetensors::tensor::{Dtype, SafeTensors, View};
use serde_json::{Value, json};
use tempfile::TempDir;

fn write(checkpoint: &TinyCheckpoint) -> TempDir {
    let home = tempfile::tempdir().unwrap();
    checkpoint.write_to(home.path());
    home
}

#[test]
fn every_layout_gives_the_numbers_that_were_written() {
    let variants = [
        TinyCheckpoint::new(),
        TinyCheckpoint::new().text_only(),
        TinyCheckpoint::new().untied().shards(3),
        TinyCheckpoint::new().text_only().untied().precision(Precision::F16),
        TinyCheckpoint::new().with_config(tiny_more_value_heads()).precision(Precision::F32).without_mtp(),
    ];
    for variant in variants {
        let home = write(&variant);
        let checkpoint = Checkpoint::open(home.path()).unwrap();
        assert_eq!(Weights::config(&checkpoint), variant.config());
        checkpoint.check_finite().unwrap();
        let (written, mut read) = (variant.weights(), Vec::new());
        for spec in tensor_table(variant.config()) {
            checkpoint.read_rows(&spec.name, 0..spec.shape[0], &mut read).unwrap();
            assert_eq!(read, written.values(&spec.name), "{}", spec.name);
        }
        let (mut part, rows) = (Vec::new(), variant.config().vocab_size);
        checkpoint.read_rows("embed_tokens.weight", 7..9, &mut part).unwrap();
        assert_eq!(part, written.values("embed_tokens.weight")[7 * 128..9 * 128]);
        assert!(checkpoint.read_rows("embed_tokens.weight", rows..rows + 1, &mut part).is_err());
        assert!(checkpoint.read_rows("nothing", 0..1, &mut part).is_err());
    }
}

#[test]
fn what_is_left_out_is_counted() {
    let home = write(&TinyCheckpoint::new());
    let checkpoint = Checkpoint::open(home.path()).unwrap();
    let inventory = checkpoint.inventory();
    assert_eq!(
        inventory.dropped.iter().map(|dropped| dropped.part).collect::<Vec<_>>(),
        [Part::Vision, Part::MultiToken]
    );
    assert_eq!(inventory.kept_count, checkpoint.tensors().len());
    let file = fs::metadata(home.path().join("model.safetensors")).unwrap().len();
    let data = inventory.kept_bytes + inventory.dropped_bytes();
    assert!(data < file && file - data < 100_000);
    let names: Vec<&str> = checkpoint.source_files().iter().map(|file| file.name.as_str()).collect();
    assert!(
        names.starts_with(&["config.json", "model.safetensors"]) && names.contains(&"tokenizer.json"),
        "{names:?}"
    );
}

#[derive(Clone)]
struct Owned {
    dtype: Dtype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

impl View for Owned {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> std::borrow::Cow<'_, [u8]> {
        self.data.as_slice().into()
    }
    fn data_len(&self) -> usize {
        self.data.len()
    }
}

/// A checkpoint in one file whose tensors have been changed.
struct Changed {
    home: TempDir,
}

impl Changed {
    fn new(change: impl FnOnce(&mut Vec<(String, Owned)>)) -> Self {
        let home = write(&TinyCheckpoint::new());
        let path = home.path().join("model.safetensors");
        let bytes = fs::read(&path).unwrap();
        let owned = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
            (name, Owned { dtype: view.dtype(), shape: view.shape().to_vec(), data: view.data().to_vec() })
        };
        let mut tensors: Vec<_> =
            SafeTensors::deserialize(&bytes).unwrap().tensors().into_iter().map(owned).collect();
        tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
        change(&mut tensors);
        fs::write(path, safetensors::serialize(tensors, None).unwrap()).unwrap();
        Self { home }
    }

    fn problems(&self) -> Vec<Problem> {
        match Checkpoint::open(self.home.path()) {
            Err(CheckpointError::Misfit { problems, .. }) => problems,
            other => panic!("expected a misfit, got {other:?}"),
        }
    }
}

const GATE: &str = "model.language_model.layers.1.mlp.gate_proj.weight";

fn at<'a>(tensors: &'a mut [(String, Owned)], name: &str) -> &'a mut (String, Owned) {
    tensors.iter_mut().find(|(found, _)| found == name).unwrap()
}

#[test]
fn missing_unknown_and_duplicate_tensors_are_all_reported() {
    let changed = Changed::new(|tensors| {
        let embedding = at(tensors, "model.language_model.embed_tokens.weight").1.clone();
        tensors.push(("model.embed_tokens.weight".to_owned(), embedding));
        at(tensors, GATE).0 = "model.language_model.layers.1.mlp.gate.weight".to_owned();
    });
    let text: Vec<String> = changed.problems().iter().map(ToString::to_string).collect();
    assert_eq!(text.len(), 3, "{text:?}");
    assert!(text.iter().any(|line| line == "missing `layers.1.mlp.gate_proj.weight` [256, 128]"), "{text:?}");
    assert!(
        text.iter().any(|line| line.starts_with("unknown `model.language_model.layers.1.mlp.gate.weight`"))
    );
    assert!(text.iter().any(|line| line.starts_with("duplicate `embed_tokens.weight`")));
}

#[test]
fn shapes_and_types_are_checked() {
    let reshaped = Changed::new(|tensors| at(tensors, GATE).1.shape = vec![128, 256]);
    assert!(
        matches!(&reshaped.problems()[..], [Problem::Shape { name, expected, .. }] if name == GATE && *expected == [256, 128])
    );
    let retyped = Changed::new(|tensors| at(tensors, GATE).1.dtype = Dtype::I16);
    assert!(matches!(&retyped.problems()[..], [Problem::Type { found, .. }] if found == "I16"));
}

#[test]
fn a_tied_model_may_carry_a_copy_of_its_head() {
    let changed = Changed::new(|tensors| {
        let embedding = at(tensors, "model.language_model.embed_tokens.weight").1.clone();
        tensors.push(("lm_head.weight".to_owned(), embedding));
    });
    let checkpoint = Checkpoint::open(changed.home.path()).unwrap();
    assert!(checkpoint.inventory().dropped.iter().any(|dropped| dropped.part == Part::TiedHead));
}

#[test]
fn conversions_are_recognised_by_every_sign() {
    let transposed = Changed::new(|tensors| {
        at(tensors, "model.language_model.layers.0.linear_attn.conv1d.weight").1.shape.swap(1, 2);
    });
    let packed = Changed::new(|tensors| {
        for ending in ["scales", "biases"] {
            let entry = Owned { dtype: Dtype::BF16, shape: vec![1], data: vec![0, 0] };
            tensors.push((GATE.replace("weight", ending), entry));
        }
    });
    let labelled = Changed::new(|_| {});
    edit_config(labelled.home.path(), |config| config["quantization"] = json!("int4"));
    for (changed, evidence) in
        [(transposed, "MLX's order"), (packed, "gate_proj.scales"), (labelled, "`quantization`")]
    {
        let error = Checkpoint::open(changed.home.path()).unwrap_err();
        assert!(matches!(error, CheckpointError::AlreadyConverted { .. }), "{error}");
        assert!(error.to_string().contains(evidence), "{error}");
    }
    let quantized = Changed::new(|_| {});
    edit_config(quantized.home.path(), |config| {
        config["quantization_config"] = json!({"quant_method": "awq"})
    });
    let error = Checkpoint::open(quantized.home.path()).unwrap_err();
    assert!(matches!(&error, CheckpointError::Quantized { method, .. } if method == "awq"), "{error}");
}

fn edit_config(dir: &Path, edit: impl FnOnce(&mut Value)) {
    let path = dir.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(&mut config);
    fs::write(path, config.to_string()).unwrap();
}

#[test]
fn an_index_is_believed_only_as_far_as_its_files_bear_it_out() {
    let home = write(&TinyCheckpoint::new().shards(2));
    let path: PathBuf = home.path().join("model.safetensors.index.json");
    let sound: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let error_of = |edit: &dyn Fn(&mut Value)| {
        let mut index = sound.clone();
        edit(&mut index);
        fs::write(&path, index.to_string()).unwrap();
        Checkpoint::open(home.path()).unwrap_err().to_string()
    };
    let first = "model.safetensors-00001-of-00002.safetensors";
    let second = "model.safetensors-00002-of-00002.safetensors";
    type Edit<'a> = &'a dyn Fn(&mut Value);
    let cases: [(Edit<'_>, &str); 5] = [
        (&|index| index["weight_map"]["ghost"] = first.into(), "the index places it in"),
        (
            &|index| index["weight_map"]["ghost"] = "model-3.safetensors".into(),
            "shard `model-3.safetensors` is missing",
        ),
        (&|index| index["weight_map"]["ghost"] = "/etc/passwd".into(), "the name of a file beside the index"),
        (&|index| index["weight_map"] = json!({}), "empty"),
        (&|index| drop(index.as_object_mut().unwrap().remove("weight_map")), "no object `weight_map`"),
    ];
    for (edit, message) in cases {
        let error = error_of(edit);
        assert!(error.contains(message), "{message}: {error}");
    }
    fs::write(&path, sound.to_string()).unwrap();
    fs::copy(home.path().join(first), home.path().join(second)).unwrap();
    let error = Checkpoint::open(home.path()).unwrap_err().to_string();
    assert!(error.contains("duplicate") && error.contains(second), "{error}");
    fs::remove_file(&path).unwrap();
    let error = Checkpoint::open(home.path()).unwrap_err().to_string();
    assert!(error.contains("without model.safetensors.index.json"), "{error}");
}

#[test]
fn a_bad_weight_is_found_in_the_rows_that_are_read() {
    let changed =
        Changed::new(|tensors| at(tensors, GATE).1.data[2 * 300..2 * 301].copy_from_slice(&[0x80, 0x7f]));
    let checkpoint = Checkpoint::open(changed.home.path()).unwrap();
    let error = checkpoint.check_finite().unwrap_err();
    assert!(
        matches!(&error, CheckpointError::NonFinite { name, element: 300, .. } if name == GATE),
        "{error}"
    );
    let mut out = Vec::new();
    checkpoint.read_rows("layers.1.mlp.gate_proj.weight", 0..2, &mut out).unwrap();
    assert!(checkpoint.read_rows("layers.1.mlp.gate_proj.weight", 2..3, &mut out).is_err());
}
