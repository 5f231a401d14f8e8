//! Whole conversions through the library: auxiliary files, manifest, card, verification and cancellation.

use std::path::PathBuf;
use std::sync::Mutex;

use q35_checkpoint::Checkpoint;
use q35_convert::{
    ConversionReport, ConvertError, ConvertOptions, CoreMl, Mlx, Source, Stage, Target, convert,
};
use q35_format_coreml::Options;
use q35_inference::CancelToken;
use q35_testkit::TinyCheckpoint;
use tempfile::TempDir;

/// A tiny checkpoint and its conversions.
struct Fixture {
    root: TempDir,
}

impl Fixture {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        TinyCheckpoint::new().write_to(&root.path().join("source"));
        Self { root }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn convert(&self, target: &dyn Target) -> ConversionReport {
        let options = ConvertOptions::new(self.path("out")).without_verification();
        convert(&Source::directory(self.path("source")), target, &options, &|_| {}).unwrap()
    }
}

fn mlx() -> Mlx {
    Mlx::round_to_nearest(4, 64).unwrap()
}

fn coreml() -> CoreMl {
    CoreMl::new(Options { context: 64, prefill_chunk: 16, ..Options::default() })
}

#[test]
fn auxiliary_files_manifest_and_card_come_along() {
    for target in [&mlx() as &dyn Target, &coreml()] {
        let fixture = Fixture::new();
        let report = fixture.convert(target);
        for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "README.md", "manifest.json"] {
            assert!(report.out.join(name).is_file(), "{name}");
        }
        assert!(report.auxiliary_files.iter().any(|name| name == "tokenizer.json"));
        let card = std::fs::read_to_string(report.out.join("README.md")).unwrap();
        assert!(card.ends_with("\nParity with the float model: unverified.\n"), "{card}");
        assert_eq!(card.contains("Not run by Apple's Core ML"), target.kind() == "coreml", "{card}");
        assert!(q35_output_dir::verify(&report.out).unwrap().problems.is_empty());
        // Every tensor of the source is accounted for.
        let checkpoint = Checkpoint::open(&fixture.path("source")).unwrap();
        let dropped = checkpoint.inventory().dropped_count();
        assert!(dropped > 10);
        let manifest = &report.manifest;
        assert_eq!(manifest.tensors.len(), checkpoint.tensors().count() + dropped);
        assert_eq!(manifest.tensors.iter().filter(|tensor| tensor.decision == "dropped").count(), dropped);
        assert_eq!((manifest.kind.as_str(), manifest.source.id.as_str()), (target.kind(), "source"));
        let weights = manifest.source.files.iter().find(|file| file.path == "model.safetensors").unwrap();
        let path = fixture.path("source").join("model.safetensors");
        assert_eq!(weights, &q35_output_dir::hash_file(&path, "model.safetensors").unwrap());
    }
}

#[test]
fn a_verified_conversion_reports_progress_in_order() {
    let fixture = Fixture::new();
    let stages: Mutex<Vec<Stage>> = Mutex::default();
    let options = ConvertOptions::new(fixture.path("out"));
    let report = convert(&Source::directory(fixture.path("source")), &mlx(), &options, &|progress| {
        let mut stages = stages.lock().unwrap();
        assert!(progress.done <= progress.total);
        if stages.last() != Some(&progress.stage) {
            stages.push(progress.stage);
        }
    })
    .unwrap();
    assert!(report.passed(), "{}", report.describe_parity());
    let stages = stages.into_inner().unwrap();
    assert_eq!(stages[0], Stage::Quantization);
    assert!(matches!(stages[1], Stage::Verification(_)));
}

#[test]
fn a_cancelled_conversion_leaves_nothing() {
    for target in [&mlx() as &dyn Target, &coreml()] {
        for at in [Stage::Quantization, Stage::Verification(q35_parity::Stage::Weights)] {
            let fixture = Fixture::new();
            let cancel = CancelToken::new();
            let options = ConvertOptions::new(fixture.path("out")).with_cancel(cancel.clone());
            let source = Source::directory(fixture.path("source"));
            let result = convert(&source, target, &options, &|progress| {
                if progress.stage == at {
                    cancel.cancel();
                }
            });
            assert!(matches!(result, Err(ConvertError::Cancelled { resume_dir: None })), "{result:?}");
            let left: Vec<_> =
                fixture.root.path().read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert_eq!(left, ["source"], "{at:?}");
        }
    }
}
