//! MLX's answers against the float reference on the same dequantized weights, and a sequence's own consistency. Runs
//! only with the feature `mlx` (see `scripts/mlx/setup_linux.sh`).
#![cfg(feature = "mlx")]

use std::sync::Arc;

use q35_checkpoint::Checkpoint;
use q35_metrics::{Summarizer, compare_rows};
use q35_mlx::{MlxDirectory, RoundToNearest, WriteOptions};
use q35_mlx_backend::{MlxBackendError, MlxDevice, MlxModel};
use q35_model::{Discard, Model, Observer, Rows, RunError};
use q35_quant::affine::AffineSpec;
use q35_reference::{Device, Reference};
use q35_testkit::{TinyCheckpoint, tiny_more_value_heads};

#[derive(Default)]
struct Collect(Vec<Vec<f32>>);

impl Observer for Collect {
    fn logits(&mut self, _position: usize, row: &[f32]) {
        self.0.push(row.to_vec());
    }
}

fn quantized(source: &TinyCheckpoint, bits: u32) -> (tempfile::TempDir, Arc<MlxDirectory>) {
    let home = tempfile::tempdir().unwrap();
    let (from, to) = (home.path().join("source"), home.path().join("mlx"));
    source.write_to(&from);
    std::fs::create_dir(&to).unwrap();
    let recipe = RoundToNearest(AffineSpec::new(bits, 32).unwrap());
    q35_mlx::write(&Checkpoint::open(&from).unwrap(), &recipe, &WriteOptions::default(), &to, &|_| {})
        .unwrap();
    let directory = Arc::new(MlxDirectory::open(&to).unwrap());
    (home, directory)
}

fn ids(count: u32, vocab: usize) -> Vec<u32> {
    (0..count).map(|i| (i * 37 + 11) % vocab as u32).collect()
}

fn all_rows(model: &dyn Model, cuts: &[&[u32]]) -> Vec<Vec<f32>> {
    let mut sequence = model.new_sequence(512).unwrap();
    let mut rows = Collect::default();
    cuts.iter().for_each(|piece| sequence.extend(piece, Rows::All, &mut rows).unwrap());
    rows.0
}

fn mean_kl(expected: &[Vec<f32>], found: &[Vec<f32>]) -> f64 {
    assert_eq!(expected.len(), found.len());
    let mut summarizer = Summarizer::default();
    for (a, b) in expected.iter().zip(found) {
        summarizer.push(&compare_rows(a, b).unwrap());
    }
    summarizer.finish().kl.mean
}

#[test]
fn mlx_agrees_with_the_float_reference_on_the_same_weights() {
    for (source, bits) in
        [(TinyCheckpoint::new(), 4), (TinyCheckpoint::new().with_config(tiny_more_value_heads()), 8)]
    {
        let (_home, directory) = quantized(&source, bits);
        let ids = ids(150, directory.config().vocab_size);
        let expected = all_rows(&Reference::load(directory.as_ref(), Device::Cpu).unwrap(), &[&ids]);
        let model = MlxModel::load(directory, MlxDevice::Cpu).unwrap();
        let (first, rest) = ids.split_at(70);
        let (second, steps) = rest.split_at(72);
        let mut cuts = vec![first, second];
        cuts.extend(steps.chunks(1));
        let found = all_rows(&model, &cuts);
        let kl = mean_kl(&expected, &found);
        assert!(kl <= 1e-6, "{bits} bits: mean KL {kl:e}");
    }
}

#[test]
fn a_restored_sequence_goes_on_as_the_first_did() {
    let (_home, directory) = quantized(&TinyCheckpoint::new(), 4);
    let ids = ids(80, directory.config().vocab_size);
    let model = MlxModel::load(directory, MlxDevice::Cpu).unwrap();
    let mut sequence = model.new_sequence(128).unwrap();
    sequence.extend(&ids, Rows::None, &mut Discard).unwrap();
    let snapshot = sequence.snapshot().unwrap();
    let (mut straight, mut resumed) = (Collect::default(), Collect::default());
    sequence.extend(&[5], Rows::Last, &mut straight).unwrap();
    let mut other = model.new_sequence(128).unwrap();
    other.restore(&snapshot).unwrap();
    assert_eq!(other.position(), 80);
    other.extend(&[5], Rows::Last, &mut resumed).unwrap();
    assert!(mean_kl(&straight.0, &resumed.0) <= 1e-9);
}

#[test]
fn what_cannot_be_done_is_an_error() {
    let (_home, directory) = quantized(&TinyCheckpoint::new(), 4);
    if !cfg!(target_os = "macos") {
        let error = MlxModel::load(Arc::clone(&directory), MlxDevice::Gpu).err();
        assert!(matches!(error, Some(MlxBackendError::NoGpu)));
    }
    let vocab = directory.config().vocab_size as u32;
    let model = MlxModel::load(directory, MlxDevice::Cpu).unwrap();
    let mut sequence = model.new_sequence(4).unwrap();
    let outside = sequence.extend(&[vocab], Rows::None, &mut Discard);
    assert!(matches!(outside, Err(RunError::Token { .. })));
    let too_long = sequence.extend(&[0; 5], Rows::None, &mut Discard);
    assert!(matches!(too_long, Err(RunError::ContextFull { needed: 5, max_context: 4 })));
    assert_eq!(sequence.position(), 0);
}
