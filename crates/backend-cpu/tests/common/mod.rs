//! Test models, and an observer that records.

use std::path::Path;
use std::sync::Arc;

use q35_backend_cpu::{CpuModel, CpuOptions, Mode};
use q35_checkpoint::Checkpoint;
use q35_format_mlx::{MlxDirectory, RoundToNearest, WriteOptions, write};
use q35_inference::{HiddenStateAt, LogitsFor, Observer, Sequence};
use q35_quant::affine::AffineSpec;

/// MLX directory of the checkpoint in `source`, rounded to nearest.
pub fn quantized(source: &Path, bits: u32, group: usize) -> Arc<MlxDirectory> {
    let out = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(source).unwrap();
    let recipe = RoundToNearest(AffineSpec::new(bits, group).unwrap());
    write(&checkpoint, &recipe, &WriteOptions::default(), out.path(), &|_| {}).unwrap();
    // The files stay mapped after the temporary directory is deleted.
    Arc::new(MlxDirectory::open(out.path()).unwrap())
}

pub fn model(directory: &Arc<MlxDirectory>, mode: Mode, threads: usize) -> CpuModel {
    let options = CpuOptions::default().with_mode(mode).with_threads(threads);
    CpuModel::open(Arc::clone(directory), options).unwrap()
}

/// Token ids spread over the vocabulary.
pub fn ids(count: usize, vocab_size: usize) -> Vec<u32> {
    (0..count).map(|i| ((i * i * 31 + i * 7 + 3) % vocab_size) as u32).collect()
}

#[derive(Default)]
pub struct Recorder {
    pub hidden: bool,
    pub logits: Vec<Vec<f32>>,
    pub positions: Vec<usize>,
    pub sites: Vec<(HiddenStateAt, usize, Vec<f32>)>,
    /// Number of calls of `cancelled` that return false.
    pub checks_before_cancel: Option<std::cell::Cell<usize>>,
}

impl Observer for Recorder {
    fn logits(&mut self, position: usize, row: &[f32]) {
        self.positions.push(position);
        self.logits.push(row.to_vec());
    }

    fn wants_hidden(&self) -> bool {
        self.hidden
    }

    fn hidden(&mut self, site: HiddenStateAt, position: usize, rows: &[f32]) {
        self.sites.push((site, position, rows.to_vec()));
    }

    fn cancelled(&self) -> bool {
        self.checks_before_cancel.as_ref().is_some_and(|left| left.replace(left.get().saturating_sub(1)) == 0)
    }
}

/// Logits of all `ids`, processed in chunks of the given sizes.
pub fn logits(sequence: &mut dyn Sequence, ids: &[u32], chunks: &[usize]) -> Vec<Vec<f32>> {
    let mut recorder = Recorder::default();
    let mut from = 0;
    for &chunk in chunks {
        sequence.extend(&ids[from..from + chunk], LogitsFor::AllTokens, &mut recorder).unwrap();
        from += chunk;
    }
    recorder.logits
}
