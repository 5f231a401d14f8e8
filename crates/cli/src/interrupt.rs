//! Ctrl-C as a token that long computations check.

use q35_inference::CancelToken;

use crate::output::note;

/// A token that the first Ctrl-C cancels. A second one ends the process at once with exit code 130.
///
/// # Errors
/// The handler cannot be installed, or was installed before.
pub fn token() -> anyhow::Result<CancelToken> {
    token_with(|| {})
}

/// As [`token`]; the second Ctrl-C runs `before_exit` first.
///
/// # Errors
/// As of [`token`].
pub fn token_with(before_exit: impl Fn() + Send + 'static) -> anyhow::Result<CancelToken> {
    let token = CancelToken::new();
    let cancelled = token.clone();
    ctrlc::set_handler(move || {
        if cancelled.is_cancelled() {
            before_exit();
            #[expect(clippy::exit, reason = "the second Ctrl-C does not wait for a step of the computation")]
            std::process::exit(130);
        }
        cancelled.cancel();
        note("stopping after this step; press Ctrl-C again to stop at once");
    })?;
    Ok(token)
}
