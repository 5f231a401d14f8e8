//! The float reference against transformers in float32, by golden files that `scripts/goldens/make_all.sh` makes.

use std::path::{Path, PathBuf};

use q35_checkpoint::{Checkpoint, sha256_hex};
use q35_inference::{HiddenStateAt, LogitsFor, Model, Observer};
use q35_metrics::{argmax, compare_rows};
use q35_reference::{Device, Reference};
use q35_testkit::{TinyCheckpoint, tiny_more_value_heads};
use safetensors::SafeTensors;

struct Golden {
    input_ids: Vec<u32>,
    decoded_ids: Vec<u32>,
    rows: Vec<usize>,
    logits: Vec<f32>,
    hidden: Vec<Vec<f32>>,
}

fn golden(name: &str, checkpoint: &Path, layers: usize) -> Golden {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.safetensors"));
    let bytes = std::fs::read(&path).unwrap();
    let mut weights: Vec<PathBuf> = std::fs::read_dir(checkpoint)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
        .collect();
    weights.sort();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let made_for = &header.metadata().as_ref().unwrap()["checkpoint_sha256"];
    assert_eq!(
        made_for,
        &sha256_hex(&std::fs::read(&weights[0]).unwrap()),
        "{} was made for other weights\nhint: run scripts/goldens/make_all.sh",
        path.display()
    );
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let whole = |name: &str| -> Vec<u32> {
        let data = file.tensor(name).unwrap();
        data.data().chunks_exact(8).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    };
    let float = |name: &str| -> Vec<f32> {
        let data = file.tensor(name).unwrap();
        data.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    };
    Golden {
        input_ids: whole("input_ids"),
        decoded_ids: whole("decoded_ids"),
        rows: whole("rows").into_iter().map(|row| row as usize).collect(),
        logits: float("logits"),
        hidden: (0..layers - 1).map(|layer| float(&format!("hidden.{layer}"))).collect(),
    }
}

#[derive(Default)]
struct Seen {
    logits: Vec<Vec<f32>>,
    hidden: Vec<Vec<f32>>,
    width: usize,
}

impl Observer for Seen {
    fn logits(&mut self, position: usize, row: &[f32]) {
        assert_eq!(position, self.logits.len());
        self.logits.push(row.to_vec());
    }

    fn wants_hidden(&self) -> bool {
        self.logits.is_empty()
    }

    fn hidden(&mut self, site: HiddenStateAt, _position: usize, rows: &[f32]) {
        if let HiddenStateAt::AfterMlp(layer) = site {
            self.hidden.resize(layer + 1, Vec::new());
            self.hidden[layer] = rows[rows.len() - self.width..].to_vec();
        }
    }
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn agrees(name: &str, dir: &Path) {
    let checkpoint = Checkpoint::open(dir).unwrap();
    let model = Reference::load(&checkpoint, Device::Cpu).unwrap();
    let config = model.config();
    let golden = golden(name, dir, config.num_hidden_layers);
    let mut seen = Seen { width: config.hidden_size, ..Seen::default() };
    let mut sequence = model.new_sequence(256).unwrap();
    sequence.extend(&golden.input_ids, LogitsFor::AllTokens, &mut seen).unwrap();
    for (layer, expected) in golden.hidden.iter().enumerate() {
        let difference = largest_difference(expected, &seen.hidden[layer]);
        assert!(difference < 1e-4, "{name}: after layer {layer} the stream differs by {difference:e}");
    }
    let mut decoded = Vec::new();
    for _ in 0..golden.decoded_ids.len() {
        let id = argmax(seen.logits.last().unwrap()).unwrap() as u32;
        decoded.push(id);
        sequence.extend(&[id], LogitsFor::LastToken, &mut seen).unwrap();
    }
    assert_eq!(decoded, golden.decoded_ids, "{name}: greedy tokens");
    let (mut kl, mut difference) = (0.0, 0f32);
    for (row, expected) in golden.rows.iter().zip(golden.logits.chunks_exact(config.vocab_size)) {
        kl += compare_rows(expected, &seen.logits[*row]).unwrap().kl;
        difference = difference.max(largest_difference(expected, &seen.logits[*row]));
    }
    let kl = kl / golden.rows.len() as f64;
    assert!(kl <= 1e-7 && difference <= 1e-3, "{name}: mean KL {kl:e}, largest difference {difference:e}");
}

#[test]
fn tiny_checkpoints_agree() {
    let cases = [
        ("tiny", TinyCheckpoint::new()),
        (
            "more-value-heads-untied",
            TinyCheckpoint::new().with_config(tiny_more_value_heads()).untied().shards(2),
        ),
        ("text-only-untied", TinyCheckpoint::new().text_only().untied()),
    ];
    for (name, checkpoint) in cases {
        let dir = tempfile::tempdir().unwrap();
        checkpoint.write_to(dir.path());
        agrees(name, dir.path());
    }
}

#[test]
fn the_embedded_checkpoint_agrees() {
    let dir = tempfile::tempdir().unwrap();
    q35_nano::write_to(dir.path()).unwrap();
    agrees("nano", dir.path());
}
