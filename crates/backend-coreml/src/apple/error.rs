//! Errors of Apple's frameworks.

use objc2::rc::Retained;
use objc2_foundation::NSError;

use crate::PredictError;

/// Converts an `NSError` by its localized description.
pub(crate) fn framework_error(error: Retained<NSError>) -> PredictError {
    PredictError::Framework(error.localizedDescription().to_string())
}
