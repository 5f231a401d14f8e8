//! Dialogues computed side by side.

mod support;

use std::cell::Cell;

use q35_inference::CancelToken;
use q35_parity::tasks::{greedy_replies, greedy_reply};
use q35_parity::{Artefact, ParityError, float_model};
use support::Fixture;

#[test]
fn replies_do_not_depend_on_how_many_are_computed_at_once() {
    let fixture = Fixture::new();
    let model = float_model(Artefact::open(&fixture.source, None).unwrap().weights()).unwrap();
    let prompts: Vec<Vec<u32>> = (1..8).map(|n| (0..n).map(|i| (n * 31 + i * 7) % 200).collect()).collect();
    let cancel = CancelToken::new();
    let alone: Vec<Vec<u32>> =
        prompts.iter().map(|prompt| greedy_reply(&*model, prompt, 6, &[], &cancel).unwrap()).collect();
    for workers in [0, 1, 3, 20] {
        let done = Cell::new(0);
        let count = || done.set(done.get() + 1);
        let replies = greedy_replies(&*model, &prompts, 6, &[], workers, &cancel, &count).unwrap();
        assert_eq!((replies, done.get()), (alone.clone(), prompts.len()), "{workers} workers");
    }
    cancel.cancel();
    let stopped = greedy_replies(&*model, &prompts, 6, &[], 3, &cancel, &|| {});
    assert!(matches!(stopped, Err(ParityError::Cancelled)));
}
