//! Ctrl-C stops the reply, not the program.

use std::sync::{Mutex, PoisonError};

use q35_runtime::CancelToken;

/// The reply that Ctrl-C stops; none between replies.
static CURRENT: Mutex<Option<CancelToken>> = Mutex::new(None);

fn set(token: Option<CancelToken>) -> Option<CancelToken> {
    std::mem::replace(&mut *CURRENT.lock().unwrap_or_else(PoisonError::into_inner), token)
}

/// Begins to listen. A second Ctrl-C for the same reply, or one between replies, ends the program.
pub(super) fn listen() -> anyhow::Result<()> {
    ctrlc::set_handler(|| match set(None) {
        Some(token) => token.cancel(),
        #[expect(clippy::exit, reason = "what Ctrl-C means where no reply can be stopped")]
        None => std::process::exit(130),
    })?;
    Ok(())
}

/// Makes Ctrl-C stop what is computed while the guard lives.
pub(super) struct Guard;

impl Guard {
    pub(super) fn new(token: &CancelToken) -> Self {
        set(Some(token.clone()));
        Self
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        set(None);
    }
}
