//! Test models and their logits.

use std::sync::Arc;

use q35_backend_mlx::MlxDevice;
use q35_checkpoint::Checkpoint;
use q35_format_mlx::{Form, MlxDirectory, Recipe, RoundToNearest, WriteOptions};
use q35_inference::{LogitsFor, Model, Observer};
use q35_metrics::{Summarizer, compare_rows};
use q35_quant::affine::AffineSpec;
use q35_testkit::TinyCheckpoint;

/// Observer that collects logits.
#[derive(Default)]
pub struct Collect(pub Vec<Vec<f32>>);

impl Observer for Collect {
    fn logits(&mut self, _position: usize, row: &[f32]) {
        self.0.push(row.to_vec());
    }
}

/// The device under test: the CPU, or the GPU if the environment variable `Q35_MLX_DEVICE` is `gpu`.
pub fn device() -> MlxDevice {
    match std::env::var("Q35_MLX_DEVICE").as_deref() {
        Ok("gpu") => MlxDevice::Gpu,
        _ => MlxDevice::Cpu,
    }
}

/// Checks a mean KL against `f32_limit` on the CPU. On a GPU activations have the 8 bits of bf16, and the logits of
/// different chunk lengths differ by its rounding.
#[allow(clippy::print_stdout, reason = "the figures of a GPU run are of interest")]
pub fn check_kl(name: &str, kl: f64, f32_limit: f64) {
    let limit = if device() == MlxDevice::Gpu { 1e-2 } else { f32_limit };
    println!("{name}: mean KL {kl:e}, limit {limit:e}");
    assert!(kl <= limit, "{name}: mean KL {kl:e}, limit {limit:e}");
}

pub fn rounded(bits: u32, group_size: usize) -> RoundToNearest {
    RoundToNearest(AffineSpec::new(bits, group_size).unwrap())
}

/// Converts the checkpoint to an MLX directory.
pub fn quantized(source: &TinyCheckpoint, recipe: &dyn Recipe, form: Form) -> Arc<MlxDirectory> {
    let home = tempfile::tempdir().unwrap();
    let (from, to) = (home.path().join("source"), home.path().join("mlx"));
    source.write_to(&from);
    std::fs::create_dir(&to).unwrap();
    let options = WriteOptions { form, ..WriteOptions::default() };
    q35_format_mlx::write(&Checkpoint::open(&from).unwrap(), recipe, &options, &to, &|_| {}).unwrap();
    // The mapped files remain readable after the temporary directory is deleted.
    Arc::new(MlxDirectory::open(&to).unwrap())
}

pub fn ids(count: u32, vocab: usize) -> Vec<u32> {
    (0..count).map(|i| (i * 37 + 11) % vocab as u32).collect()
}

/// The logits of every token, processed in the given parts.
pub fn all_rows(model: &dyn Model, cuts: &[&[u32]]) -> Vec<Vec<f32>> {
    let mut sequence = model.new_sequence(512).unwrap();
    let mut rows = Collect::default();
    cuts.iter().for_each(|part| sequence.extend(part, LogitsFor::AllTokens, &mut rows).unwrap());
    rows.0
}

pub fn mean_kl(expected: &[Vec<f32>], found: &[Vec<f32>]) -> f64 {
    assert_eq!(expected.len(), found.len());
    let mut summarizer = Summarizer::default();
    for (a, b) in expected.iter().zip(found) {
        summarizer.push(&compare_rows(a, b).unwrap());
    }
    summarizer.finish().kl.mean
}
