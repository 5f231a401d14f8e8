//! `q35-convert coreml`, and what the other commands make of its packages, through the real binaries.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use q35_testkit::TinyCheckpoint;
use serde_json::{Value, json};
use tempfile::TempDir;

struct Work {
    root: TempDir,
}

impl Work {
    fn new() -> Self {
        let work = Self { root: tempfile::tempdir().unwrap() };
        TinyCheckpoint::new().write_to(&work.at("source"));
        work
    }

    fn at(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_q35-convert"))
            .args(arguments)
            .current_dir(self.root.path())
            .output()
            .unwrap()
    }

    /// Converts the checkpoint to `name`, with a small context.
    fn convert(&self, name: &str, more: &[&str]) {
        let base =
            ["coreml", "--model", "source", "--out", name, "--context", "128", "--no-verify", "--quiet"];
        let done = self.run(&[&base[..], more].concat());
        assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    }

    fn logits(&self, model: &str, how: &[&str]) -> (Vec<f32>, Vec<i64>) {
        let ids: Vec<u32> = (0..20).map(|i| 3 + i * 11 % 250).collect();
        std::fs::write(self.at("ids.json"), json!(ids).to_string()).unwrap();
        let out = format!("{model}.logits");
        let base = ["logits", "--model", model, "--ids-file", "ids.json", "--steps", "4", "--out", &out];
        let done = self.run(&[&base[..], how].concat());
        assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
        let bytes = std::fs::read(self.at(&out)).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let words = file.tensor("logits").unwrap().data().as_chunks::<4>().0;
        let ids = file.tensor("decoded_ids").unwrap().data().as_chunks::<8>().0;
        let logits = words.iter().map(|word| f32::from_le_bytes(*word)).collect();
        (logits, ids.iter().map(|id| i64::from_le_bytes(*id)).collect())
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn json_of(output: &Output) -> Value {
    assert!(matches!(output.status.code(), Some(0 | 1)), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn weight_file(package: &Path) -> PathBuf {
    package.join("Data/com.apple.CoreML/weights/weight.bin")
}

#[test]
fn every_form_gives_the_same_logits() {
    let work = Work::new();
    work.convert("base", &["--compute", "f32"]);
    let (expected, ids) = work.logits("base", &["--exact"]);
    let forms: [&[&str]; 5] = [
        &["--layout", "split", "--cache", "io"],
        &["--embedding", "host", "--encoding", "lut"],
        &["--layout", "split", "--embedding", "host", "--encoding", "affine", "--head-splits", "3"],
        &["--cache", "io", "--prefill-chunk", "8"],
        &["--for", "speech-swift"],
    ];
    for (number, form) in forms.iter().enumerate() {
        let name = format!("form-{number}");
        work.convert(&name, &[form, &["--compute", "f32"][..]].concat());
        let (found, found_ids) = work.logits(&name, &["--exact"]);
        let scale = expected.iter().fold(0f32, |most, v| most.max(v.abs()));
        let furthest = expected.iter().zip(&found).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(furthest <= 1e-5 * scale, "{form:?}: {furthest} of {scale}");
        assert_eq!(found_ids, ids, "{form:?}");
    }
}

#[test]
fn a_package_is_inspected_as_json_and_as_text() {
    let work = Work::new();
    work.convert("out", &["--encoding", "block32"]);
    for path in ["out", "out/model.mlpackage"] {
        let report = json_of(&work.run(&["inspect", path, "--json"]));
        let package = &report["packages"][0];
        let functions = package["functions"].as_array().unwrap();
        let names: Vec<&str> = functions.iter().map(|f| f["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["decode", "prefill"]);
        assert_eq!(functions[0]["states"][0]["name"], "kv_cache");
        assert!(functions[0]["operators"]["linear"].as_u64().unwrap() > 10);
        assert!(package["weight_bytes"]["int8"].as_u64().unwrap() > 100_000);
        assert_eq!((&package["defects"], &package["notes"]), (&json!([]), &json!([])));
        let risks = package["neural_engine_risks"].as_array().unwrap();
        let blocks = risks.iter().find(|risk| risk["limit"] == "block_scales").unwrap();
        assert!(blocks["source"].as_str().unwrap().contains("coremltools issue 2510"));
    }
    let shown = work.run(&["inspect", "out"]);
    let printed = text(&shown.stdout);
    for part in
        ["function prefill", "input_ids", "state", "operators:", "int8", "source:", "risks, not facts"]
    {
        assert!(printed.contains(part), "{part} in\n{printed}");
    }
    assert_eq!(shown.status.code(), Some(0));
}

#[test]
fn verify_notices_one_changed_byte() {
    let work = Work::new();
    work.convert("out", &[]);
    assert_eq!(work.run(&["verify", "out"]).status.code(), Some(0));
    let path = weight_file(&work.at("out/model.mlpackage"));
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let no = work.run(&["verify", "out"]);
    assert_eq!(no.status.code(), Some(1));
    assert!(text(&no.stdout).contains("weight.bin"), "{}", text(&no.stdout));
}

#[test]
fn damaged_packages_are_refused_by_name() {
    let work = Work::new();
    work.convert("out", &[]);
    std::fs::write(work.at("ids.json"), "[1, 2]").unwrap();
    let package = work.at("out/model.mlpackage");
    let model = package.join("Data/com.apple.CoreML/model.mlmodel");
    let (weights, manifest) = (weight_file(&package), package.join("Manifest.json"));
    type Damage = fn(&mut Vec<u8>);
    let damages: [(&Path, Damage, &str); 5] = [
        (&weights, |bytes| bytes.truncate(bytes.len() / 2), "weight.bin"),
        (&weights, |bytes| bytes[4] = 9, "storage version 9"),
        (&weights, |bytes| bytes[64] ^= 0xff, "no record at 64"),
        (&model, |bytes| bytes.truncate(bytes.len() / 3), "is no Core ML model"),
        (&manifest, |bytes| bytes.truncate(20), "Manifest.json"),
    ];
    for (path, damage, message) in damages {
        let whole = std::fs::read(path).unwrap();
        let mut bytes = whole.clone();
        damage(&mut bytes);
        std::fs::write(path, bytes).unwrap();
        for command in [
            &["logits", "--model", "out", "--ids-file", "ids.json", "--out", "never"][..],
            &["inspect", "out/model.mlpackage"][..],
        ] {
            let refused = work.run(command);
            let said = text(&refused.stderr) + &text(&refused.stdout);
            assert_ne!(refused.status.code(), Some(0), "{command:?} {message}");
            assert!(said.contains(message), "{command:?}: expected {message:?} in {said}");
        }
        std::fs::write(path, whole).unwrap();
    }
    assert!(!work.at("never").exists());
}

#[test]
fn settings_that_do_not_fit_leave_nothing_behind() {
    let work = Work::new();
    let cases: &[(&[&str], &str)] = &[
        (&["--context", "0"], "--context"),
        (&["--prefill-chunk", "100000"], "--prefill-chunk"),
        (&["--head-splits", "0"], "--head-splits"),
        (&["--encoding", "int3"], "possible values"),
        (&["--for", "speech-swift", "--cache", "io"], "cannot be used with"),
    ];
    for (more, message) in cases {
        let base = ["coreml", "--model", "source", "--out", "out", "--no-verify"];
        let refused = work.run(&[&base[..], more].concat());
        assert_eq!(refused.status.code(), Some(2), "{more:?}");
        assert!(text(&refused.stderr).contains(message), "{more:?}: {}", text(&refused.stderr));
        assert!(!work.at("out").exists());
    }
}
