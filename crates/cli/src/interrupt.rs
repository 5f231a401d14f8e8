//! Ctrl-C as a cancel token.

use q35_inference::CancelToken;

/// A token that the first Ctrl-C cancels; a second Ctrl-C ends the process at once.
///
/// # Errors
/// The signal handler cannot be installed, or is installed already.
pub fn token() -> anyhow::Result<CancelToken> {
    let token = CancelToken::new();
    let handler_token = token.clone();
    ctrlc::set_handler(move || {
        if handler_token.is_cancelled() {
            #[expect(clippy::exit, reason = "a second Ctrl-C must not wait for the current step to end")]
            std::process::exit(130);
        }
        handler_token.cancel();
    })?;
    Ok(token)
}
