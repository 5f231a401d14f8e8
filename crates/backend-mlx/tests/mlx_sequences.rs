//! Consistency and errors of sequences.
#![cfg(feature = "mlx")]

mod support;

use std::sync::Arc;

use q35_backend_mlx::{MlxBackendError, MlxDevice, MlxModel};
use q35_format_mlx::Form;
use q35_inference::{Discard, LogitsFor, Model, RunError, Snapshot};
use q35_testkit::TinyCheckpoint;
use support::{Collect, all_rows, check_kl, device, ids, mean_kl, quantized, rounded};

fn model() -> MlxModel {
    let directory = quantized(&TinyCheckpoint::new(), &rounded(4, 32), Form::default());
    MlxModel::load(directory, device()).unwrap()
}

/// Decoding evaluates graphs that were built before their token id was known.
#[test]
fn tokens_decoded_one_by_one_give_what_they_give_together() {
    let model = model();
    let ids = ids(90, model.config().vocab_size);
    let expected = all_rows(&model, &[&ids]);
    let mut sequence = model.new_sequence(128).unwrap();
    let mut found = Collect::default();
    sequence.extend(&ids[..60], LogitsFor::LastToken, &mut found).unwrap();
    for (at, id) in ids.iter().enumerate().skip(60) {
        // A restore discards the graph built ahead; a snapshot must not disturb it.
        if at == 70 {
            let snapshot = sequence.snapshot().unwrap();
            sequence.restore(&snapshot).unwrap();
        }
        sequence.extend(&[*id], LogitsFor::LastToken, &mut found).unwrap();
        if at == 75 {
            sequence.snapshot().unwrap();
        }
    }
    let kl = mean_kl(&expected[59..], &found.0);
    check_kl("one by one", kl, 1e-9);
}

#[test]
fn sequences_over_one_model_do_not_disturb_each_other() {
    let model = model();
    let ids = ids(40, model.config().vocab_size);
    let alone = all_rows(&model, &ids.chunks(1).collect::<Vec<_>>());
    let (mut first, mut second) = (model.new_sequence(64).unwrap(), model.new_sequence(64).unwrap());
    let (mut found, mut other) = (Collect::default(), Collect::default());
    for id in &ids {
        first.extend(&[*id], LogitsFor::LastToken, &mut found).unwrap();
        second.extend(&[id / 2], LogitsFor::LastToken, &mut other).unwrap();
    }
    assert_eq!(found.0, alone);
}

#[test]
fn a_restored_sequence_goes_on_as_the_first_did() {
    let model = model();
    let ids = ids(80, model.config().vocab_size);
    let mut sequence = model.new_sequence(128).unwrap();
    sequence.extend(&ids, LogitsFor::None, &mut Discard).unwrap();
    let snapshot = sequence.snapshot().unwrap();
    let (mut straight, mut resumed) = (Collect::default(), Collect::default());
    sequence.extend(&[5], LogitsFor::LastToken, &mut straight).unwrap();
    let mut other = model.new_sequence(128).unwrap();
    other.restore(&snapshot).unwrap();
    assert_eq!(other.position(), 80);
    assert_eq!(other.recurrent_states().unwrap().len(), 3);
    other.extend(&[5], LogitsFor::LastToken, &mut resumed).unwrap();
    assert_eq!(straight.0, resumed.0);
}

#[test]
fn snapshots_that_do_not_fit_are_refused_and_change_nothing() {
    let model = model();
    let mut sequence = model.new_sequence(16).unwrap();
    sequence.extend(&[1, 2, 3], LogitsFor::None, &mut Discard).unwrap();
    let good = sequence.snapshot().unwrap();
    type Damage = fn(&mut Snapshot);
    let damages: [(&str, Damage); 5] = [
        ("another layout", |snapshot| snapshot.layout = "cpu-1".to_owned()),
        ("a tensor missing", |snapshot| drop(snapshot.tensors.remove(1))),
        ("a tensor too short", |snapshot| snapshot.tensors[0].data.truncate(8)),
        ("another position", |snapshot| snapshot.position = 2),
        ("no room", |snapshot| snapshot.position = 17),
    ];
    for (name, damage) in damages {
        let mut bad = good.clone();
        damage(&mut bad);
        assert!(sequence.restore(&bad).is_err(), "{name}");
        assert_eq!(sequence.position(), 3, "{name}");
    }
    assert_eq!(sequence.snapshot().unwrap(), good);
}

#[test]
fn unavailable_devices_bad_tokens_and_overlong_sequences_are_errors() {
    let directory = quantized(&TinyCheckpoint::new(), &rounded(4, 32), Form::default());
    if MlxDevice::default() == MlxDevice::Cpu {
        let error = MlxModel::load(Arc::clone(&directory), MlxDevice::Gpu).err();
        assert!(matches!(error, Some(MlxBackendError::NoGpu)));
    }
    let vocab = directory.config().vocab_size as u32;
    let model = MlxModel::load(directory, device()).unwrap();
    let mut sequence = model.new_sequence(4).unwrap();
    let outside = sequence.extend(&[vocab], LogitsFor::None, &mut Discard);
    assert!(matches!(outside, Err(RunError::Token { .. })));
    let too_long = sequence.extend(&[0; 5], LogitsFor::None, &mut Discard);
    assert!(matches!(too_long, Err(RunError::ContextFull { needed: 5, max_context: 4 })));
    assert_eq!(sequence.position(), 0);
}
