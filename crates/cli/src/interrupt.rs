//! Ctrl-C, as a token that long computations look at.

use q35_inference::CancelToken;

/// A token that the first Ctrl-C cancels; a second one ends the process at once.
///
/// # Errors
/// The handler cannot be installed, or was before.
pub fn token() -> anyhow::Result<CancelToken> {
    let token = CancelToken::new();
    let seen = token.clone();
    ctrlc::set_handler(move || {
        if seen.is_cancelled() {
            #[expect(
                clippy::exit,
                reason = "whoever asks twice does not want to wait for a piece of work to end"
            )]
            std::process::exit(130);
        }
        seen.cancel();
    })?;
    Ok(token)
}
