//! `q35-convert mlx`, `verify` and `inspect` through the real binary: what they print, how they end, and what is on
//! disk afterwards.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use q35_testkit::{TinyCheckpoint, tiny};
use serde_json::{Value, json};
use tempfile::TempDir;

fn convert(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_q35-convert"));
    command.args(arguments).env("HF_HUB_OFFLINE", "1").stdin(Stdio::null());
    command
}

/// Exit code, stdout and stderr.
fn run(arguments: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = convert(arguments).output().unwrap();
    (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

/// A directory with a `source`, into which `out` is converted.
struct Workshop {
    home: TempDir,
}

impl Workshop {
    fn new() -> Self {
        Self::with(&TinyCheckpoint::new())
    }

    fn with(checkpoint: &TinyCheckpoint) -> Self {
        let home = tempfile::tempdir().unwrap();
        checkpoint.write_to(&home.path().join("source"));
        Self { home }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn mlx(&self, more: &[&str]) -> (i32, String, String) {
        let (source, out) = (self.path("source"), self.path("out"));
        let mut arguments = vec!["mlx", "--model", source.to_str().unwrap(), "--out", out.to_str().unwrap()];
        // The loss of random weights is not under test here.
        arguments.push("--no-verify");
        if !more.contains(&"--recipe") {
            arguments.extend(["--recipe", "rtn"]);
        }
        arguments.extend(more);
        run(&arguments)
    }

    fn names(&self) -> Vec<String> {
        contents(self.home.path()).into_iter().map(|(name, _)| name).collect()
    }

    fn edit_config(&self, edit: impl FnOnce(&mut Value)) {
        let path = self.path("source/config.json");
        let mut value: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        edit(&mut value);
        fs::write(path, value.to_string()).unwrap();
    }
}

/// Names in a directory, ascending, and what the files hold.
fn contents(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap_or_default()))
        .collect();
    files.sort();
    files
}

#[test]
fn a_conversion_leaves_a_complete_directory_that_verifies() {
    let shop = Workshop::new();
    let (code, stdout, stderr) = shop.mlx(&[]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains("4 bits in groups of 64 (rtn), 4.500 bits per weight"), "{stdout}");
    assert!(stdout.contains("left out: vision tower"), "{stdout}");
    assert!(stdout.contains("left out: multi-token-prediction block"), "{stdout}");
    let names: Vec<String> = contents(&shop.path("out")).into_iter().map(|(name, _)| name).collect();
    let expected = [
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "manifest.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(names, expected);
    assert_eq!(shop.names(), ["out", "source"]);
    let (code, stdout, _) = run(&["verify", shop.path("out").to_str().unwrap()]);
    assert_eq!(code, 0);
    assert!(stdout.contains("8 files") && stdout.contains("all as written"), "{stdout}");
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let (one, other) = (Workshop::new(), Workshop::new());
    assert_eq!(one.mlx(&[]).0, 0);
    let (source, out) = (other.path("source"), other.path("out"));
    let arguments = [
        "mlx",
        "--model",
        source.to_str().unwrap(),
        "--out",
        out.to_str().unwrap(),
        "--recipe",
        "rtn",
        "--no-verify",
    ];
    assert!(
        convert(&arguments).env("RAYON_NUM_THREADS", "1").stdout(Stdio::null()).status().unwrap().success()
    );
    assert_eq!(contents(&one.path("out")), contents(&out));
}

#[test]
fn json_is_all_that_programs_see() {
    let shop = Workshop::new();
    let (code, stdout, stderr) = shop.mlx(&["--json", "--bits", "8", "--group-size", "32"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    let report: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(report["bits"], 8);
    assert_eq!(report["bits_per_weight"], 9.0);
    assert_eq!(report["left_out"][0]["part"], "vision tower");
    let out = shop.path("out");
    let (_, stdout, _) = run(&["inspect", "--json", out.to_str().unwrap()]);
    let shown: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((shown["kind"].as_str(), shown["bits_per_weight"].as_f64()), (Some("mlx"), Some(9.0)));
    let (code, stdout, _) = run(&["verify", "--json", out.to_str().unwrap()]);
    let verified: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, verified["intact"].as_bool()), (0, Some(true)));
}

#[test]
fn what_is_there_is_replaced_only_on_request_and_whole() {
    let shop = Workshop::new();
    assert_eq!(shop.mlx(&[]).0, 0);
    let before = contents(&shop.path("out"));
    let (code, stdout, stderr) = shop.mlx(&["--bits", "8"]);
    assert_eq!((code, stdout.as_str()), (2, ""));
    assert!(
        stderr.contains("exists already") && stderr.contains("hint:") && stderr.contains("--force"),
        "{stderr}"
    );
    assert_eq!(contents(&shop.path("out")), before);
    fs::write(shop.path("out/stray"), "").unwrap();
    assert_eq!(shop.mlx(&["--bits", "8", "--force"]).0, 0);
    assert!(!shop.path("out/stray").exists());
    assert_ne!(contents(&shop.path("out")), before);
    // A failure leaves the old state too.
    let before = contents(&shop.path("out"));
    fs::write(shop.path("source/config.json"), "{}").unwrap();
    assert_eq!(shop.mlx(&["--force"]).0, 2);
    assert_eq!(contents(&shop.path("out")), before);
    assert_eq!(shop.names(), ["out", "source"]);
}

#[test]
fn a_directory_that_q35_did_not_write_is_never_replaced() {
    let shop = Workshop::new();
    fs::create_dir(shop.path("out")).unwrap();
    fs::write(shop.path("out/thesis.tex"), "ten years of work").unwrap();
    let (code, stdout, stderr) = shop.mlx(&["--force"]);
    assert_eq!((code, stdout.as_str()), (2, ""));
    assert!(stderr.contains("thesis.tex") && stderr.contains("no manifest.json of q35"), "{stderr}");
    assert_eq!(fs::read(shop.path("out/thesis.tex")).unwrap(), b"ten years of work");
    fs::remove_file(shop.path("out/thesis.tex")).unwrap();
    let (code, _, stderr) = shop.mlx(&["--force"]);
    assert_eq!(code, 0, "an empty directory: {stderr}");
    assert_eq!(shop.names(), ["out", "source"]);
}

#[test]
fn the_source_is_never_replaced() {
    let shop = Workshop::new();
    let source = shop.path("source");
    let path = source.to_str().unwrap().to_owned();
    let refused = |message: &str| {
        let before = contents(&source);
        let (code, _, stderr) = run(&["mlx", "--model", &path, "--out", &path, "--force"]);
        assert_eq!(code, 2);
        assert!(stderr.contains(message), "{stderr}");
        assert_eq!(contents(&source), before);
    };
    refused("found: chat_template.jinja, config.json, generation_config.json");
    // Not even where q35 may replace the directory.
    let manifest = json!({"manifest_version": 1, "kind": "mlx", "tool": {"name": "q35", "version": "0"}});
    fs::write(source.join("manifest.json"), manifest.to_string()).unwrap();
    refused("it holds the source");
}

#[test]
fn killed_at_any_moment_it_leaves_the_old_state_or_the_new() {
    let mut config = tiny();
    config.vocab_size = 20_000;
    let shop = Workshop::with(&TinyCheckpoint::new().with_config(config).text_only());
    assert_eq!(shop.mlx(&[]).0, 0);
    let old = contents(&shop.path("out"));
    let (source, out) = (shop.path("source"), shop.path("out"));
    let (source, target) = (source.to_str().unwrap(), out.to_str().unwrap());
    let arguments =
        ["mlx", "--model", source, "--out", target, "--bits", "6", "--force", "--no-verify", "--json"];
    let started = Instant::now();
    assert!(convert(&arguments).stdout(Stdio::null()).status().unwrap().success());
    let whole = started.elapsed();
    let new = contents(&out);
    assert_eq!(shop.mlx(&["--force"]).0, 0);
    assert_eq!(contents(&out), old);

    for step in 0..12u32 {
        let mut child = convert(&arguments).stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(whole.mul_f64(f64::from(step) / 11.0) + Duration::from_micros(u64::from(step)));
        child.kill().unwrap();
        child.wait().unwrap();
        let found = contents(&out);
        assert!(found == old || found == new, "killed in step {step}: {:?}", shop.names());
    }
    // The next run clears away what the killed ones left.
    assert_eq!(shop.mlx(&["--force"]).0, 0);
    assert_eq!(shop.names(), ["out", "source"]);
}

#[test]
fn damage_is_found_and_named() {
    let shop = Workshop::new();
    assert_eq!(shop.mlx(&[]).0, 0);
    let out = shop.path("out");
    let weights = out.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&weights, bytes).unwrap();
    fs::remove_file(out.join("config.json")).unwrap();
    let (code, stdout, stderr) = run(&["verify", out.to_str().unwrap()]);
    assert_eq!((code, stderr.as_str()), (1, ""));
    assert!(
        stdout.contains("config.json: missing") && stdout.contains("model.safetensors: changed"),
        "{stdout}"
    );
    let (code, _, stderr) = run(&["verify", shop.path("source").to_str().unwrap()]);
    assert_eq!(code, 2);
    assert!(stderr.contains("no readable manifest.json"), "{stderr}");
}

#[test]
fn sources_that_cannot_be_used_are_refused_by_name() {
    type Damage = fn(&Workshop);
    let cases: [(Damage, &str); 9] = [
        (
            |shop| shop.edit_config(|config| config["text_config"]["model_type"] = "llama".into()),
            "unsupported architecture `llama`",
        ),
        (
            |shop| shop.edit_config(|config| config["text_config"]["intermediate_size"] = 384.into()),
            "mis-shaped `model.language_model.layers.0.mlp.gate_proj.weight` in model.safetensors: expected [384, 128]",
        ),
        (
            |shop| shop.edit_config(|config| config["tie_word_embeddings"] = false.into()),
            "missing `lm_head.weight` [320, 128]",
        ),
        (
            |shop| shop.edit_config(|config| config["quantization"] = json!({"bits": 4})),
            "an MLX conversion already",
        ),
        (
            |shop| fs::write(shop.path("source/config.json"), "nonsense").unwrap(),
            "config.json is not valid JSON",
        ),
        (|shop| fs::remove_file(shop.path("source/config.json")).unwrap(), "config.json"),
        (
            |shop| {
                let index = json!({"weight_map": {"a": "../b"}}).to_string();
                fs::write(shop.path("source/model.safetensors.index.json"), index).unwrap();
                // Beside a complete model.safetensors the index would be ignored.
                fs::remove_file(shop.path("source/model.safetensors")).unwrap();
            },
            "`a` is placed in \"../b\"",
        ),
        (
            |shop| {
                let path = shop.path("source/model.safetensors");
                let bytes = fs::read(&path).unwrap();
                fs::write(path, &bytes[..bytes.len() - 100]).unwrap();
            },
            "is truncated",
        ),
        (|shop| fs::remove_file(shop.path("source/model.safetensors")).unwrap(), "no weights in"),
    ];
    for (damage, message) in cases {
        let shop = Workshop::new();
        damage(&shop);
        let (code, stdout, stderr) = shop.mlx(&[]);
        assert_eq!((code, stdout.as_str()), (2, ""), "{message}");
        assert!(stderr.starts_with("error: ") && stderr.contains(message), "{message}: {stderr}");
        assert_eq!(shop.names(), ["source"], "{message}");
    }
}

#[test]
fn a_missing_shard_is_named() {
    let shop = Workshop::with(&TinyCheckpoint::new().shards(3));
    fs::remove_file(shop.path("source/model.safetensors-00002-of-00003.safetensors")).unwrap();
    let (code, _, stderr) = shop.mlx(&[]);
    assert_eq!(code, 2);
    assert!(stderr.contains("shard `model.safetensors-00002-of-00003.safetensors` is missing"), "{stderr}");
}

#[test]
fn a_conversion_is_not_converted_again() {
    let shop = Workshop::new();
    assert_eq!(shop.mlx(&[]).0, 0);
    let (out, again) = (shop.path("out"), shop.path("again"));
    let (code, _, stderr) = run(&["mlx", "--model", out.to_str().unwrap(), "--out", again.to_str().unwrap()]);
    assert_eq!(code, 2);
    assert!(
        stderr.contains("an MLX conversion already") && stderr.contains("shift its norms twice"),
        "{stderr}"
    );
}

#[test]
fn wrong_settings_are_refused_before_anything_is_read() {
    let shop = Workshop::new();
    for (arguments, message) in [
        (["--bits", "7"], "expected: one of [2, 3, 4, 5, 6, 8]"),
        (["--group-size", "16"], "expected: one of [32, 64, 128]"),
        (["--recipe", "magic"], "invalid value 'magic'"),
        (["--for", "windows"], "invalid value 'windows'"),
    ] {
        let (code, stdout, stderr) = shop.mlx(&arguments);
        assert_eq!((code, stdout.as_str()), (2, ""));
        assert!(stderr.contains(message), "{stderr}");
    }
    let (code, _, stderr) =
        run(&["mlx", "--model", "./no/such/place", "--out", shop.path("out").to_str().unwrap()]);
    assert_eq!(code, 2);
    assert!(stderr.contains("no/such/place"), "{stderr}");
}

#[test]
fn the_embedded_model_converts_and_is_the_one_described() {
    let shop = Workshop::new();
    let out = shop.path("nano");
    let (code, stdout, stderr) = run(&[
        "mlx",
        "--model",
        "q35-nano",
        "--bits",
        "4",
        "--out",
        out.to_str().unwrap(),
        "--no-verify",
        "-q",
    ]);
    assert_eq!(code, 0, "{stdout}{stderr}");
    let read = |name: &str| serde_json::from_slice::<Value>(&fs::read(out.join(name)).unwrap()).unwrap();
    assert_eq!(read("manifest.json")["source"]["id"], "q35-nano");
    assert!(read("config.json")["eos_token_id"].is_array());
}

#[test]
fn inspecting_shows_parts_types_and_sizes() {
    let shop = Workshop::with(&TinyCheckpoint::new().untied());
    assert_eq!(shop.mlx(&[]).0, 0);
    for (what, expected) in [
        ("source", ["Hugging Face checkpoint", "bfloat16", "besides: vision tower"]),
        ("out", ["MLX model", "4 bits / 64", "head"]),
        ("out/model.safetensors", ["format = mlx", "U32", "[320, 16]"]),
    ] {
        let path = shop.path(what);
        let (code, stdout, _) = run(&["inspect", path.to_str().unwrap()]);
        assert_eq!(code, 0);
        for text in expected {
            assert!(stdout.contains(text), "{what}: no `{text}` in\n{stdout}");
        }
    }
    assert_eq!(run(&["inspect", shop.path("nothing").to_str().unwrap()]).0, 2);
}
