//! One mistake in an artefact each, through the real binary: it says no, and which layer and which kind of tensor.

use std::path::PathBuf;
use std::process::{Command, Output};

use q35_testkit::{EditableTensor, TinyCheckpoint, rewrite_tensors};
use tempfile::TempDir;

/// A source and its conversion, to be broken.
struct Broken(TempDir);

impl Broken {
    fn new() -> Self {
        let new = Self(tempfile::tempdir().unwrap());
        TinyCheckpoint::new().write_to(&new.0.path().join("source"));
        let ids: Vec<u32> = (0..40).map(|i| 32 + i * 7 % 90).collect();
        std::fs::write(new.0.path().join("ids.json"), serde_json::to_string(&ids).unwrap()).unwrap();
        let done = new.run(&["mlx", "--model", "source", "--recipe", "rtn", "--out", "int4", "--no-verify"]);
        assert_eq!(done.status.code(), Some(0), "{}", String::from_utf8_lossy(&done.stderr));
        new
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_q35-convert"));
        command.args(arguments).current_dir(self.0.path()).output().unwrap()
    }

    fn tensors(change: impl Fn(&str, &mut EditableTensor)) -> Self {
        let broken = Self::new();
        rewrite_tensors(&broken.at("model.safetensors"), |tensors| {
            tensors.iter_mut().for_each(|(name, tensor)| change(name, tensor));
        });
        broken
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join("int4").join(name)
    }

    /// It must be outside, and a finding of that layer and class must say `words`.
    #[track_caller]
    fn must_be_found(&self, layer: Option<u64>, class: &str, words: &str) {
        let models = ["parity", "--reference", "source", "--candidate", "int4"];
        let done = self.run(&[&models[..], &["--ids-file", "ids.json", "--json", "report.json"]].concat());
        let table = String::from_utf8_lossy(&done.stdout);
        assert_eq!(done.status.code(), Some(1), "{table}{}", String::from_utf8_lossy(&done.stderr));
        let report: serde_json::Value =
            serde_json::from_slice(&std::fs::read(self.0.path().join("report.json")).unwrap()).unwrap();
        let findings = report["findings"].as_array().unwrap();
        let found = findings.iter().find(|finding| {
            finding["layer"].as_u64() == layer
                && finding["class"] == class
                && finding["message"].as_str().unwrap().contains(words)
        });
        let found =
            found.unwrap_or_else(|| panic!("no finding of {layer:?}, {class}, `{words}` in {findings:#?}"));
        // The table for people has the same findings.
        assert!(table.contains(found["message"].as_str().unwrap()), "{table}");
        assert!(table.contains("NOT computed right"), "{table}");
    }
}

#[test]
fn norms_shifted_twice() {
    Broken::tensors(|name, tensor| {
        if ["layernorm.weight", "q_norm.weight", "k_norm.weight"].iter().any(|end| name.ends_with(end)) {
            tensor.add(1.0);
        }
    })
    .must_be_found(Some(0), "norm", "shifted twice");
}

#[test]
fn final_norm_not_shifted() {
    Broken::tensors(|name, tensor| {
        if name.ends_with("model.norm.weight") {
            tensor.add(-1.0);
        }
    })
    .must_be_found(None, "final norm", "not shifted");
}

#[test]
fn convolution_taps_reversed() {
    Broken::tensors(|name, tensor| {
        if name.contains("layers.2.") && name.ends_with("conv1d.weight") {
            tensor.reverse_within_rows();
        }
    })
    .must_be_found(Some(2), "convolution", "taps reversed");
}

#[test]
fn query_and_gate_as_halves() {
    let (heads, width) = (4, 32);
    Broken::tensors(|name, tensor| {
        if name.contains("self_attn.q_proj.") {
            tensor
                .gather_rows(|row| row / width % 2 * heads * width + row / (2 * width) * width + row % width);
        }
    })
    .must_be_found(Some(3), "attention projection", "halves");
}

#[test]
fn rope_interleaved() {
    // The first 8 components of a head are rotated: pairs (2i, 2i + 1) are brought to (i, i + 4).
    let interleaved = |row: usize, block: usize| match row % block {
        at @ 0..4 => row - at + 2 * at,
        at @ 4..8 => row - at + 2 * (at - 4) + 1,
        _ => row,
    };
    Broken::tensors(|name, tensor| {
        if ["q_proj", "k_proj", "q_norm", "k_norm"].iter().any(|part| name.contains(part)) {
            tensor.gather_rows(|row| interleaved(row, if name.contains("q_proj") { 64 } else { 32 }));
        }
    })
    .must_be_found(Some(3), "attention projection", "RoPE interleaved");
}

#[test]
fn one_scale_corrupted() {
    Broken::tensors(|name, tensor| {
        if name.ends_with("layers.1.mlp.down_proj.scales") {
            tensor.multiply_element(4 * 9 + 2, 1.5);
        }
    })
    .must_be_found(Some(1), "mlp projection", "row 9, columns 128..192");
}

#[test]
fn layers_swapped() {
    let broken = Broken::new();
    rewrite_tensors(&broken.at("model.safetensors"), |tensors| {
        let swapped = |name: String| match name.contains("layers.0.") {
            true => name.replace("layers.0.", "layers.1."),
            false => name.replace("layers.1.", "layers.0."),
        };
        *tensors =
            std::mem::take(tensors).into_iter().map(|(name, tensor)| (swapped(name), tensor)).collect();
    });
    broken.must_be_found(Some(0), "norm", "layers swapped: layer 0 holds the weights of layer 1");
}

#[test]
fn wrong_eps() {
    let broken = Broken::new();
    let path = broken.at("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["text_config"]["rms_norm_eps"] = 1e-5.into();
    std::fs::write(path, config.to_string()).unwrap();
    broken.must_be_found(None, "norm", "`rms_norm_eps` is 0.00001");
}

#[test]
fn embedding_shifted_by_a_row() {
    Broken::tensors(|name, tensor| {
        if name.contains("embed_tokens.") {
            tensor.gather_rows(|row| (row + 1) % 320);
        }
    })
    .must_be_found(None, "embedding", "rows shifted by 1");
}
