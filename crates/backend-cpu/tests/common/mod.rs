//! Models to test on, and observers that keep what they see.

use std::path::Path;
use std::sync::Arc;

use q35_backend_cpu::{CpuModel, CpuOptions, Mode};
use q35_checkpoint::Checkpoint;
use q35_format_mlx::{MlxDirectory, RoundToNearest, WriteOptions, write};
use q35_inference::{HiddenStateAt, LogitsFor, Observer, Sequence};
use q35_quant::affine::AffineSpec;

/// The checkpoint in `source`, rounded to nearest.
pub fn quantized(source: &Path, bits: u32, group: usize) -> Arc<MlxDirectory> {
    let out = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(source).unwrap();
    let recipe = RoundToNearest(AffineSpec::new(bits, group).unwrap());
    write(&checkpoint, &recipe, &WriteOptions::default(), out.path(), &|_| {}).unwrap();
    // The files stay mapped when their names are gone.
    Arc::new(MlxDirectory::open(out.path()).unwrap())
}

pub fn model(directory: &Arc<MlxDirectory>, mode: Mode, threads: usize) -> CpuModel {
    let options = CpuOptions::default().with_mode(mode).with_threads(threads);
    CpuModel::open(Arc::clone(directory), options).unwrap()
}

/// Ids that wander over the vocabulary.
pub fn ids(count: usize, vocab_size: usize) -> Vec<u32> {
    (0..count).map(|i| ((i * i * 31 + i * 7 + 3) % vocab_size) as u32).collect()
}

#[derive(Default)]
pub struct Keep {
    pub hidden: bool,
    pub logits: Vec<Vec<f32>>,
    pub positions: Vec<usize>,
    pub sites: Vec<(HiddenStateAt, usize, Vec<f32>)>,
    /// Cancelled once this many looks have been taken.
    pub patience: Option<std::cell::Cell<usize>>,
}

impl Observer for Keep {
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
        self.patience.as_ref().is_some_and(|left| left.replace(left.get().saturating_sub(1)) == 0)
    }
}

/// All logits of `ids`, taken in pieces of the given sizes.
pub fn logits(sequence: &mut dyn Sequence, ids: &[u32], pieces: &[usize]) -> Vec<Vec<f32>> {
    let mut keep = Keep::default();
    let mut from = 0;
    for &piece in pieces {
        sequence.extend(&ids[from..from + piece], LogitsFor::AllTokens, &mut keep).unwrap();
        from += piece;
    }
    keep.logits
}
