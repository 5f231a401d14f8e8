//! Chat, parity, eval, logits and inspect agree on what a directory holds, and take the same `--variant`.

use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

const CONVERT: &str = env!("CARGO_BIN_EXE_q35-convert");
const CHAT: &str = env!("CARGO_BIN_EXE_q35-chat");

struct Workspace(TempDir);

impl Workspace {
    fn new() -> Self {
        let workspace = Self(tempfile::tempdir().unwrap());
        std::fs::write(workspace.path().join("ids.json"), "[1, 2, 3, 4]").unwrap();
        std::fs::write(workspace.path().join("text.txt"), "My name is Ada and I live in Quito.").unwrap();
        workspace
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(self.path());
        // The cache of quantized models, and a hub that must not be reached.
        command.env("XDG_CACHE_HOME", self.path().join(".cache")).env("HOME", self.path());
        command.env("HF_ENDPOINT", "http://127.0.0.1:1");
        command.output().unwrap()
    }

    fn convert(&self, out: &str, bits: &str) {
        let done =
            self.run(CONVERT, &["mlx", "--model", "q35-nano", "--bits", bits, "--out", out, "--no-verify"]);
        assert!(done.status.success(), "{}", stderr(&done));
    }

    /// Exit code, stdout and stderr of each command on the model `dir`, by the command's name.
    fn every_command(&self, dir: &str, variant: Option<&str>) -> Vec<(&'static str, Output)> {
        let commands: [(&str, &str, &[&str]); 6] = [
            ("chat", CHAT, &["--prompt", "Hi", "--max-tokens", "4", "--model", dir]),
            ("bench", CHAT, &["bench", "-p", "4", "-n", "2", "-r", "1", "--model", dir]),
            (
                "parity",
                CONVERT,
                &[
                    "parity",
                    "--reference",
                    "q35-nano",
                    "--ids-file",
                    "ids.json",
                    "--greedy",
                    "2",
                    "--candidate",
                    dir,
                ],
            ),
            ("eval", CONVERT, &["eval", "--text", "text.txt", "--model", dir]),
            ("logits", CONVERT, &["logits", "--ids-file", "ids.json", "--out", "logits", "--model", dir]),
            ("inspect", CONVERT, &["inspect", dir]),
        ];
        let variant: Vec<&str> = variant.into_iter().flat_map(|name| ["--variant", name]).collect();
        commands
            .into_iter()
            .map(|(name, program, arguments)| {
                (name, self.run(program, &[arguments, variant.as_slice()].concat()))
            })
            .collect()
    }

    fn all_refuse(&self, dir: &str, variant: Option<&str>, messages: &[&str]) {
        for (name, output) in self.every_command(dir, variant) {
            assert_eq!(output.status.code(), Some(2), "{name} {dir}: {}", stderr(&output));
            for message in messages {
                assert!(stderr(&output).contains(message), "{name} {dir}: {}", stderr(&output));
            }
        }
    }

    fn all_run(&self, dir: &str, variant: Option<&str>) {
        for (name, output) in self.every_command(dir, variant) {
            // 1: parity ran and judged.
            assert_ne!(output.status.code(), Some(2), "{name} {dir}: {}", stderr(&output));
        }
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn all_commands_agree_on_variants() {
    let workspace = Workspace::new();
    std::fs::create_dir(workspace.path().join("models")).unwrap();
    workspace.convert("models/int4", "4");
    workspace.all_run("models", None);
    workspace.all_refuse("models", Some("int8"), &["has no variant `int8`", "found:    int4"]);
    workspace.convert("models/int8", "8");
    workspace.all_refuse("models", None, &["holds several models", "int4, int8", "hint: --variant int4"]);
    workspace.all_run("models", Some("int8"));
    let inspected = workspace.run(CONVERT, &["inspect", "models", "--variant", "int8"]);
    assert!(String::from_utf8_lossy(&inspected.stdout).contains("8 bits / 64"), "{}", stderr(&inspected));
}

#[test]
fn all_commands_agree_on_what_they_do_not_read() {
    let workspace = Workspace::new();
    for dir in ["empty", "compiled/decoder.mlmodelc", "package/model.mlpackage"] {
        std::fs::create_dir_all(workspace.path().join(dir)).unwrap();
    }
    workspace.all_refuse("empty", None, &["holds no model", "found:    nothing"]);
    workspace.all_refuse("compiled", None, &["compiled Core ML packages", "found:    decoder.mlmodelc"]);
}

#[test]
fn a_float_checkpoint_is_talked_with() {
    let workspace = Workspace::new();
    let source = workspace.path().join("source");
    q35_nano::write_to(&source).unwrap();
    let arguments = ["--model", "source", "--prompt", "My name is Ada.", "--temperature", "0", "--no-think"];
    let first = workspace.run(CHAT, &arguments);
    assert!(first.status.success(), "{}", stderr(&first));
    let note = stderr(&first);
    assert!(note.contains("quantized to INT8 in") && note.lines().count() == 1, "{note}");
    let second = workspace.run(CHAT, &arguments);
    assert_eq!((stderr(&second).as_str(), &second.stdout), ("", &first.stdout));
    let refused = workspace.run(CHAT, &[&arguments[..], &["--bits", "7"]].concat());
    assert_eq!(refused.status.code(), Some(2));
}

#[test]
fn a_mistyped_directory_is_not_looked_up_on_the_hub() {
    let workspace = Workspace::new();
    std::fs::create_dir_all(workspace.path().join("models/int4")).unwrap();
    for dir in ["./model", "models/int8", "a/b/c"] {
        for (name, output) in workspace.every_command(dir, None) {
            assert_eq!(output.status.code(), Some(2), "{name}");
            assert!(stderr(&output).contains("no such directory"), "{name}: {}", stderr(&output));
        }
    }
}

#[test]
fn tokenize_writes_what_logits_reads() {
    let workspace = Workspace::new();
    let done = workspace.run(CONVERT, &["tokenize", "--model", "q35-nano", "My name is Ada."]);
    assert!(done.status.success(), "{}", stderr(&done));
    std::fs::write(workspace.path().join("ids.json"), &done.stdout).unwrap();
    let by_ids = ["logits", "--model", "q35-nano", "--ids-file", "ids.json", "--out", "by-ids"];
    let by_prompt = ["logits", "--model", "q35-nano", "--prompt", "My name is Ada.", "--out", "by-prompt"];
    for arguments in [by_ids, by_prompt] {
        let done = workspace.run(CONVERT, &arguments);
        assert!(done.status.success(), "{}", stderr(&done));
    }
    let read = |name: &str| std::fs::read(workspace.path().join(name)).unwrap();
    assert!(read("by-ids") == read("by-prompt"));
    let object = workspace.run(CONVERT, &["tokenize", "--model", "q35-nano", "--chat", "--json", "Hi"]);
    let object: serde_json::Value = serde_json::from_slice(&object.stdout).unwrap();
    assert_eq!(object["tokens"][0], "<|im_start|>");
    assert_eq!(object["ids"].as_array().unwrap().len(), object["tokens"].as_array().unwrap().len());
}

#[test]
fn eval_has_a_text_of_its_own() {
    let workspace = Workspace::new();
    let done = workspace.run(CONVERT, &["eval", "--model", "q35-nano", "--tokens", "64"]);
    assert!(done.status.success(), "{}", stderr(&done));
    assert!(String::from_utf8_lossy(&done.stdout).contains("perplexity over 63 tokens"));
}
