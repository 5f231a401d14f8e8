//! The contract of `Sequence`, on a random tiny model.

use q35_inference::{Discard, HiddenStateAt, LogitsFor, Model, Observer, RunError, Sequence};
use q35_reference::{Device, Reference};
use q35_testkit::{Random, TinyCheckpoint, tiny_more_value_heads};

fn model() -> Reference {
    let checkpoint = TinyCheckpoint::new().with_config(tiny_more_value_heads());
    Reference::load(&checkpoint.weights(), Device::Cpu).unwrap()
}

#[derive(Default)]
struct Collect {
    rows: Vec<(usize, Vec<f32>)>,
    hidden: Vec<(HiddenStateAt, usize, usize)>,
    stop_after: Option<usize>,
    asked: std::cell::Cell<usize>,
}

impl Observer for Collect {
    fn logits(&mut self, position: usize, row: &[f32]) {
        self.rows.push((position, row.to_vec()));
    }

    fn wants_hidden(&self) -> bool {
        true
    }

    fn hidden(&mut self, site: HiddenStateAt, position: usize, rows: &[f32]) {
        self.hidden.push((site, position, rows.len()));
    }

    fn cancelled(&self) -> bool {
        self.asked.set(self.asked.get() + 1);
        self.stop_after.is_some_and(|limit| self.asked.get() > limit)
    }
}

fn all_rows(sequence: &mut dyn Sequence, pieces: &[&[u32]]) -> Vec<(usize, Vec<f32>)> {
    let mut collect = Collect::default();
    for piece in pieces {
        sequence.extend(piece, LogitsFor::AllTokens, &mut collect).unwrap();
    }
    collect.rows
}

fn largest_difference(a: &[(usize, Vec<f32>)], b: &[(usize, Vec<f32>)]) -> f32 {
    assert_eq!(a.len(), b.len());
    let pairs = a.iter().zip(b).flat_map(|(a, b)| {
        assert_eq!(a.0, b.0);
        a.1.iter().zip(&b.1)
    });
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn a_prompt_may_be_cut_anywhere() {
    let model = model();
    let ids = Random::new(1).tokens(400, model.config().vocab_size);
    let whole = all_rows(&mut *model.new_sequence(400).unwrap(), &[&ids]);
    assert_eq!(whole.iter().map(|row| row.0).collect::<Vec<_>>(), (0..400).collect::<Vec<_>>());
    let one_by_one: Vec<&[u32]> = ids.chunks(1).collect();
    let sevens: Vec<&[u32]> = ids.chunks(7).collect();
    for pieces in [one_by_one, sevens, vec![&ids[..64], &ids[64..]], vec![&ids[..299], &[], &ids[299..]]] {
        let cut = all_rows(&mut *model.new_sequence(400).unwrap(), &pieces);
        let difference = largest_difference(&whole, &cut);
        assert!(difference < 1e-5, "{} pieces: logits differ by {difference:e}", pieces.len());
    }
}

#[test]
fn only_the_rows_asked_for_are_computed() {
    let model = model();
    let ids = Random::new(2).tokens(300, model.config().vocab_size);
    let all = all_rows(&mut *model.new_sequence(300).unwrap(), &[&ids]);
    let mut collect = Collect::default();
    let mut sequence = model.new_sequence(300).unwrap();
    sequence.extend(&ids[..10], LogitsFor::None, &mut collect).unwrap();
    assert!(collect.rows.is_empty());
    sequence.extend(&ids[10..], LogitsFor::LastToken, &mut collect).unwrap();
    assert!(largest_difference(&all[299..], &collect.rows) < 1e-5);
}

#[test]
fn every_site_is_seen_in_order_with_all_its_rows() {
    let model = model();
    let config = model.config();
    let mut collect = Collect::default();
    let mut sequence = model.new_sequence(20).unwrap();
    sequence.extend(&[1; 5], LogitsFor::None, &mut collect).unwrap();
    sequence.extend(&[1; 3], LogitsFor::None, &mut collect).unwrap();
    let mut sites = vec![HiddenStateAt::Embedding];
    sites.extend(
        (0..config.num_hidden_layers)
            .flat_map(|layer| [HiddenStateAt::AfterAttention(layer), HiddenStateAt::AfterMlp(layer)]),
    );
    sites.push(HiddenStateAt::FinalNorm);
    let call = |position: usize, tokens: usize| {
        sites.iter().map(|site| (*site, position, tokens * config.hidden_size)).collect::<Vec<_>>()
    };
    assert_eq!(collect.hidden, [call(0, 5), call(5, 3)].concat());
}

#[test]
fn a_snapshot_restores_into_another_sequence() {
    let model = model();
    let ids = Random::new(3).tokens(150, model.config().vocab_size);
    let mut first = model.new_sequence(200).unwrap();
    first.extend(&ids[..100], LogitsFor::None, &mut Discard).unwrap();
    let snapshot = first.snapshot().unwrap();
    let expected = all_rows(&mut *first, &[&ids[100..]]);
    let mut second = model.new_sequence(150).unwrap();
    second.extend(&ids[50..120], LogitsFor::None, &mut Discard).unwrap();
    second.restore(&snapshot).unwrap();
    assert_eq!(second.position(), 100);
    assert_eq!(all_rows(&mut *second, &[&ids[100..]]), expected);
    assert_eq!(first.recurrent_states().unwrap(), second.recurrent_states().unwrap());
    // And the first one's use of its cache did not reach into the snapshot.
    first.restore(&snapshot).unwrap();
    assert_eq!(first.snapshot().unwrap(), snapshot);

    let mut small = model.new_sequence(99).unwrap();
    assert!(matches!(small.restore(&snapshot), Err(RunError::Snapshot { .. })));
    let mut foreign = snapshot.clone();
    foreign.tensors[0].shape[0] += 1;
    assert!(matches!(first.restore(&foreign), Err(RunError::Snapshot { .. })));
}

#[test]
fn reset_forgets() {
    let model = model();
    let ids = Random::new(4).tokens(80, model.config().vocab_size);
    let mut sequence = model.new_sequence(80).unwrap();
    let first = all_rows(&mut *sequence, &[&ids]);
    sequence.reset();
    assert_eq!(all_rows(&mut *sequence, &[&ids]), first);
}

#[test]
fn errors_leave_the_sequence_where_it_was() {
    let model = model();
    let vocab_size = model.config().vocab_size;
    let ids = Random::new(5).tokens(30, vocab_size);
    let mut sequence = model.new_sequence(30).unwrap();
    sequence.extend(&ids[..10], LogitsFor::None, &mut Discard).unwrap();
    let wrong = [0, vocab_size as u32];
    assert!(matches!(
        sequence.extend(&wrong, LogitsFor::None, &mut Discard),
        Err(RunError::Token { position: 11, .. })
    ));
    assert!(matches!(
        sequence.extend(&[0; 21], LogitsFor::None, &mut Discard),
        Err(RunError::ContextFull { needed: 31, max_context: 30 })
    ));
    let rest = all_rows(&mut *sequence, &[&ids[10..]]);
    let whole = all_rows(&mut *model.new_sequence(30).unwrap(), &[&ids]);
    assert!(largest_difference(&whole[10..], &rest) < 1e-5);
}

#[test]
fn a_cancelled_call_stops_after_a_whole_piece_and_can_go_on() {
    let model = model();
    let layers = model.config().num_hidden_layers;
    let ids = Random::new(6).tokens(600, model.config().vocab_size);
    let whole = all_rows(&mut *model.new_sequence(600).unwrap(), &[&ids]);
    let mut sequence = model.new_sequence(600).unwrap();
    // Cancelled inside the second piece.
    let mut collect = Collect { stop_after: Some(layers + 3), ..Collect::default() };
    assert!(matches!(sequence.extend(&ids, LogitsFor::AllTokens, &mut collect), Err(RunError::Cancelled)));
    let position = sequence.position();
    assert!(position > 0 && position < 600, "stopped at {position}");
    assert_eq!(collect.rows.len(), position);
    let rest = all_rows(&mut *sequence, &[&ids[position..]]);
    assert!(largest_difference(&whole[position..], &rest) < 1e-5);
}

#[test]
fn the_cache_grows_with_the_text() {
    let model = model();
    let mut sequence = model.new_sequence(100_000).unwrap();
    let empty = sequence.cache_bytes();
    sequence.extend(&[7; 10], LogitsFor::None, &mut Discard).unwrap();
    let short = sequence.cache_bytes();
    sequence.extend(&[7; 600], LogitsFor::None, &mut Discard).unwrap();
    let long = sequence.cache_bytes();
    assert!(empty < short && short < long && long < 2_000_000, "{empty} {short} {long}");
}
