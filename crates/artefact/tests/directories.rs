//! A table of directory layouts, each with the kind of model that is recognised and its directory, or the error.

use std::fs;
use std::path::Path;

use q35_artefact::{ArtefactDir, ArtefactKind};
use q35_backend::{Backend, RunOptions};
use q35_checkpoint::Checkpoint;
use q35_format_mlx::{RoundToNearest, WriteOptions};
use q35_quant::affine::AffineSpec;
use q35_testkit::TinyCheckpoint;
use tempfile::TempDir;

use ArtefactKind::{Checkpoint as Float, CompiledCoreMl, CoreMl, Mlx};

const FLOAT: &str = r#"{"model_type": "qwen3_5"}"#;
const QUANTIZED: &str = r#"{"model_type": "qwen3_5", "quantization": {"bits": 4, "group_size": 64}}"#;

type Files = &'static [(&'static str, &'static str)];

fn tree(files: Files) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for (name, contents) in files {
        let path = root.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    }
    root
}

#[test]
fn every_layout_has_one_answer() {
    /// Files, requested variant, and the kind with the sub-directory that holds the model.
    type Case = (Files, Option<&'static str>, ArtefactKind, &'static str);
    let cases: &[Case] = &[
        (&[("config.json", FLOAT), ("model.safetensors", "")], None, Float, ""),
        (&[("config.json", FLOAT), ("model-00001-of-00002.safetensors", "")], None, Float, ""),
        // Opening says what is missing, or how to have weights that can be read.
        (&[("config.json", FLOAT)], None, Float, ""),
        (&[("config.json", FLOAT), ("pytorch_model.bin", "")], None, Float, ""),
        (&[("model.gguf", "")], None, Float, ""),
        (&[("adapter_config.json", "{}"), ("adapter_model.safetensors", "")], None, Float, ""),
        (&[("config.json", QUANTIZED), ("model.safetensors", "")], None, Mlx, ""),
        // A model in the directory itself comes before its variants.
        (
            &[("config.json", QUANTIZED), ("model.safetensors", ""), ("int8/config.json", QUANTIZED)],
            None,
            Mlx,
            "",
        ),
        (
            &[("config.json", FLOAT), ("model.safetensors", ""), ("int8/config.json", QUANTIZED)],
            Some("int8"),
            Mlx,
            "int8",
        ),
        // A config.json alone does not make a model of the directory above the variants.
        (
            &[("config.json", FLOAT), ("int8/config.json", QUANTIZED), ("int8/model.safetensors", "")],
            None,
            Mlx,
            "int8",
        ),
        (&[("int4/config.json", QUANTIZED), ("int4/model.safetensors", "")], None, Mlx, "int4"),
        (&[("int4/config.json", QUANTIZED), ("int8/config.json", QUANTIZED)], Some("int8"), Mlx, "int8"),
        (&[("int4/config.json", QUANTIZED), ("mixed/config.json", QUANTIZED)], None, Mlx, "int4"),
        (&[("int4/config.json", QUANTIZED), ("mixed/config.json", QUANTIZED)], Some("mixed"), Mlx, "mixed"),
        (&[("int4/config.json", FLOAT), ("int4/model.safetensors", "")], None, Float, "int4"),
        (&[("int8/model.mlpackage/Manifest.json", "{}")], None, CoreMl, "int8"),
        (&[("config.json", FLOAT), ("model.mlpackage/Manifest.json", "{}")], None, CoreMl, ""),
        (&[("decoder.mlpackage/Manifest.json", "{}"), ("chat_config.json", "{}")], None, CoreMl, ""),
        (
            &[("decoder.mlpackage/Manifest.json", "{}"), ("decoder.mlmodelc/metadata.json", "[]")],
            None,
            CoreMl,
            "",
        ),
        (
            &[("config.json", FLOAT), ("embedding.safetensors", ""), ("model.mlpackage/Manifest.json", "{}")],
            None,
            CoreMl,
            "",
        ),
        (&[("decoder.mlmodelc/metadata.json", "[]"), ("config.json", FLOAT)], None, CompiledCoreMl, ""),
        // Files that an operating system leaves.
        (&[("config.json", QUANTIZED), ("model.safetensors", ""), (".DS_Store", "")], None, Mlx, ""),
    ];
    for (files, variant, kind, below) in cases {
        let root = tree(files);
        let found =
            ArtefactDir::recognise(root.path(), *variant).unwrap_or_else(|e| panic!("{files:?}: {e}"));
        let dir = if below.is_empty() { root.path().to_owned() } else { root.path().join(below) };
        assert_eq!((found.kind, found.dir), (*kind, dir), "{files:?} {variant:?}");
    }
}

#[test]
fn what_holds_no_single_model_is_an_error_that_names_what_it_holds() {
    let cases: &[(Files, Option<&str>, &[&str])] = &[
        (&[], None, &["holds no model", "found:    nothing"]),
        (&[("notes.txt", "")], None, &["holds no model", "found:    notes.txt"]),
        (
            &[("int4/config.json", QUANTIZED), ("int8/config.json", QUANTIZED)],
            None,
            &["holds several models", "int4, int8", "hint: --variant int4"],
        ),
        (&[("int4/config.json", QUANTIZED)], Some("int8"), &["has no variant `int8`", "found:    int4"]),
        (&[("config.json", QUANTIZED)], Some("int8"), &["has no variant `int8`", "found:    nothing"]),
        (&[("config.json", QUANTIZED)], Some(".."), &["has no variant `..`"]),
        (&[("config.json", QUANTIZED)], Some(""), &["has no variant ``"]),
    ];
    for (files, variant, messages) in cases {
        let error = ArtefactDir::recognise(tree(files).path(), *variant).unwrap_err().to_string();
        for message in *messages {
            assert!(error.contains(message), "{files:?} {variant:?}: {error}");
        }
    }
    let packages = tree(&[("model.mlpackage/Manifest.json", "{}")]);
    let error =
        ArtefactDir::recognise(&packages.path().join("model.mlpackage"), None).unwrap_err().to_string();
    assert!(error.contains("is a single Core ML package"), "{error}");
    assert!(error.ends_with(&format!("hint: {}", packages.path().display())), "{error}");
}

#[test]
fn compiled_packages_are_refused_by_name() {
    let compiled = tree(&[("decoder.mlmodelc/metadata.json", "[]"), ("config.json", FLOAT)]);
    let found = ArtefactDir::recognise(compiled.path(), None).unwrap();
    let error = found.open_model(&RunOptions::default()).err().unwrap().to_string();
    assert!(
        error.contains("expected: .mlpackage") && error.contains("found:    decoder.mlmodelc"),
        "{error}"
    );
}

fn convert(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    let recipe = RoundToNearest(AffineSpec::new(4, 64).unwrap());
    q35_format_mlx::write(&Checkpoint::open(from).unwrap(), &recipe, &WriteOptions::default(), to, &|_| {})
        .unwrap();
}

#[test]
fn the_only_model_below_a_directory_is_found() {
    let home = tempfile::tempdir().unwrap();
    let (source, models) = (home.path().join("source"), home.path().join("models"));
    TinyCheckpoint::new().write_to(&source);
    convert(&source, &models.join("int4"));
    let found = ArtefactDir::recognise(&models, None).unwrap();
    assert_eq!((found.kind, &found.dir), (Mlx, &models.join("int4")));
    let options = RunOptions::default().with_backend(Backend::Cpu);
    assert!(found.open_model(&options).unwrap().model.describe().starts_with("CPU"));
    convert(&source, &models.join("int8"));
    let error = ArtefactDir::recognise(&models, None).unwrap_err().to_string();
    assert!(error.contains("several models") && error.contains("int8"), "{error}");

    assert_eq!(ArtefactDir::recognise(&source, None).unwrap().kind, Float);
}
