//! One test suite for every backend: the properties of a chat that must hold on any backend, on the embedded model.
//!
//! A [`Backend`] is a way to open that model, and a list of known gaps. [`backend_suite!`] turns it into a module
//! of tests, one for each case, so that a failure names the backend and the case:
//!
//! ```
//! use q35_backend_tests::{Backend, nano_mlx};
//!
//! fn exact() -> Backend {
//!     let files = nano_mlx();
//!     let open = move |options: &_| q35_runtime::Chat::open(files.path_str(), options, &|_| {});
//!     Backend::new("CPU, exact", open).with_exact()
//! }
//! q35_backend_tests::backend_suite!(cpu_exact, exact());
//! ```
//!
//! A case that is listed as a gap must fail: if it passes, the list is out of date, and that is a failure.
//!
//! Only for `[dev-dependencies]`: a failed check panics. The crate must not know a particular backend.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod backend;
#[doc(hidden)]
pub mod cases;
mod files;
mod same;

pub use backend::{Backend, Reuse};
pub use files::{ModelFiles, nano_mlx, nano_source};

/// Creates a module of tests, one for each case of the suite, on the [`Backend`] that an expression returns.
#[macro_export]
macro_rules! backend_suite {
    ($module:ident, $backend:expr) => {
        mod $module {
            #[allow(unused_imports, reason = "the expression may use items of the surrounding module")]
            use super::*;
            $crate::backend_suite!(
                @tests $backend;
                every_turn_equals_a_cold_start
                random_conversations_equal_cold_starts
                later_turns_compute_only_what_is_new
                a_saved_prompt_is_used_by_another_chat
                the_same_seed_gives_the_same_text
                log_probabilities_are_those_of_a_distribution
                a_name_is_remembered
                chunks_are_whole_and_add_up
                answers_in_json_parse
                a_cancelled_prefill_leaves_the_session_usable
                a_dropped_stream_leaves_the_session_usable
                a_full_window_refuses_or_drops_the_oldest_turns
                sessions_on_many_threads_do_not_mix
                memory_is_accounted_for
                unloading_and_talking_on
            );
        }
    };
    (@tests $backend:expr; $($case:ident)*) => {
        $(#[test]
        fn $case() {
            $crate::cases::check(&$backend, stringify!($case), $crate::cases::$case);
        })*

        #[test]
        fn known_gaps_are_cases() {
            $crate::cases::check_gaps(&$backend, &[$(stringify!($case)),*]);
        }
    };
}
