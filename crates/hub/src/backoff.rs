//! Pauses between attempts.

use std::time::Duration;

/// Pause before attempt number `attempt`, counted from 1: 100 ms, doubled each time.
pub(crate) fn backoff(attempt: u32) -> Duration {
    Duration::from_millis(50 << attempt.min(6))
}
