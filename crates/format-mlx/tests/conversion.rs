//! Conversions: equal to mlx-lm's, read back, in both directory forms, and refusals. `scripts/goldens/make_all.sh` writes
//! the files in `golden` from the same generated checkpoints.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use q35_architecture::{LayerKind, tensor_table};
use q35_checkpoint::{Checkpoint, SafetensorsFile};
use q35_format_mlx::{
    Form, MlxDirectory, MlxTensor, Plan, RoundToNearest, WriteError, WriteOptions, Written, write,
};
use q35_inference::Weights;
use q35_quant::affine::AffineSpec;
use q35_testkit::{Precision, TinyCheckpoint, tiny, tiny_more_value_heads};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

fn convert_with(
    source: &TinyCheckpoint,
    bits: u32,
    group_size: usize,
    options: &WriteOptions,
) -> (TempDir, Result<Written, WriteError>) {
    let home = tempfile::tempdir().unwrap();
    source.write_to(&home.path().join("source"));
    let result = convert_dir(home.path(), bits, group_size, options);
    (home, result)
}

fn convert_dir(
    home: &Path,
    bits: u32,
    group_size: usize,
    options: &WriteOptions,
) -> Result<Written, WriteError> {
    let checkpoint = Checkpoint::open(&home.join("source")).unwrap();
    let out = home.join("out");
    fs::create_dir_all(&out).unwrap();
    let recipe = RoundToNearest(AffineSpec::new(bits, group_size).unwrap());
    write(&checkpoint, &recipe, options, &out, &|_| {})
}

fn convert(source: &TinyCheckpoint, bits: u32, group_size: usize) -> TempDir {
    let (home, result) = convert_with(source, bits, group_size, &WriteOptions::default());
    result.unwrap();
    home
}

/// dtype, shape and the first 16 digits of the hash of every tensor.
fn digests(out: &Path) -> BTreeMap<String, (String, Vec<usize>, String)> {
    let mut digests = BTreeMap::new();
    for entry in fs::read_dir(out).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            for tensor in SafetensorsFile::open(&path).unwrap().tensors() {
                let hash: String =
                    Sha256::digest(tensor.data)[..8].iter().map(|b| format!("{b:02x}")).collect();
                let entry = (tensor.dtype.to_string(), tensor.shape.to_vec(), hash);
                assert!(digests.insert(tensor.name.to_owned(), entry).is_none());
            }
        }
    }
    digests
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn check_against_mlx_lm(name: &str, source: &TinyCheckpoint) {
    let golden = read_json(&Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.json")));
    let size = |field: &str| golden[field].as_u64().unwrap();
    let home = convert(source, size("bits") as u32, size("group_size") as usize);
    let out = home.path().join("out");
    let expected: BTreeMap<String, (String, Vec<usize>, String)> =
        serde_json::from_value(golden["tensors"].clone()).unwrap();
    let found = digests(&out);
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{name}");
    for (tensor, expected) in &expected {
        assert_eq!(&found[tensor], expected, "{name}: {tensor}");
    }
    let index = read_json(&out.join("model.safetensors.index.json"));
    assert_eq!(index["metadata"]["total_size"], golden["index_metadata"]["total_size"], "{name}");

    let mut config = read_json(&out.join("config.json"));
    // mlx-lm renames this field while it loads, and saves what it has made of it.
    let rope = config["text_config"]["rope_parameters"].as_object_mut().unwrap();
    let kind = rope.shift_remove("rope_type").unwrap();
    rope.insert("type".to_owned(), kind);
    assert_eq!(config, golden["config"], "{name}");
}

#[test]
fn four_bits_equal_mlx_lm() {
    check_against_mlx_lm("tiny-4-64", &TinyCheckpoint::new());
}

#[test]
fn an_untied_model_with_more_value_heads_equals_mlx_lm() {
    let source = TinyCheckpoint::new().with_config(tiny_more_value_heads()).untied().shards(2);
    check_against_mlx_lm("more-value-heads-untied-3-128", &source);
}

#[test]
fn half_and_single_precision_equal_mlx_lm() {
    check_against_mlx_lm("f16-8-32", &TinyCheckpoint::new().precision(Precision::F16));
    check_against_mlx_lm("f32-5-64", &TinyCheckpoint::new().precision(Precision::F32));
}

#[test]
fn a_text_only_source_gives_the_same_tensors_in_a_nested_config() {
    let nested = convert(&TinyCheckpoint::new(), 4, 64);
    let flat = convert(&TinyCheckpoint::new().text_only(), 4, 64);
    assert_eq!(digests(&nested.path().join("out")), digests(&flat.path().join("out")));
    let config = read_json(&flat.path().join("out/config.json"));
    assert_eq!(config["model_type"], "qwen3_5");
    assert_eq!(config["text_config"]["model_type"], "qwen3_5_text");
    assert_eq!(config["text_config"]["tie_word_embeddings"], true);
    assert_eq!(config["text_config"]["rope_parameters"]["rope_theta"], 1e7);
}

/// Changes a checkpoint's config.json.
fn edit_config(dir: &Path, edit: impl FnOnce(&mut Value)) {
    let mut config = read_json(&dir.join("config.json"));
    edit(&mut config);
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
}

#[test]
fn contradictions_of_the_source_are_resolved_in_the_output() {
    let home = tempfile::tempdir().unwrap();
    let source = home.path().join("source");
    // Untied weights under a config.json that calls them tied, and three values of theta.
    TinyCheckpoint::new().untied().write_to(&source);
    edit_config(&source, |config| {
        config["tie_word_embeddings"] = true.into();
        let text = &mut config["text_config"];
        text["rope_theta"] = 1e4.into();
        text["rope_parameters"]["rope_theta"] = 2e4.into();
        text["rope_scaling"] = json!({"type": "default", "rope_theta": 3e4, "partial_rotary_factor": 0.5});
    });
    convert_dir(home.path(), 4, 64, &WriteOptions::default()).unwrap();
    let out = home.path().join("out");
    let text = &read_json(&out.join("config.json"))["text_config"];
    assert_eq!(text["rope_parameters"]["rope_theta"], 3e4);
    assert_eq!(text["rope_parameters"]["partial_rotary_factor"], 0.5);
    assert_eq!((text.get("rope_theta"), text.get("rope_scaling")), (None, None));
    assert_eq!(text["tie_word_embeddings"], false);
    let directory = MlxDirectory::open(&out).unwrap();
    assert_eq!(Weights::config(&directory), Checkpoint::open(&source).unwrap().config());
}

#[test]
fn without_a_flag_the_tensors_decide_whether_the_head_is_tied() {
    for source in [TinyCheckpoint::new(), TinyCheckpoint::new().untied()] {
        let home = convert(&source, 4, 64);
        let out = home.path().join("out");
        edit_config(&out, |config| {
            config.as_object_mut().unwrap().remove("tie_word_embeddings");
            config["text_config"].as_object_mut().unwrap().remove("tie_word_embeddings");
        });
        let directory = MlxDirectory::open(&out).unwrap();
        assert_eq!(Weights::config(&directory), source.config());
    }
}

#[test]
fn two_models_in_one_directory_are_refused() {
    let home = convert(&TinyCheckpoint::new(), 4, 64);
    let out = home.path().join("out");
    fs::copy(out.join("model.safetensors"), out.join("model-00001-of-00001.safetensors")).unwrap();
    let path = out.join("model.safetensors.index.json");
    let mut index = read_json(&path);
    for file in index["weight_map"].as_object_mut().unwrap().values_mut() {
        *file = "model-00001-of-00001.safetensors".into();
    }
    fs::write(&path, index.to_string()).unwrap();
    let error = MlxDirectory::open(&out).unwrap_err().to_string();
    assert!(error.contains("holds two models"), "{error}");
    // A stale index alone is harmless.
    fs::remove_file(out.join("model-00001-of-00001.safetensors")).unwrap();
    MlxDirectory::open(&out).unwrap();
}

#[test]
fn what_was_written_reads_back_near_the_source() {
    for source in [TinyCheckpoint::new().untied(), TinyCheckpoint::new().with_config(tiny_more_value_heads())]
    {
        let home = convert(&source, 8, 32);
        let directory = MlxDirectory::open(&home.path().join("out")).unwrap();
        assert_eq!(directory.copied_bytes(), 0);
        let (original, mut read) = (source.weights(), Vec::new());
        for spec in tensor_table(source.config()) {
            directory.read_rows(&spec.name, 0..spec.shape[0], &mut read).unwrap();
            let worst =
                original.values(&spec.name).iter().zip(&read).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            let largest =
                original.values(&spec.name).iter().fold(0.0f32, |largest, weight| largest.max(weight.abs()));
            // Matrices: 1.5 of 255 steps (half for rounding, half for the scale's rounding to bf16, the rest for its
            // stretching). Norms: the rounding of 1 + w.
            let bound = if spec.role.is_quantized() { 1.5 * 2.0 * largest / 255.0 } else { 4e-3 };
            assert!(worst <= bound, "{}: {worst}", spec.name);
        }
        let last = directory.config().vocab_size;
        let (mut all, mut some) = (Vec::new(), Vec::new());
        directory.read_rows("embed_tokens.weight", 0..last, &mut all).unwrap();
        directory.read_rows("embed_tokens.weight", last - 3..last, &mut some).unwrap();
        assert!(all.ends_with(&some));
        assert!(directory.read_rows("embed_tokens.weight", last..last + 1, &mut some).is_err());
        assert!(directory.read_rows("embed_tokens.scales", 0..1, &mut some).is_err());
    }
}

#[test]
fn the_bytes_do_not_depend_on_the_number_of_threads() {
    let once = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let home = pool.install(|| convert(&TinyCheckpoint::new(), 6, 32));
        let mut files: Vec<_> = fs::read_dir(home.path().join("out"))
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.file_name(), fs::read(entry.path()).unwrap()))
            .collect();
        files.sort();
        files
    };
    assert_eq!(once(1), once(3));
}

#[test]
fn a_large_model_is_cut_into_files_with_an_index() {
    let whole = convert(&TinyCheckpoint::new(), 4, 64);
    let options = WriteOptions { shard_bytes: 100_000, ..WriteOptions::default() };
    let (home, written) = convert_with(&TinyCheckpoint::new(), 4, 64, &options);
    let out = home.path().join("out");
    assert!(written.unwrap().files.len() > 3);
    assert_eq!(digests(&out), digests(&whole.path().join("out")));
    assert_eq!(MlxDirectory::open(&out).unwrap().tensors().len(), tensor_table(&tiny()).len());
}

#[test]
fn the_speech_swift_form_is_flat_and_holds_the_same_tensors() {
    let options = WriteOptions { form: Form::SpeechSwift, ..WriteOptions::default() };
    let (home, written) = convert_with(&TinyCheckpoint::new(), 5, 32, &options);
    written.unwrap();
    let config = read_json(&home.path().join("out/config.json"));
    for (field, value) in [
        ("model_type", json!("qwen3_5_text")),
        ("hidden_size", json!(128)),
        ("max_seq_len", json!(2048)),
        ("rope_theta", json!(1e7)),
        ("partial_rotary_factor", json!(0.25)),
        ("eos_token_id", json!(258)),
        ("pad_token_id", json!(256)),
        ("full_attention_interval", json!(4)),
        ("linear_conv_kernel_dim", json!(4)),
        ("tie_word_embeddings", json!(true)),
        ("quantization", json!("int5")),
        ("quantization_bits", json!(5)),
        ("quantization_group_size", json!(32)),
    ] {
        assert_eq!(config[field], value, "{field}");
    }
    let directory = MlxDirectory::open(&home.path().join("out")).unwrap();
    assert_eq!(directory.copied_bytes(), 0);
    assert!(
        matches!(directory.tensor("embed_tokens.weight"), Some(MlxTensor::Packed(p)) if p.spec.bits() == 5)
    );
    let other = convert(&TinyCheckpoint::new(), 5, 32);
    let (flat, nested) = (digests(&home.path().join("out")), digests(&other.path().join("out")));
    assert!(flat.iter().zip(&nested).all(|((a, x), (b, y))| b.ends_with(a.as_str()) && x == y));
}

#[test]
fn matrices_that_do_not_divide_stay_in_float_as_in_mlx_lm() {
    let mut config = tiny();
    config.intermediate_size = 160;
    let source = TinyCheckpoint::new().with_config(config);
    let (home, written) = convert_with(&source, 4, 128, &WriteOptions::default());
    let summary = written.unwrap().summary;
    assert_eq!(summary.kept_matrices.len(), 4, "{:?}", summary.kept_matrices);
    let directory = MlxDirectory::open(&home.path().join("out")).unwrap();
    assert!(matches!(directory.tensor("layers.0.mlp.down_proj.weight"), Some(MlxTensor::Float(_))));
    let swift = WriteOptions { form: Form::SpeechSwift, ..WriteOptions::default() };
    let error = convert_dir(home.path(), 4, 128, &swift).unwrap_err().to_string();
    assert!(error.contains("layers.0.mlp.down_proj.weight"), "{error}");
}

#[test]
fn the_plan_records_the_treatment_of_every_tensor() {
    let home = tempfile::tempdir().unwrap();
    TinyCheckpoint::new().write_to(&home.path().join("source"));
    let checkpoint = Checkpoint::open(&home.path().join("source")).unwrap();
    let recipe = RoundToNearest(AffineSpec::new(4, 64).unwrap());
    let plan = Plan::new(&checkpoint, &recipe, &WriteOptions::default()).unwrap();
    let records = plan.tensor_records();
    let decisions = |decision: &str| records.iter().filter(|record| record.decision == decision).count();
    let table = tensor_table(&tiny());
    assert_eq!(decisions("quantized"), table.iter().filter(|spec| spec.role.is_quantized()).count());
    assert_eq!(decisions("transposed"), 3);
    assert_eq!(decisions("shifted"), 2 * 4 + 1 + 2);
    assert_eq!(decisions("kept"), 3 * 3);
    assert_eq!(plan.settings()["bits"], 4);
}

#[test]
fn a_cancelled_conversion_stops() {
    let home = tempfile::tempdir().unwrap();
    TinyCheckpoint::new().write_to(&home.path().join("source"));
    let checkpoint = Checkpoint::open(&home.path().join("source")).unwrap();
    let recipe = RoundToNearest(AffineSpec::new(4, 64).unwrap());
    let plan = Plan::new(&checkpoint, &recipe, &WriteOptions::default()).unwrap();
    let calls = std::cell::Cell::new(0);
    let result = plan.write(home.path(), &|_| {
        calls.set(calls.get() + 1);
        if calls.get() == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(result, Err(WriteError::Cancelled)));
    assert_eq!(calls.get(), 3);
}

#[test]
fn what_cannot_be_converted_is_refused_by_name() {
    let mut irregular = tiny();
    irregular.layer_types = vec![
        LayerKind::FullAttention,
        LayerKind::LinearAttention,
        LayerKind::LinearAttention,
        LayerKind::FullAttention,
    ];
    let (_home, result) =
        convert_with(&TinyCheckpoint::new().with_config(irregular), 4, 64, &WriteOptions::default());
    assert!(result.unwrap_err().to_string().contains("every n-th layer"));

    let mut narrow = tiny();
    narrow.hidden_size = 96;
    narrow.intermediate_size = 96;
    narrow.num_attention_heads = 3;
    narrow.num_key_value_heads = 3;
    narrow.linear_value_head_dim = 48;
    let (_home, result) =
        convert_with(&TinyCheckpoint::new().with_config(narrow), 4, 128, &WriteOptions::default());
    assert!(result.unwrap_err().to_string().contains("no matrix of this model divides into groups of 128"));

    let swift = WriteOptions { form: Form::SpeechSwift, ..WriteOptions::default() };
    let (_home, result) = convert_with(&TinyCheckpoint::new().untied(), 4, 64, &swift);
    assert!(result.unwrap_err().to_string().contains("head of its own"));
}

/// Overwrites one element of a tensor of the source.
fn poison(source: &Path, tensor: &str, element: usize, value: u16) {
    let path = source.join("model.safetensors");
    let place = {
        let file = SafetensorsFile::open(&path).unwrap();
        let data = file.tensor(tensor).unwrap().data;
        data.as_ptr().addr() - file.bytes().as_ptr().addr() + 2 * element
    };
    let mut bytes = fs::read(&path).unwrap();
    bytes[place..place + 2].copy_from_slice(&value.to_le_bytes());
    fs::write(&path, bytes).unwrap();
}

#[test]
fn weights_that_are_not_finite_are_named() {
    for (tensor, element, value, shown) in [
        ("model.language_model.layers.1.mlp.up_proj.weight", 777, 0x7fc0, "NaN"),
        ("model.language_model.embed_tokens.weight", 0, 0xff80, "-inf"),
        ("model.language_model.norm.weight", 5, 0x7f80, "inf"),
    ] {
        let home = tempfile::tempdir().unwrap();
        let source = home.path().join("source");
        TinyCheckpoint::new().write_to(&source);
        poison(&source, tensor, element, value);
        let error = convert_dir(home.path(), 4, 64, &WriteOptions::default()).unwrap_err().to_string();
        assert!(
            error.contains(tensor) && error.contains(&format!("{shown} at element {element}")),
            "{error}"
        );
    }
}
