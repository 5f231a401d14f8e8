//! Sequences: chunks, threads, snapshots, cancellation and errors.

mod common;

use std::cell::Cell;
use std::sync::Arc;

use common::{Recorder, ids, logits, model, quantized};
use q35_architecture::LayerKind;
use q35_backend_cpu::Mode;
use q35_format_mlx::MlxDirectory;
use q35_inference::{Discard, HiddenStateAt, LogitsFor, Model, RunError, Sequence};
use q35_testkit::TinyCheckpoint;

fn directory() -> Arc<MlxDirectory> {
    let source = tempfile::tempdir().unwrap();
    TinyCheckpoint::new().write_to(source.path());
    quantized(source.path(), 4, 64)
}

#[test]
fn chunks_and_threads_change_no_bit() {
    let directory = directory();
    let ids = ids(300, directory.config().vocab_size);
    for mode in [Mode::Exact, Mode::Fast] {
        let one = model(&directory, mode, 1);
        let mut whole = one.new_sequence(300).unwrap();
        let expected = logits(&mut *whole, &ids, &[300]);
        let three = model(&directory, mode, 3);
        for chunks in [&[300][..], &[1; 300], &[7, 64, 65, 1, 1, 128, 34]] {
            let mut sequence = three.new_sequence(300).unwrap();
            assert_eq!(logits(&mut *sequence, &ids, chunks), expected, "{mode:?} in {} chunks", chunks.len());
            assert_eq!(sequence.snapshot().unwrap(), whole.snapshot().unwrap());
        }
    }
}

#[test]
fn a_snapshot_goes_on_where_it_was_taken() {
    let directory = directory();
    let ids = ids(100, directory.config().vocab_size);
    for mode in [Mode::Exact, Mode::Fast] {
        let model = model(&directory, mode, 2);
        let mut first = model.new_sequence(200).unwrap();
        first.extend(&ids[..70], LogitsFor::None, &mut Discard).unwrap();
        let snapshot = first.snapshot().unwrap();
        let expected = logits(&mut *first, &ids[70..], &[30]);

        let mut second = model.new_sequence(100).unwrap();
        second.extend(&ids[..90], LogitsFor::None, &mut Discard).unwrap();
        second.restore(&snapshot).unwrap();
        assert_eq!(second.position(), 70);
        assert_eq!(second.snapshot().unwrap(), snapshot);
        assert_eq!(logits(&mut *second, &ids[70..], &[30]), expected);

        second.reset();
        assert_eq!(second.position(), 0);
        second.extend(&ids[..70], LogitsFor::None, &mut Discard).unwrap();
        assert_eq!(second.snapshot().unwrap(), snapshot);
        assert_eq!(
            second.recurrent_states().unwrap().len(),
            directory.config().layers_of(LayerKind::LinearAttention).count()
        );
    }
}

#[test]
fn a_foreign_snapshot_is_refused_and_changes_nothing() {
    let directory = directory();
    let ids = ids(40, directory.config().vocab_size);
    let (exact, fast) = (model(&directory, Mode::Exact, 1), model(&directory, Mode::Fast, 1));
    let mut sequence = exact.new_sequence(40).unwrap();
    sequence.extend(&ids[..20], LogitsFor::None, &mut Discard).unwrap();
    let before = sequence.snapshot().unwrap();

    let other = fast.new_sequence(40).unwrap().snapshot().unwrap();
    let mut long = exact.new_sequence(60).unwrap();
    long.extend(&[1; 50], LogitsFor::None, &mut Discard).unwrap();
    let mut damaged = before.clone();
    damaged.tensors.last_mut().unwrap().data.pop();
    let mut missing = before.clone();
    missing.tensors.remove(0);
    for snapshot in [other, long.snapshot().unwrap(), damaged, missing] {
        assert!(matches!(sequence.restore(&snapshot), Err(RunError::Snapshot { .. })));
        assert_eq!(sequence.snapshot().unwrap(), before);
    }
}

#[test]
fn cancellation_leaves_whole_chunks() {
    let directory = directory();
    let ids = ids(200, directory.config().vocab_size);
    let model = model(&directory, Mode::Fast, 1);
    let mut sequence = model.new_sequence(200).unwrap();
    let mut observer = Recorder { checks_before_cancel: Some(Cell::new(2)), ..Recorder::default() };
    assert!(matches!(sequence.extend(&ids, LogitsFor::LastToken, &mut observer), Err(RunError::Cancelled)));
    let done = sequence.position();
    assert!(done > 0 && done < 200, "{done}");
    assert!(observer.logits.is_empty());
    let rest = logits(&mut *sequence, &ids[done..], &[200 - done]);
    let whole = logits(&mut *model.new_sequence(200).unwrap(), &ids, &[200]);
    assert_eq!(rest.last(), whole.last());
}

#[test]
fn impossible_tokens_change_nothing() {
    let directory = directory();
    let vocab_size = directory.config().vocab_size;
    let model = model(&directory, Mode::Fast, 1);
    let mut sequence = model.new_sequence(8).unwrap();
    sequence.extend(&[1, 2, 3], LogitsFor::None, &mut Discard).unwrap();
    let bad = sequence.extend(&[1, vocab_size as u32], LogitsFor::None, &mut Discard);
    assert!(matches!(bad, Err(RunError::Token { position: 4, .. })));
    let full = sequence.extend(&[1; 6], LogitsFor::None, &mut Discard);
    assert!(matches!(full, Err(RunError::ContextFull { needed: 9, max_context: 8 })));
    assert_eq!(sequence.position(), 3);
    sequence.extend(&[], LogitsFor::LastToken, &mut Discard).unwrap();
    assert_eq!(sequence.position(), 3);
}

#[test]
fn observers_see_what_they_ask_for() {
    let directory = directory();
    let config = directory.config();
    let ids = ids(70, config.vocab_size);
    let model = model(&directory, Mode::Exact, 2);
    let mut all = Recorder { hidden: true, ..Recorder::default() };
    model.new_sequence(70).unwrap().extend(&ids, LogitsFor::AllTokens, &mut all).unwrap();
    assert_eq!(all.positions, (0..70).collect::<Vec<_>>());
    let mut last = Recorder::default();
    model.new_sequence(70).unwrap().extend(&ids, LogitsFor::LastToken, &mut last).unwrap();
    assert_eq!((last.positions.as_slice(), last.logits.last()), (&[69][..], all.logits.last()));
    assert!(last.sites.is_empty());
    let mut expected = vec![HiddenStateAt::Embedding];
    expected.extend(
        (0..config.num_hidden_layers)
            .flat_map(|layer| [HiddenStateAt::AfterAttention(layer), HiddenStateAt::AfterMlp(layer)]),
    );
    expected.push(HiddenStateAt::FinalNorm);
    let sites: Vec<HiddenStateAt> = all.sites.iter().map(|(site, ..)| *site).collect();
    assert_eq!(sites[..expected.len()], expected);
    for site in expected {
        let rows: usize = all
            .sites
            .iter()
            .filter(|(other, ..)| *other == site)
            .map(|(_, _, rows)| rows.len() / config.hidden_size)
            .sum();
        assert_eq!(rows, 70, "{site:?}");
    }
}

#[test]
fn sequences_of_one_model_run_side_by_side() {
    let directory = directory();
    let ids = ids(60, directory.config().vocab_size);
    let model = model(&directory, Mode::Fast, 2);
    let expected = logits(&mut *model.new_sequence(60).unwrap(), &ids, &[60]);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut sequence: Box<dyn Sequence> = model.new_sequence(60).unwrap();
                assert_eq!(logits(&mut *sequence, &ids, &[1; 60]), expected);
            });
        }
    });
}

#[test]
fn memory_is_accounted_for() {
    let directory = directory();
    let model = model(&directory, Mode::Fast, 1);
    let memory = model.memory();
    assert_eq!(memory.mapped_bytes, directory.weight_bytes());
    assert!(memory.owned_bytes > 0 && memory.owned_bytes < memory.mapped_bytes);
    let mut sequence = model.new_sequence(500).unwrap();
    let empty = sequence.cache_bytes();
    sequence.extend(&[5; 65], LogitsFor::LastToken, &mut Discard).unwrap();
    assert!(sequence.cache_bytes() > empty && sequence.scratch_bytes() > 0);
}
