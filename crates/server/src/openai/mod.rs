//! OpenAI's chat and text completions.

pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod conversation;
pub(crate) mod reply;
pub(crate) mod responses;
pub(crate) mod settings;
pub(crate) mod tool_text;
pub(crate) mod types;

use std::sync::atomic::{AtomicU64, Ordering};

/// A new id, `chatcmpl-…`, unique in this process and unlikely in another.
pub(crate) fn new_id(prefix: &str) -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let nanos = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |time| time.as_nanos() as u64);
    format!("{prefix}-{nanos:016x}{:06x}", COUNTER.fetch_add(1, Ordering::Relaxed) & 0xff_ffff)
}
