//! Hub ids through the real binaries: a hub on loopback that drops the connection half-way, lies, or is not there.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use q35_testkit::{Fault, HubServer, TinyCheckpoint, tiny};
use serde_json::Value;
use tempfile::TempDir;

const WEIGHTS: &str = "model.safetensors";

/// A user's machine: a home of the Hugging Face tools, a place to write, and the hub's address.
struct Machine {
    home: TempDir,
    endpoint: String,
}

impl Machine {
    fn with(hub: &HubServer) -> Self {
        Self { home: tempfile::tempdir().unwrap(), endpoint: hub.address().to_owned() }
    }

    fn path(&self, name: &str) -> String {
        self.home.path().join(name).to_str().unwrap().to_owned()
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null());
        command.env("HF_HOME", self.path("hf")).env("HF_ENDPOINT", &self.endpoint).env("HF_TOKEN", "secret");
        command.env_remove("HF_HUB_OFFLINE").env_remove("HF_HUB_CACHE");
        command
    }

    fn mlx(&self, out: &str, more: &[&str]) -> Command {
        let out = self.path(out);
        let arguments =
            [&["mlx", "--model", "owner/model", "--recipe", "rtn", "--out", &out, "--no-verify"], more]
                .concat();
        self.command(env!("CARGO_BIN_EXE_q35-convert"), &arguments)
    }
}

/// Exit code, stdout and stderr.
fn run(mut command: Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

/// A tiny checkpoint, large enough to be cut in two.
fn hub() -> HubServer {
    let source = tempfile::tempdir().unwrap();
    TinyCheckpoint::new().with_config(tiny()).write_to(source.path());
    HubServer::of_directory("owner/model", source.path())
}

fn weights_of(dir: &str) -> Vec<u8> {
    std::fs::read(Path::new(dir).join(WEIGHTS)).unwrap()
}

#[test]
fn a_hub_id_is_fetched_once_and_its_commit_recorded() {
    let hub = hub();
    let machine = Machine::with(&hub);
    let (code, _, stderr) = run(machine.mlx("out", &[]));
    assert_eq!(code, 0, "{stderr}");
    let manifest = std::fs::read(machine.path("out/manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    assert_eq!(manifest["source"]["id"], "owner/model");
    assert_eq!(manifest["source"]["revision"], HubServer::COMMIT);
    assert!(hub.requests().iter().all(|request| request.authorization.as_deref() == Some("Bearer secret")));
    let asked = hub.requests().len();
    assert_eq!(run(machine.mlx("again", &[])).0, 0);
    assert_eq!(hub.requests().len(), asked + 1, "asked for the commit only");
    assert_eq!(weights_of(&machine.path("out")), weights_of(&machine.path("again")));
    // Other tools of the hub look for it there.
    let snapshot = format!("hf/hub/models--owner--model/snapshots/{}", HubServer::COMMIT);
    assert_eq!(weights_of(&machine.path(&snapshot)), hub.file(WEIGHTS));
}

#[test]
fn a_connection_that_breaks_half_way_costs_only_the_rest() {
    let hub = hub().with_fault(WEIGHTS, Fault::DropsConnection(3));
    let machine = Machine::with(&hub);
    let (code, _, stderr) = run(machine.mlx("out", &[]));
    assert_eq!(code, 0, "{stderr}");
    let ranges = hub.ranges_of(WEIGHTS);
    let half = format!("bytes={}-", hub.file(WEIGHTS).len() / 2);
    assert_eq!((ranges.len(), ranges[0].as_deref(), ranges[1].as_deref()), (4, None, Some(half.as_str())));
    let whole = Machine::with(&self::hub());
    assert_eq!(run(whole.mlx("out", &[])).0, 0);
    assert_eq!(weights_of(&machine.path("out")), weights_of(&whole.path("out")));
}

#[test]
fn offline_the_cache_must_do() {
    let hub = hub();
    let machine = Machine::with(&hub);
    let offline = |out: &str| {
        let mut command = machine.mlx(out, &[]);
        command.env("HF_HUB_OFFLINE", "1");
        run(command)
    };
    let (code, stdout, stderr) = offline("out");
    assert_eq!((code, stdout.as_str()), (2, ""));
    assert!(stderr.contains("offline, and `owner/model` at revision `main` is not in the cache"), "{stderr}");
    assert!(stderr.contains("hint: unset HF_HUB_OFFLINE") && !Path::new(&machine.path("out")).exists());
    assert!(hub.requests().is_empty(), "the network is not touched");
    assert_eq!(run(machine.mlx("out", &[])).0, 0);
    let asked = hub.requests().len();
    assert_eq!(offline("again").0, 0);
    assert_eq!(hub.requests().len(), asked);
}

#[test]
fn a_hub_that_is_gone_is_told_and_the_cache_used() {
    let hub = hub();
    let mut machine = Machine::with(&hub);
    assert_eq!(run(machine.mlx("out", &[])).0, 0);
    "http://127.0.0.1:1".clone_into(&mut machine.endpoint);
    let (code, _, stderr) = run(machine.mlx("again", &[]));
    assert_eq!(code, 0, "{stderr}");
    assert!(stderr.contains("cannot be reached; using commit"), "{stderr}");
    std::fs::remove_dir_all(machine.path("hf")).unwrap();
    let (code, _, stderr) = run(machine.mlx("third", &[]));
    assert_eq!(code, 2);
    assert!(stderr.contains("cannot fetch http://127.0.0.1:1"), "{stderr}");
}

#[test]
fn what_the_hub_refuses_or_damages_is_an_error() {
    for (fault, message) in [
        (Fault::WrongHash, "`model.safetensors` of `owner/model` arrived damaged"),
        (Fault::Refuses(403), "the hub answered 403"),
        (Fault::Refuses(404), "hint: check the model's id"),
    ] {
        let hub = hub().with_fault(WEIGHTS, fault);
        let machine = Machine::with(&hub);
        let (code, stdout, stderr) = run(machine.mlx("out", &[]));
        assert_eq!((code, stdout.as_str()), (2, ""), "{stderr}");
        assert!(stderr.contains(message), "{stderr}");
        assert!(!Path::new(&machine.path("out")).exists());
    }
    let machine = Machine::with(&hub());
    let (code, _, stderr) = run(machine.mlx("out", &["--revision", "nowhere"]));
    assert_eq!(code, 2);
    assert!(stderr.contains("404") && stderr.contains("revision/nowhere"), "{stderr}");
}

#[test]
fn a_converted_model_on_the_hub_is_talked_with() {
    let machine = Machine::with(&hub());
    assert_eq!(run(machine.mlx("out", &[])).0, 0);
    let published = HubServer::of_directory("owner/model", Path::new(&machine.path("out")));
    let reader = Machine::with(&published.clone().with_fault(WEIGHTS, Fault::DropsConnection(1)));
    let arguments = [
        "--model",
        "owner/model",
        "--prompt",
        "Hi",
        "--no-think",
        "--max-tokens",
        "4",
        "--seed",
        "1",
        "--json",
    ];
    let (code, stdout, stderr) = run(reader.command(env!("CARGO_BIN_EXE_q35-chat"), &arguments));
    assert_eq!(code, 0, "{stderr}");
    let reply: Value = serde_json::from_str(&stdout).unwrap();
    assert!(reply["usage"]["prompt_tokens"].as_u64().unwrap() > 0);
    let unused = published.requests().iter().any(|request| request.path.ends_with("README.md"));
    assert!(!unused, "only what a chat needs is fetched");
}
