//! The CPU backend against the float reference on the same dequantized weights.

mod common;

use common::{ids, logits, model, quantized};
use q35_backend_cpu::Mode;
use q35_inference::Model;
use q35_metrics::{Summarizer, Summary, compare_rows};
use q35_reference::{Device, Reference};
use q35_testkit::{TinyCheckpoint, tiny_more_value_heads};

/// Bounds of the mean KL in each mode.
const EXACT: f64 = 1e-6;
const FAST: f64 = 1e-3;

/// Divergence of `candidate` from `reference` over `ids`.
fn compare(reference: &dyn Model, candidate: &dyn Model, ids: &[u32]) -> Summary {
    let run = |model: &dyn Model| logits(&mut *model.new_sequence(ids.len()).unwrap(), ids, &[ids.len()]);
    let mut summary = Summarizer::default();
    for (reference, candidate) in run(reference).iter().zip(run(candidate)) {
        summary.push(&compare_rows(reference, &candidate).unwrap());
    }
    summary.finish()
}

fn check(checkpoint: &TinyCheckpoint, bits: u32, group: usize) {
    let source = tempfile::tempdir().unwrap();
    checkpoint.write_to(source.path());
    let directory = quantized(source.path(), bits, group);
    let reference = Reference::load(&*directory, Device::Cpu).unwrap();
    let ids = ids(90, reference.config().vocab_size);
    for (mode, bound) in [(Mode::Exact, EXACT), (Mode::Fast, FAST)] {
        let candidate = model(&directory, mode, 2);
        let summary = compare(&reference, &candidate, &ids);
        assert!(summary.kl.mean <= bound, "{}: KL {:?}", candidate.describe(), summary.kl);
    }
}

#[test]
fn int4_as_published() {
    check(&TinyCheckpoint::new(), 4, 64);
}

#[test]
fn untied_head() {
    check(&TinyCheckpoint::new().untied(), 4, 32);
}

#[test]
fn more_value_heads_than_key_heads() {
    check(&TinyCheckpoint::new().with_config(tiny_more_value_heads()), 8, 64);
}

#[test]
fn bits_that_cross_bytes() {
    for bits in [2, 3, 5, 6] {
        check(&TinyCheckpoint::new(), bits, 32);
    }
}

#[test]
fn rows_that_do_not_divide_into_groups_stay_float() {
    check(&TinyCheckpoint::new(), 4, 128);
}

#[test]
fn the_embedded_model() {
    let source = tempfile::tempdir().unwrap();
    q35_nano::write_to(source.path()).unwrap();
    let directory = quantized(source.path(), 4, 64);
    let reference = Reference::load(&*directory, Device::Cpu).unwrap();
    let ids = ids(128, reference.config().vocab_size);
    for (mode, bound) in [(Mode::Exact, EXACT), (Mode::Fast, FAST)] {
        let summary = compare(&reference, &model(&directory, mode, 2), &ids);
        assert!(summary.kl.mean <= bound, "{mode:?}: KL {:?}", summary.kl);
    }
}
