//! The cases. Each is a function on a backend that panics if the backend fails it.

mod conversations;
mod memory;
mod replies;
mod stops;

use std::panic::{AssertUnwindSafe, catch_unwind};

pub use conversations::{
    a_saved_prompt_is_used_by_another_chat, every_turn_equals_a_cold_start,
    later_turns_compute_only_what_is_new, random_conversations_equal_cold_starts,
};
pub use memory::{memory_is_accounted_for, sessions_on_many_threads_do_not_mix, unloading_and_talking_on};
pub use replies::{
    a_name_is_remembered, answers_in_json_parse, chunks_are_whole_and_add_up,
    log_probabilities_are_those_of_a_distribution, the_same_seed_gives_the_same_text,
};
pub use stops::{
    a_cancelled_prefill_leaves_the_session_usable, a_dropped_stream_leaves_the_session_usable,
    a_full_window_refuses_or_drops_the_oldest_turns,
};

use crate::Backend;

/// Runs a case. A known gap must fail.
pub fn check(backend: &Backend, name: &str, case: fn(&Backend)) {
    let Some((_, why)) = backend.gaps.iter().find(|(gap, _)| *gap == name) else { return case(backend) };
    let passed = catch_unwind(AssertUnwindSafe(|| case(backend))).is_ok();
    assert!(!passed, "{}: {name} passes, but is listed as a gap ({why})", backend.name);
}

/// Fails if a gap is not the name of a case.
pub fn check_gaps(backend: &Backend, cases: &[&str]) {
    for (gap, _) in &backend.gaps {
        assert!(cases.contains(gap), "{}: `{gap}` is no case of the suite", backend.name);
    }
}
