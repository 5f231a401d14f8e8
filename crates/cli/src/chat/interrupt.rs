//! Ctrl-C: stops the current reply, or ends the program if there is none.

use std::sync::{Mutex, PoisonError};

use q35_runtime::CancelToken;

/// The token of the current reply; `None` between replies.
static CURRENT: Mutex<Option<CancelToken>> = Mutex::new(None);

fn set(token: Option<CancelToken>) -> Option<CancelToken> {
    std::mem::replace(&mut *CURRENT.lock().unwrap_or_else(PoisonError::into_inner), token)
}

/// Installs the handler. A second Ctrl-C for the same reply, or one between replies, ends the program.
pub(super) fn listen() -> anyhow::Result<()> {
    ctrlc::set_handler(|| match set(None) {
        Some(token) => token.cancel(),
        #[expect(clippy::exit, reason = "Ctrl-C without a reply to stop ends the program")]
        None => std::process::exit(130),
    })?;
    Ok(())
}

/// Connects Ctrl-C to a reply's token while the guard lives.
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
