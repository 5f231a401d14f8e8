//! Contents of a converted directory: packages of the documented form, the same bytes every time.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use q35_checkpoint::Checkpoint;
use q35_format_coreml::{
    Cache, Compute, Embedding, Encoding, HOST_TABLE, Layout, Options, Plan, WriteError, Written, write,
};
use q35_format_mil::{DType, InspectedFunction, Inspection, Package, check, inspect};
use q35_testkit::TinyCheckpoint;
use tempfile::TempDir;

/// A checkpoint and its conversions.
struct Work {
    root: TempDir,
}

impl Work {
    fn new(checkpoint: &TinyCheckpoint) -> Self {
        let root = tempfile::tempdir().unwrap();
        checkpoint.write_to(&root.path().join("source"));
        Self { root }
    }

    fn source(&self) -> PathBuf {
        self.root.path().join("source")
    }

    fn convert(&self, name: &str, options: &Options) -> Result<(PathBuf, Written), WriteError> {
        let out = self.root.path().join(name);
        std::fs::create_dir(&out).unwrap();
        let checkpoint = Checkpoint::open(&self.source()).unwrap();
        let written = write(&checkpoint, options, &out, &|_| {})?;
        Ok((out, written))
    }

    fn converted(&self, name: &str, options: &Options) -> PathBuf {
        self.convert(name, options).unwrap().0
    }
}

fn small() -> Options {
    Options { context: 64, prefill_chunk: 16, ..Options::default() }
}

fn inspected(package: &Path) -> Inspection {
    inspect(&Package::open(package).unwrap())
}

fn features(all: &[(String, String)]) -> BTreeMap<&str, &str> {
    all.iter().map(|(name, ty)| (name.as_str(), ty.as_str())).collect()
}

/// Every package of a directory with its inspection.
fn packages(dir: &Path) -> BTreeMap<String, Inspection> {
    let entries = dir.read_dir().unwrap().map(|entry| entry.unwrap().path());
    let packages = entries.filter(|path| path.extension().is_some_and(|kind| kind == "mlpackage"));
    packages.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), inspected(&path))).collect()
}

fn assert_language_model(function: &InspectedFunction, tokens: usize) {
    let inputs = features(&function.inputs);
    assert_eq!(inputs["input_ids"], format!("int32[1, {tokens}]"));
    assert_eq!(inputs["attention_mask"], format!("int32[1, {tokens}]"));
    assert_eq!(inputs["position"], "int32[1]");
    assert_eq!(features(&function.outputs)["logits"], "fp16[1, 1, 320]");
    assert_eq!(function.opset, "CoreML8");
}

#[test]
fn one_package_has_both_functions_and_one_state() {
    let work = Work::new(&TinyCheckpoint::new());
    let out = work.converted("out", &small());
    let all = packages(&out);
    assert_eq!(all.keys().collect::<Vec<_>>(), ["model.mlpackage"]);
    let package = &all["model.mlpackage"];
    assert_eq!(package.specification_version, 9);
    let [decode, prefill] = &package.functions[..] else { panic!("{package:#?}") };
    assert_eq!((decode.name.as_str(), prefill.name.as_str()), ("decode", "prefill"));
    for (function, tokens) in [(decode, 1), (prefill, 16)] {
        assert_language_model(function, tokens);
        // One attention layer: its keys and its values. Three linear layers, packed by kind.
        assert_eq!(features(&function.states), BTreeMap::from([("kv_cache", "fp16[2, 2, 64, 32]")]));
        let (inputs, outputs) = (features(&function.inputs), features(&function.outputs));
        for (name, ty) in [("conv_state", "fp16[3, 3, 256]"), ("recurrent_state", "fp16[3, 2, 32, 64]")] {
            assert_eq!((inputs[name], outputs[format!("{name}_out").as_str()]), (ty, ty));
        }
        assert_eq!((inputs.len(), outputs.len()), (5, 3));
        assert!(!function.operators.keys().any(|op| ["while_loop", "cond", "cumsum"].contains(&op.as_str())));
    }
}

#[test]
fn caches_may_go_in_and_out_layer_by_layer() {
    let work = Work::new(&TinyCheckpoint::new());
    let out = work.converted("out", &Options { cache: Cache::Io, ..small() });
    for function in &packages(&out)["model.mlpackage"].functions {
        assert!(function.states.is_empty());
        let (inputs, outputs) = (features(&function.inputs), features(&function.outputs));
        let mut expected = BTreeMap::from([("kv_cache_3".to_owned(), "fp16[2, 2, 64, 32]")]);
        for layer in 0..3 {
            expected.insert(format!("conv_state_{layer}"), "fp16[1, 3, 256]");
            expected.insert(format!("recurrent_state_{layer}"), "fp16[1, 2, 32, 64]");
        }
        for (name, ty) in &expected {
            let (stem, layer) = name.rsplit_once('_').unwrap();
            assert_eq!((inputs[name.as_str()], outputs[format!("{stem}_out_{layer}").as_str()]), (*ty, *ty));
        }
        assert_eq!((inputs.len(), outputs.len()), (3 + expected.len(), 1 + expected.len()));
    }
}

#[test]
fn two_packages_are_complete_each() {
    let work = Work::new(&TinyCheckpoint::new());
    let split = packages(&work.converted("split", &Options { layout: Layout::Split, ..small() }));
    let joined = packages(&work.converted("joined", &small()));
    for (name, tokens) in [("prefill.mlpackage", 16), ("decode.mlpackage", 1)] {
        let [main] = &split[name].functions[..] else { panic!("{name}") };
        assert_eq!(main.name, "main");
        assert_language_model(main, tokens);
        // One file serves both functions: shared weights are in it once.
        let int8 = |inspection: &Inspection| inspection.weight_bytes[&DType::I8];
        assert_eq!(int8(&split[name]), int8(&joined["model.mlpackage"]));
    }
}

#[test]
fn speech_swift_finds_what_it_loads() {
    let work = Work::new(&TinyCheckpoint::new());
    let out = work.converted("out", &Options { layout: Layout::SpeechSwift, ..small() });
    let all = packages(&out);
    assert_eq!(all.keys().collect::<Vec<_>>(), ["decoder.mlpackage", "embedding.mlpackage"]);
    let main = |name: &str| all[name].functions[0].clone();
    let embedding = main("embedding.mlpackage");
    assert_eq!(features(&embedding.inputs), BTreeMap::from([("token_id", "int32[1, 1]")]));
    assert_eq!(features(&embedding.outputs), BTreeMap::from([("embedding", "fp16[1, 1, 128]")]));
    let decoder = main("decoder.mlpackage");
    let inputs = [
        ("input_embeds", "fp32[1, 1, 128]"),
        ("position", "int32[1]"),
        ("attention_mask", "fp32[1, 1, 1, 64]"),
    ];
    assert_eq!(features(&decoder.inputs), BTreeMap::from(inputs));
    assert_eq!(features(&decoder.outputs), BTreeMap::from([("logits", "fp16[1, 1, 320]")]));
    let states = features(&decoder.states);
    for layer in 0..3 {
        assert_eq!(states[format!("conv_state_{layer}").as_str()], "fp16[1, 256, 3]");
        assert_eq!(states[format!("recurrent_state_{layer}").as_str()], "fp16[1, 2, 32, 64]");
    }
    assert_eq!((states["k_cache_3"], states["v_cache_3"]), ("fp16[1, 2, 64, 32]", "fp16[1, 2, 64, 32]"));
    assert_eq!(states.len(), 8);
    let config = std::fs::read(out.join("chat_config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    assert_eq!((&config["max_seq_length"], &config["hidden_size"]), (&64.into(), &128.into()));
}

#[test]
fn the_host_may_keep_the_table() {
    let work = Work::new(&TinyCheckpoint::new());
    let out = work.converted("out", &Options { embedding: Embedding::Host, ..small() });
    for (function, tokens) in packages(&out)["model.mlpackage"].functions.iter().zip([1, 16]) {
        let inputs = features(&function.inputs);
        assert_eq!(inputs["inputs_embeds"], format!("fp16[1, {tokens}, 128]"));
        assert!(!inputs.contains_key("input_ids") && !function.operators.contains_key("gather"));
    }
    let table = std::fs::read(out.join(HOST_TABLE)).unwrap();
    let table = safetensors::SafeTensors::deserialize(&table).unwrap();
    let (codes, scales) =
        (table.tensor("embed_tokens.weight").unwrap(), table.tensor("embed_tokens.scales").unwrap());
    assert_eq!((codes.dtype(), codes.shape()), (safetensors::Dtype::I8, &[320, 128][..]));
    assert_eq!((scales.dtype(), scales.shape()), (safetensors::Dtype::F16, &[320, 1][..]));
}

#[test]
fn nothing_is_wrong_or_merely_unusual_in_any_form() {
    let work = Work::new(&TinyCheckpoint::new());
    let mut forms: Vec<Options> =
        Encoding::ALL.iter().map(|&encoding| Options { encoding, ..small() }).collect();
    forms.push(Options { cache: Cache::Io, compute: Compute::F32, head_splits: Some(3), ..small() });
    forms.push(Options { layout: Layout::Split, embedding: Embedding::Host, ..small() });
    forms.push(Options { layout: Layout::SpeechSwift, encoding: Encoding::Affine, ..small() });
    for (number, options) in forms.iter().enumerate() {
        let out = work.converted(&number.to_string(), options);
        for name in packages(&out).keys() {
            let report = check(&Package::open(&out.join(name)).unwrap());
            assert!(report.errors.is_empty() && report.notes.is_empty(), "{options:?} {name}: {report:#?}");
        }
    }
}

#[test]
fn the_head_is_cut_as_asked_and_shares_the_table() {
    let work = Work::new(&TinyCheckpoint::new());
    let one = packages(&work.converted("one", &small()));
    let five = packages(&work.converted("five", &Options { head_splits: Some(5), ..small() }));
    let linear = |all: &BTreeMap<String, Inspection>| all["model.mlpackage"].functions[0].operators["linear"];
    assert_eq!(linear(&five), linear(&one) + 4);
    let int8 = |all: &BTreeMap<String, Inspection>| all["model.mlpackage"].weight_bytes[&DType::I8];
    assert_eq!(int8(&five), int8(&one));
}

#[test]
fn the_same_input_gives_the_same_bytes_on_any_number_of_threads() {
    let work = Work::new(&TinyCheckpoint::new());
    for (number, &encoding) in Encoding::ALL.iter().enumerate() {
        let options = Options { encoding, embedding: Embedding::Host, ..small() };
        let with_threads = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| work.converted(&format!("{number}-{threads}"), &options))
        };
        let (one, several) = (files(&with_threads(1)), files(&with_threads(3)));
        assert!(one.len() >= 5 && one == several, "{}", encoding.name());
    }
}

/// All files below a directory by their path.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut left = vec![dir.to_owned()];
    while let Some(at) = left.pop() {
        for path in at.read_dir().unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                left.push(path);
            } else {
                let bytes = std::fs::read(&path).unwrap();
                found.insert(path.strip_prefix(dir).unwrap().to_owned(), bytes);
            }
        }
    }
    found
}

#[test]
fn configuration_comes_along_and_every_tensor_is_recorded() {
    let work = Work::new(&TinyCheckpoint::new());
    let out = work.converted("out", &small());
    assert!(out.join("config.json").is_file());
    let checkpoint = Checkpoint::open(&work.source()).unwrap();
    let records = Plan::new(&checkpoint, &small()).unwrap().tensor_records();
    assert_eq!(records.len(), checkpoint.tensors().count());
    let decisions = |decision: &str| records.iter().filter(|record| record.decision == decision).count();
    assert_eq!(decisions("shifted"), 2 * 4 + 1 + 2);
    assert_eq!(decisions("exponentiated"), 3);
}

#[test]
fn a_cancelled_conversion_stops() {
    let work = Work::new(&TinyCheckpoint::new());
    let checkpoint = Checkpoint::open(&work.source()).unwrap();
    let plan = Plan::new(&checkpoint, &small()).unwrap();
    let result = plan.write("tiny", work.root.path(), &|_| ControlFlow::Break(()));
    assert!(matches!(result, Err(WriteError::Cancelled)));
}
