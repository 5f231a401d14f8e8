//! `q35-convert parity` and `eval` through the real binary: exit codes, files, refusals.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use q35_testkit::TinyCheckpoint;
use tempfile::TempDir;

struct Work {
    root: TempDir,
}

impl Work {
    fn new() -> Self {
        let work = Self { root: tempfile::tempdir().unwrap() };
        TinyCheckpoint::new().write_to(&work.at("source"));
        let ids: Vec<u32> = (0..40).map(|i| 32 + i * 7 % 90).collect();
        std::fs::write(work.at("ids.json"), serde_json::to_string(&ids).unwrap()).unwrap();
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

    fn convert(&self) {
        let done = self.run(&["mlx", "--model", "source", "--out", "int4", "--bits", "4", "--no-verify"]);
        assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    }

    fn parity(&self, more: &[&str]) -> Output {
        let mut arguments = vec!["parity", "--reference", "source", "--candidate", "int4"];
        // Quantization leaves little of a random model, so its grade is not required.
        arguments.extend(["--ids-file", "ids.json", "--greedy", "8", "--thresholds", "limits.json"]);
        arguments.extend(["--require", "none"]);
        arguments.extend(more);
        std::fs::write(self.at("limits.json"), LIMITS).unwrap();
        self.run(&arguments)
    }
}

const LIMITS: &str = r#"{"schema_version": 1, "description": "", "implementation": {"f32": {
    "mean_kl": {"limit": 1e-6, "because": "f32"}, "hidden_relative": {"limit": 1e-3, "because": "f32"}}},
    "conversion": {"default": {"mean_kl": {"limit": 0.5, "because": "a random model"}}}}"#;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_right_conversion_is_within_and_writes_its_reports() {
    let work = Work::new();
    work.convert();
    let done = work.parity(&[
        "--json",
        "r.json",
        "--html",
        "r.html",
        "--markdown",
        "r.md",
        "--save-reference",
        "pass",
    ]);
    assert_eq!(done.status.code(), Some(0), "{}{}", text(&done.stdout), text(&done.stderr));
    assert!(text(&done.stdout).contains("implementation: computed right"), "{}", text(&done.stdout));
    assert!(text(&done.stdout).contains("fidelity:       "));
    let report = json(&work.at("r.json"));
    assert_eq!((&report["schema_version"], &report["passed"]), (&1.into(), &true.into()));
    assert!(report["implementation"]["kl"]["mean"].as_f64().unwrap() < 1e-6);
    assert!(report["conversion"]["kl"]["mean"].as_f64().unwrap() > 1e-5);
    let html = std::fs::read_to_string(work.at("r.html")).unwrap();
    assert!(html.contains("<svg") && !html.contains("http://") && !html.contains("https://"));
    assert!(std::fs::read_to_string(work.at("r.md")).unwrap().contains("computed right"));

    // The saved pass gives the same numbers, and is refused for other tokens.
    let again = work.parity(&["--json", "again.json", "--use-reference", "pass"]);
    assert_eq!(again.status.code(), Some(0), "{}", text(&again.stderr));
    for scope in ["conversion", "total"] {
        assert_eq!(json(&work.at("again.json"))[scope], report[scope]);
    }
    let other = work.parity(&["--use-reference", "pass", "--positions", "20"]);
    assert_eq!(other.status.code(), Some(2));
    assert!(text(&other.stderr).contains("of another suite"), "{}", text(&other.stderr));
}

#[test]
fn a_wrong_one_is_outside_and_says_where() {
    let work = Work::new();
    work.convert();
    let path = work.at("int4/config.json");
    let config = std::fs::read_to_string(&path).unwrap();
    std::fs::write(
        path,
        config
            .replace("\"rms_norm_eps\": 1e-06", "\"rms_norm_eps\": 0.01")
            .replace("\"rms_norm_eps\": 1e-6", "\"rms_norm_eps\": 0.01"),
    )
    .unwrap();
    let done = work.parity(&[]);
    assert_eq!(done.status.code(), Some(1), "{}{}", text(&done.stdout), text(&done.stderr));
    assert!(text(&done.stdout).contains("rms_norm_eps"), "{}", text(&done.stdout));
}

/// INT8, four bits and two bits to nearest of the embedded model: all computed right, not all still the model.
#[test]
fn both_verdicts_are_apart_and_the_exit_code_follows_the_required_grade() {
    let work = Work::new();
    let judge = |name: &str, more: &[&str]| {
        let mut arguments = vec!["parity", "--reference", "q35-nano", "--candidate", name, "--short"];
        arguments.extend(["--greedy", "16", "--json", "r.json", "--markdown", "r.md", "--html", "r.html"]);
        arguments.extend(more);
        let done = work.run(&arguments);
        let report = json(&work.at("r.json"));
        assert_eq!(report["passed"], true, "the implementation of {name} is right");
        (done.status.code(), report["fidelity"]["grade"].as_str().unwrap().to_owned())
    };
    for bits in ["8", "4", "2"] {
        let convert = ["mlx", "--model", "q35-nano", "--out", bits, "--recipe", "rtn", "--bits", bits];
        let done = work.run(&[&convert[..], &["--no-verify", "--quiet"]].concat());
        assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    }
    assert_eq!(judge("8", &["--require", "faithful"]), (Some(0), "faithful".into()));
    assert_eq!(judge("4", &[]), (Some(1), "degraded".into()));
    assert_eq!(judge("4", &["--require", "degraded"]).0, Some(0));
    assert_eq!(judge("2", &["--require", "degraded"]), (Some(1), "destroyed".into()));
    assert_eq!(judge("2", &["--require", "destroyed"]).0, Some(0));
    assert_eq!(judge("2", &["--require", "none"]).0, Some(0));
    assert_eq!(judge("2", &[]).0, Some(1));

    let report = json(&work.at("r.json"));
    assert_eq!(report["required"], "close");
    let greedy = &report["greedy"][0];
    assert_ne!(greedy["texts"]["reference"], greedy["texts"]["candidate"]);
    assert!(!greedy["texts"]["reference"].as_str().unwrap().is_empty());
    assert!(report["worst_position"]["reference"][0]["text"].is_string());
    assert!(report["date"].as_str().unwrap().starts_with("20"));
    assert_eq!(report["reference"]["hash"].as_str().unwrap().len(), 64);
    assert!(report["candidate"]["recipe"].as_str().unwrap().contains("rtn"));
    for file in ["r.md", "r.html"] {
        let rendered = std::fs::read_to_string(work.at(file)).unwrap();
        for expected in ["destroyed", "computed right", "elow the required grade", "greedy agreement"] {
            assert!(rendered.contains(expected), "{file} without `{expected}`");
        }
    }

    let refused = work.run(&["parity", "--reference", "q35-nano", "--candidate", "8", "--require", "good"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("faithful, close, degraded or destroyed"));
}

#[test]
fn a_quantized_reference_is_refused() {
    let work = Work::new();
    work.convert();
    let done = work.run(&["parity", "--reference", "int4", "--candidate", "int4"]);
    assert_eq!(done.status.code(), Some(2));
    let message = text(&done.stderr);
    assert!(message.contains("the reference is quantized: int4") && message.contains("mlx-4"), "{message}");
    let done = work.run(&["eval", "--against", "int4", "--model", "source", "--tokens", "16"]);
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    assert!(text(&done.stderr).contains("int4 is quantized itself"), "{}", text(&done.stderr));
}

#[test]
fn eval_has_a_text_of_its_own() {
    let work = Work::new();
    let done = work.run(&["eval", "--model", "source", "--tokens", "16", "--json"]);
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    let found: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    assert!(found["models"][0]["perplexity"].as_f64().unwrap() > 1.0);
}

#[test]
fn what_cannot_run_is_two() {
    let work = Work::new();
    let done = work.parity(&[]);
    assert_eq!(done.status.code(), Some(2), "no candidate");
    work.convert();
    std::fs::write(work.at("ids.json"), "[1, 99999]").unwrap();
    let done = work.parity(&[]);
    assert_eq!(done.status.code(), Some(2));
    assert!(text(&done.stderr).contains("outside the vocabulary"), "{}", text(&done.stderr));
}

#[test]
fn a_conversion_records_its_check() {
    let work = Work::new();
    let done = work.run(&["mlx", "--model", "source", "--out", "checked", "--bits", "8", "--json"]);
    let manifest = json(&work.at("checked/manifest.json"));
    assert!(
        manifest["parity"]["implementation"]["mean_kl"].as_f64().unwrap() < 1e-6,
        "{}",
        text(&done.stderr)
    );
    assert!(
        std::fs::read_to_string(work.at("checked/README.md"))
            .unwrap()
            .contains("Parity with the float model")
    );
    assert_eq!(work.run(&["verify", "checked"]).status.code(), Some(0));
    work.convert();
    assert_eq!(json(&work.at("int4/manifest.json"))["parity"], "unverified");
}

#[test]
fn eval_shows_models_side_by_side() {
    let work = Work::new();
    work.convert();
    std::fs::write(work.at("text.txt"), "The quick brown fox jumps over the lazy dog. ".repeat(8)).unwrap();
    let task = r#"{"kind": "k", "match": "contains", "messages": [{"role": "user", "content": "a"}], "expect": "zzz"}"#;
    std::fs::write(work.at("tasks.jsonl"), task).unwrap();
    let done = work.run(&[
        "eval",
        "--against",
        "source",
        "--model",
        "int4",
        "source",
        "--text",
        "text.txt",
        "--window",
        "64",
        "--chat",
        "tasks.jsonl",
        "--max-tokens",
        "4",
        "--json",
    ]);
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    let found: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    let models = found["models"].as_array().unwrap();
    assert_eq!(models.len(), 3);
    assert!(models[1]["mean_kl"].as_f64().unwrap() > 1e-6);
    assert!(models[2]["mean_kl"].as_f64().unwrap() < 1e-12, "the source against itself");
    assert_eq!(models[0]["perplexity"], models[2]["perplexity"]);
    let score = serde_json::json!([{"kind": "k", "thinking": false, "right": 0, "of": 1}]);
    assert_eq!(models[0]["tasks"], score);
}
