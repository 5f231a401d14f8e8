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

fn notes(dir: &Path) -> Vec<String> {
    Checkpoint::open(dir).unwrap().notes().iter().map(ToString::to_string).collect()
}

fn error(dir: &Path) -> String {
    Checkpoint::open(dir).unwrap_err().to_string()
}

#[test]
fn a_plain_checkpoint_has_no_notes() {
    for checkpoint in [TinyCheckpoint::new(), TinyCheckpoint::new().text_only().untied().shards(2)] {
        assert_eq!(notes(write(&checkpoint).path()), [""; 0]);
    }
}

#[test]
fn a_head_that_differs_is_never_tied() {
    let changed = Changed::new(|tensors| {
        let mut head = at(tensors, "model.language_model.embed_tokens.weight").1.clone();
        head.data[0] ^= 1;
        tensors.push(("lm_head.weight".to_owned(), head));
    });
    let home = changed.home.path();
    let checkpoint = Checkpoint::open(home).unwrap();
    assert!(!checkpoint.config().tie_word_embeddings && checkpoint.tensor("lm_head.weight").is_some());
    assert!(notes(home)[0].contains("the head is kept separate"), "{:?}", notes(home));
}

#[test]
fn an_equal_head_of_another_type_is_a_copy() {
    let changed = Changed::new(|tensors| {
        let mut head = at(tensors, "model.language_model.embed_tokens.weight").1.clone();
        head.data = head.data.chunks(2).flat_map(|b| [0, 0, b[0], b[1]]).collect();
        head.dtype = Dtype::F32;
        tensors.push(("lm_head.weight".to_owned(), head));
    });
    assert!(Checkpoint::open(changed.home.path()).unwrap().config().tie_word_embeddings);
}

#[test]
fn a_model_without_flag_and_head_is_tied_and_one_without_head_is_refused() {
    let home = write(&TinyCheckpoint::new());
    edit_config(home.path(), |config| {
        config.as_object_mut().unwrap().remove("tie_word_embeddings");
        config["text_config"].as_object_mut().unwrap().remove("tie_word_embeddings");
    });
    assert!(notes(home.path())[0].contains("the embedding is used as the head"));
    edit_config(home.path(), |config| config["tie_word_embeddings"] = false.into());
    assert!(error(home.path()).contains("missing `lm_head.weight`"));
}

#[test]
fn a_complete_file_takes_precedence_over_an_older_index() {
    let home = write(&TinyCheckpoint::new().shards(2).seed(1));
    let newer = TinyCheckpoint::new().seed(2);
    newer.write_to(home.path());
    let checkpoint = Checkpoint::open(home.path()).unwrap();
    let mut read = Vec::new();
    checkpoint.read_rows("norm.weight", 0..128, &mut read).unwrap();
    assert_eq!(read, newer.weights().values("norm.weight"));
    let notes = notes(home.path());
    assert!(notes[0].contains("is ignored") && notes[1].contains("00001-of-00002"), "{notes:?}");
    assert!(checkpoint.source_files().iter().all(|file| !file.name.contains("index")));
}

#[test]
fn an_index_may_list_dropped_tensors_that_the_shards_do_not_have() {
    let home = write(&TinyCheckpoint::new().shards(2).without_mtp().without_vision());
    let path = home.path().join("model.safetensors.index.json");
    let mut index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let first = "model.safetensors-00001-of-00002.safetensors";
    index["weight_map"]["mtp.fc.weight"] = first.into();
    index["weight_map"]["model.visual.pos_embed.weight"] = first.into();
    fs::write(&path, index.to_string()).unwrap();
    assert!(notes(home.path())[0].contains("lists 2 tensors of dropped parts"), "{:?}", notes(home.path()));
    index["weight_map"]["model.language_model.norm.bias"] = first.into();
    fs::write(&path, index.to_string()).unwrap();
    assert!(error(home.path()).contains("`model.language_model.norm.bias`: the index places it in"));
}

#[test]
fn unknown_prefixes_and_stored_buffers_are_read() {
    let changed = Changed::new(|tensors| {
        for (name, _) in tensors.iter_mut() {
            *name = format!("module.{name}");
        }
        let buffer = Owned { dtype: Dtype::F32, shape: vec![1], data: vec![0; 4] };
        tensors
            .push(("module.model.language_model.layers.3.self_attn.rotary_emb.inv_freq".to_owned(), buffer));
    });
    let checkpoint = Checkpoint::open(changed.home.path()).unwrap();
    let dropped: Vec<Part> = checkpoint.inventory().dropped.iter().map(|dropped| dropped.part).collect();
    assert!([Part::Buffers, Part::Vision, Part::MultiToken].iter().all(|part| dropped.contains(part)));
    assert!(notes(changed.home.path())[0].contains("`module.model.language_model.`"));
}

#[test]
fn double_precision_is_read_as_f32() {
    let changed = Changed::new(|tensors| {
        let tensor = &mut at(tensors, GATE).1;
        let single =
            tensor.data.chunks(2).map(|b| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16));
        tensor.data = single.flat_map(|value| f64::from(value).to_le_bytes()).collect();
        tensor.dtype = Dtype::F64;
    });
    let checkpoint = Checkpoint::open(changed.home.path()).unwrap();
    let mut read = Vec::new();
    checkpoint.read_rows("layers.1.mlp.gate_proj.weight", 0..256, &mut read).unwrap();
    assert_eq!(read, TinyCheckpoint::new().weights().values("layers.1.mlp.gate_proj.weight"));
    checkpoint.check_finite().unwrap();
}

#[test]
fn quantized_weights_and_adapters_are_refused_by_name() {
    let beside = |ending: &str, dtype: Dtype| {
        Changed::new(|tensors| {
            let entry =
                Owned { dtype, shape: vec![1], data: vec![0; 4 / if dtype == Dtype::F32 { 1 } else { 2 }] };
            tensors.push((GATE.replace(".weight", ending), entry));
        })
    };
    for (ending, message) in [
        (".weight_scale_inv", "already quantized (fp8"),
        (".qweight", "GPTQ or AWQ"),
        (".weight.absmax", "bitsandbytes"),
        (".weight.quant_state.bitsandbytes__nf4", "bitsandbytes"),
        (".weight_packed", "compressed-tensors"),
        (".lora_A.default.weight", "unmerged LoRA weights"),
    ] {
        let found = error(beside(ending, Dtype::F32).home.path());
        assert!(found.contains(message), "{message}: {found}");
    }
    let fp8 = Changed::new(|tensors| {
        let tensor = &mut at(tensors, GATE).1;
        (tensor.dtype, tensor.data) = (Dtype::F8_E4M3, vec![0; 256 * 128]);
    });
    assert!(error(fp8.home.path()).contains("already quantized (fp8, `"));
    let compressed = Changed::new(|_| {});
    edit_config(compressed.home.path(), |config| config["compression_config"] = json!({"format": "int"}));
    assert!(error(compressed.home.path()).contains("compressed-tensors"));
    let adapter = Changed::new(|_| {});
    let text = json!({"base_model_name_or_path": "owner/base"}).to_string();
    fs::write(adapter.home.path().join("adapter_config.json"), text).unwrap();
    assert!(error(adapter.home.path()).contains("LoRA adapter for owner/base"));
}

#[test]
fn directories_of_other_formats_are_refused_with_a_way_out() {
    let with = |files: &[&str]| {
        let home = write(&TinyCheckpoint::new());
        fs::remove_file(home.path().join("model.safetensors")).unwrap();
        files.iter().for_each(|file| fs::write(home.path().join(file), "x").unwrap());
        home
    };
    for (files, message) in [
        (&["model-Q4_K_M.gguf"][..], "GGUF is llama.cpp's format"),
        (&["pytorch_model-00001-of-00002.bin"], "pickled weights are not read"),
        (&["tf_model.h5"], "only safetensors weights are read"),
        (&["model.safetensors.incomplete"], "the download is incomplete"),
        (&["._model.safetensors", ".DS_Store"], "hint: name the directory"),
    ] {
        let home = with(files);
        assert!(error(home.path()).contains(message), "{}", error(home.path()));
        fs::remove_file(home.path().join("config.json")).unwrap();
        let found = error(home.path());
        assert!(found.contains(message) && found.starts_with("no config.json in"), "{found}");
    }
    let file = with(&["model.gguf"]);
    let found = error(&file.path().join("model.gguf"));
    assert!(found.contains("GGUF") && found.starts_with("no config.json in"), "{found}");
    assert!(error(&file.path().join("absent")).contains("the path does not exist"));
}

#[test]
fn git_lfs_pointers_are_named() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n";
    for file in ["model.safetensors", "config.json"] {
        let home = write(&TinyCheckpoint::new());
        fs::write(home.path().join(file), pointer).unwrap();
        let found = error(home.path());
        assert!(found.contains("is a Git LFS pointer") && found.contains(file), "{found}");
    }
}

#[test]
fn stray_files_of_an_operating_system_are_not_looked_at() {
    for checkpoint in [TinyCheckpoint::new(), TinyCheckpoint::new().shards(2)] {
        let home = write(&checkpoint);
        for name in [".DS_Store", "._model.safetensors", "._config.json", "Thumbs.db", "desktop.ini"] {
            fs::write(home.path().join(name), "x").unwrap();
        }
        assert_eq!(notes(home.path()), [""; 0]);
    }
}
