//! Helpers that convert test checkpoints to packages and run sequences over them.
#![allow(dead_code, reason = "each test file uses some of the helpers")]

use std::path::{Path, PathBuf};

use q35_backend_coreml::{CoreMlModel, Precision};
use q35_checkpoint::Checkpoint;
use q35_format_coreml::{Cache, Compute, Embedding, Encoding, Layout, Options, PackageWeights, write};
use q35_inference::{LogitsFor, Model, Observer, Sequence};
use q35_metrics::{Summarizer, Summary, compare_rows};
use q35_testkit::TinyCheckpoint;
use tempfile::TempDir;

/// A temporary directory with a checkpoint and its conversions.
pub struct Workspace {
    root: TempDir,
}

impl Workspace {
    pub fn new(checkpoint: &TinyCheckpoint) -> Self {
        let work = Self { root: tempfile::tempdir().unwrap() };
        checkpoint.write_to(&work.source());
        work
    }

    pub fn embedded() -> Self {
        let work = Self { root: tempfile::tempdir().unwrap() };
        q35_nano::write_to(&work.source()).unwrap();
        work
    }

    pub fn source(&self) -> PathBuf {
        self.root.path().join("source")
    }

    /// Converts the checkpoint and returns the new directory.
    pub fn convert(&self, options: &Options) -> PathBuf {
        let count = self.root.path().read_dir().unwrap().count();
        let out = self.root.path().join(format!("out-{count}"));
        std::fs::create_dir(&out).unwrap();
        let checkpoint = Checkpoint::open(&self.source()).unwrap();
        write(&checkpoint, options, &out, &|_| {}).unwrap();
        out
    }
}

pub fn open(dir: &Path, precision: Precision) -> CoreMlModel {
    CoreMlModel::open(dir, precision).unwrap()
}

pub fn weights(dir: &Path) -> PackageWeights {
    PackageWeights::open(dir).unwrap()
}

/// Options for tiny models: chunks of 16 tokens, so that short prompts have several.
pub fn small() -> Options {
    Options { context: 64, prefill_chunk: 16, ..Options::default() }
}

/// Options such that every pair of settings occurs in some conversion (a pairwise covering set).
pub fn combinations() -> Vec<Options> {
    let mut all = Vec::new();
    for &encoding in Encoding::ALL {
        for &compute in Compute::ALL {
            let base = Options { encoding, compute, ..small() };
            for (layout, cache, embedding, head_splits) in [
                (Layout::Multifunction, Cache::State, Embedding::Model, Some(3)),
                (Layout::Multifunction, Cache::Io, Embedding::Host, None),
                (Layout::Split, Cache::State, Embedding::Host, Some(3)),
                (Layout::Split, Cache::Io, Embedding::Model, None),
                (Layout::SpeechSwift, Cache::State, Embedding::Model, None),
            ] {
                all.push(Options { layout, cache, embedding, head_splits, ..base });
            }
        }
    }
    all
}

/// Deterministic, evenly spread token ids.
pub fn ids(count: usize, vocab_size: usize) -> Vec<u32> {
    (0..count as u32).map(|i| i.wrapping_mul(2_654_435_761) % vocab_size as u32).collect()
}

/// Observer that collects logits.
#[derive(Default)]
pub struct Collected(pub Vec<Vec<f32>>);

impl Observer for Collected {
    fn logits(&mut self, _position: usize, row: &[f32]) {
        self.0.push(row.to_vec());
    }
}

/// Logits of every token of `ids`.
pub fn all_rows(model: &dyn Model, ids: &[u32]) -> Vec<Vec<f32>> {
    let mut rows = Collected::default();
    model.new_sequence(ids.len()).unwrap().extend(ids, LogitsFor::AllTokens, &mut rows).unwrap();
    rows.0
}

/// Processes `ids` and returns the logits of the last.
pub fn feed(sequence: &mut dyn Sequence, ids: &[u32]) -> Vec<f32> {
    let mut rows = Collected::default();
    sequence.extend(ids, LogitsFor::LastToken, &mut rows).unwrap();
    rows.0.pop().unwrap()
}

/// Prefills the first `prompt` ids and decodes the rest one by one; returns the logits of the prompt's last token and of
/// each decoded one.
pub fn prompt_then_steps(model: &dyn Model, ids: &[u32], prompt: usize) -> Vec<Vec<f32>> {
    let mut sequence = model.new_sequence(ids.len()).unwrap();
    let mut rows = vec![feed(&mut *sequence, &ids[..prompt])];
    rows.extend(ids[prompt..].iter().map(|&id| feed(&mut *sequence, &[id])));
    rows
}

pub fn summary(reference: &[Vec<f32>], candidate: &[Vec<f32>]) -> Summary {
    assert_eq!(reference.len(), candidate.len());
    let mut summary = Summarizer::default();
    for (reference, candidate) in reference.iter().zip(candidate) {
        summary.push(&compare_rows(reference, candidate).unwrap());
    }
    summary.finish()
}

/// Largest absolute difference, relative to the largest absolute expected value.
pub fn relative(expected: &[f32], found: &[f32]) -> f32 {
    assert_eq!(expected.len(), found.len());
    let scale = expected.iter().fold(1e-30f32, |most, value| most.max(value.abs()));
    expected.iter().zip(found).fold(0f32, |most, (a, b)| most.max((a - b).abs())) / scale
}
