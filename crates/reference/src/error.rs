//! Conversion of candle's errors.

use q35_inference::RunError;

/// Converts an error of a computation.
pub(crate) fn run_error(error: candle_core::Error) -> RunError {
    RunError::Backend { backend: "candle", message: message(error) }
}

/// Returns the message of `error` without the backtrace that candle may add.
pub(crate) fn message(error: candle_core::Error) -> String {
    match error {
        candle_core::Error::WithBacktrace { inner, .. } => inner.to_string(),
        plain => plain.to_string(),
    }
}
