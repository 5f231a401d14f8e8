//! `q35-convert mlx --recipe calibrated` through the real binary: sizes, refusals, interruption and resumption.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use q35_testkit::TinyCheckpoint;
use serde_json::Value;
use tempfile::TempDir;

/// A tiny checkpoint and a short calibration text; its tokens are bytes.
struct Workshop {
    home: TempDir,
}

impl Workshop {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        TinyCheckpoint::new().write_to(&home.path().join("source"));
        let text = "The ferry leaves at nine; whoever comes later walks around the lake.\n".repeat(30);
        fs::write(home.path().join("text"), text).unwrap();
        Self { home }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn command(&self, out: &str, more: &[&str]) -> Command {
        let mut command = self.convert("calibrated", out);
        command.args([Path::new("--calibration"), &self.path("text")]).args(more);
        command
    }

    fn convert(&self, recipe: &str, out: &str) -> Command {
        let mut command = self.convert_and_verify(recipe, out);
        command.arg("--no-verify");
        command
    }

    fn convert_and_verify(&self, recipe: &str, out: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_q35-convert"));
        command
            .args(["mlx", "--recipe", recipe, "--json"])
            .args([Path::new("--model"), &self.path("source"), Path::new("--out"), &self.path(out)])
            .env("HF_HUB_OFFLINE", "1")
            .stdin(Stdio::null());
        command
    }

    /// Exit code, stdout and stderr of a calibrated conversion.
    fn calibrated(&self, out: &str, more: &[&str]) -> (i32, String, String) {
        ran(self.command(out, more))
    }

    /// The JSON report of a calibrated conversion.
    fn report(&self, out: &str, more: &[&str]) -> Value {
        let (code, stdout, stderr) = self.calibrated(out, more);
        assert_eq!(code, 0, "{stderr}");
        serde_json::from_str(&stdout).unwrap()
    }

    fn tensors(&self, out: &str) -> Vec<u8> {
        fs::read(self.path(out).join("model.safetensors")).unwrap()
    }

    /// The settings in the manifest.
    fn settings(&self, out: &str) -> Value {
        let manifest = fs::read(self.path(out).join("manifest.json")).unwrap();
        serde_json::from_slice::<Value>(&manifest).unwrap()["settings"].take()
    }
}

/// Exit code, stdout and stderr.
fn ran(mut command: Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn the_result_is_as_large_as_allowed_and_no_larger() {
    let shop = Workshop::new();
    for bits in ["3.5", "4.66", "5.5"] {
        let report = shop.report(bits, &["--bits-per-weight", bits]);
        let (allowed, found) = (bits.parse::<f64>().unwrap(), report["bits_per_weight"].as_f64().unwrap());
        assert!(found <= allowed && found > 0.93 * allowed, "{found} bits of {allowed}");
    }
    let small = shop.report("again", &["--bits-per-weight", "4.66"]);
    assert_eq!(shop.tensors("again"), shop.tensors("4.66"));
    let bytes = small["tensor_bytes"].as_u64().unwrap();
    let fitted = shop.report("fitted", &["--max-bytes", &bytes.to_string()]);
    let found = fitted["tensor_bytes"].as_u64().unwrap();
    assert!(found <= bytes && found * 100 > bytes * 93, "{found} bytes of {bytes}");
}

#[test]
fn the_check_that_follows_knows_what_calibration_may_do() {
    let shop = Workshop::new();
    let mut command = shop.convert_and_verify("calibrated", "checked");
    command.args([Path::new("--calibration"), &shop.path("text")]);
    let (code, stdout, stderr) = ran(command);
    assert_eq!(code, 0, "{stdout}{stderr}");
}

#[test]
fn what_cannot_be_calibrated_is_refused_and_leaves_nothing() {
    let shop = Workshop::new();
    fs::write(shop.path("short"), "Too short.").unwrap();
    for (arguments, message) in [
        (vec!["--bits-per-weight", "2.5"], "expected: at least"),
        (vec!["--max-bytes", "1000"], "the tensors that stay in float alone take"),
        (vec!["--for", "speech-swift"], "hint: use --recipe rtn"),
        (vec!["--bits", "4"], "--bits has no effect with --recipe calibrated"),
    ] {
        let (code, stdout, stderr) = shop.calibrated("out", &arguments);
        assert_eq!((code, stdout.as_str()), (2, ""));
        assert!(stderr.contains(message), "{stderr}");
        assert!(!shop.path("out").exists());
    }
    fs::copy(shop.path("short"), shop.path("text")).unwrap();
    let (code, _, stderr) = shop.calibrated("out", &[]);
    assert_eq!(code, 2);
    assert!(
        stderr.contains("the calibration text is too short\n  expected: at least 512 tokens"),
        "{stderr}"
    );
}

#[test]
fn calibration_is_the_rule_unless_something_speaks_for_rounding() {
    let shop = Workshop::new();
    let command = |out: &str, more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_q35-convert"));
        command.args([Path::new("mlx"), Path::new("--model"), &shop.path("source")]);
        command.args([Path::new("--out"), &shop.path(out)]).args(["--no-verify", "--json"]).args(more);
        command
    };
    let convert = |out: &str, more: &[&str]| {
        let (code, stdout, stderr) = ran(command(out, more));
        assert_eq!(code, 0, "{stderr}");
        let report: Value = serde_json::from_str(&stdout).unwrap();
        (report["recipe"].as_str().unwrap().to_owned(), stderr)
    };
    let text = shop.path("text");
    assert_eq!(convert("option", &["--calibration", text.to_str().unwrap()]).0, "best");
    // The name of the recipe in earlier versions and in manifests.
    let alias = ["--recipe", "best", "--calibration", text.to_str().unwrap()];
    assert_eq!(convert("alias", &alias).0, "best");
    for (out, more) in [
        ("bits", ["--bits", "4"]),
        ("group", ["--group-size", "32"]),
        ("swift", ["--for", "speech-swift"]),
        ("named", ["--recipe", "rtn"]),
    ] {
        assert_eq!(convert(out, &more), ("rtn".to_owned(), String::new()));
    }
    // The built-in text is long for tokens that are bytes: the note suffices.
    let mut usual = command("usual", &[]).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut said = String::new();
    BufReader::new(usual.stderr.take().unwrap()).read_line(&mut said).unwrap();
    usual.kill().unwrap();
    usual.wait().unwrap();
    assert!(said.contains("--recipe calibrated") && said.contains("--recipe rtn takes"), "{said}");
    fs::remove_file(shop.path("source/tokenizer.json")).unwrap();
    let (recipe, said) = convert("silent", &[]);
    assert_eq!(recipe, "rtn");
    assert!(said.contains("no text to calibrate on"), "{said}");
}

#[test]
fn the_cpu_computes_unless_another_device_is_named() {
    let shop = Workshop::new();
    shop.report("unsaid", &[]);
    shop.report("said", &["--device", "cpu"]);
    assert_eq!(shop.tensors("said"), shop.tensors("unsaid"));
    assert_eq!(shop.settings("said"), shop.settings("unsaid"));
}

#[test]
fn a_device_that_cannot_compute_is_refused() {
    let shop = Workshop::new();
    let mut refused = vec![("tpu", "invalid value 'tpu' for '--device <DEVICE>'")];
    if !cfg!(feature = "cuda") {
        refused.push(("cuda", "hint: build with the cargo feature `cuda`"));
    }
    if !cfg!(feature = "candle-metal") {
        refused.push(("metal", "hint: build with the cargo feature `candle-metal`"));
    }
    for (device, message) in refused {
        let (code, stdout, stderr) = shop.calibrated("out", &["--device", device]);
        assert_eq!((code, stdout.as_str()), (2, ""));
        assert!(stderr.contains(message), "{stderr}");
        assert!(!shop.path("out").exists());
    }
    let mut nearest = shop.convert("rtn", "out");
    nearest.args(["--device", "cpu"]);
    let (code, stdout, stderr) = ran(nearest);
    assert_eq!((code, stdout.as_str()), (2, ""));
    assert!(stderr.contains("--device has no effect with --recipe rtn"), "{stderr}");
}

#[test]
fn a_killed_calibration_goes_on_where_it_was() {
    let shop = Workshop::new();
    shop.report("whole", &[]);
    let saved = shop.path(".killed.calibration");
    let mut running =
        shop.command("killed", &[]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while !saved.join("layer-0.safetensors").exists() && running.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    running.kill().unwrap();
    running.wait().unwrap();
    assert!(!shop.path("killed").exists(), "it was done before it could be killed");
    shop.report("killed", &[]);
    assert_eq!(shop.tensors("killed"), shop.tensors("whole"));
    assert!(!saved.exists(), "what was saved is removed when the result is there");
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let shop = Workshop::new();
    for threads in ["1", "3"] {
        assert!(
            shop.command(threads, &["-q"])
                .env("RAYON_NUM_THREADS", threads)
                .output()
                .unwrap()
                .status
                .success()
        );
    }
    assert_eq!(shop.tensors("1"), shop.tensors("3"));
}

/// Sends SIGINT, as Ctrl-C does.
#[cfg(unix)]
fn interrupt(child: &std::process::Child) {
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
}

#[cfg(unix)]
#[test]
fn an_interrupted_calibration_leaves_no_output_and_continues() {
    let shop = Workshop::new();
    shop.report("whole", &[]);
    let saved = shop.path(".stopped.calibration");
    for times in [1, 2] {
        // The process is ready for the signal once it has saved a layer itself.
        let _ = fs::remove_dir_all(&saved);
        let mut running =
            shop.command("stopped", &[]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        while !saved.join("layer-0.safetensors").exists() && running.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        for _ in 0..times {
            interrupt(&running);
            std::thread::sleep(Duration::from_millis(2));
        }
        let Output { status, stderr, .. } = running.wait_with_output().unwrap();
        let stderr = String::from_utf8(stderr).unwrap();
        assert_eq!(status.code(), Some(130), "{stderr}");
        assert!(
            stderr.contains("interrupted: the conversion was cancelled; nothing was written"),
            "{stderr}"
        );
        assert!(stderr.contains("continues the calibration from"), "{stderr}");
        assert!(!shop.path("stopped").exists());
        let left: Vec<String> = fs::read_dir(shop.home.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.contains("stopped"))
            .collect();
        assert_eq!(left, [".stopped.calibration"]);
    }
    shop.report("stopped", &[]);
    assert_eq!(shop.tensors("stopped"), shop.tensors("whole"));
    assert!(!saved.exists());
}
