//! Packages compiled by the system.

use std::path::{Path, PathBuf};

use crate::PredictError;
use objc2::rc::Retained;
use objc2_core_ml::MLModel;
use objc2_foundation::{NSError, NSString, NSURL};

use super::cache::{keep, place};

/// The compiled form of `package`: from the cache, or compiled now (minutes for the Neural Engine, the first time) and
/// kept there if there is one.
pub(crate) fn compiled(package: &Path, cache: Option<&Path>) -> Result<PathBuf, PredictError> {
    let failed = |what: &str, error: std::io::Error| {
        PredictError::Framework(format!("{what} {}: {error}", package.display()))
    };
    let place = match cache {
        Some(cache) => Some(place(package, cache).map_err(|error| failed("cannot read", error))?),
        None => None,
    };
    if let Some(place) = place.as_ref().filter(|place| place.is_dir()) {
        return Ok(place.clone());
    }
    #[allow(
        deprecated,
        reason = "its successor answers on another thread, which a command that waits has no use for"
    )]
    // SAFETY: a file URL, and no object is kept.
    let fresh = unsafe { MLModel::compileModelAtURL_error(&url(package)) }.map_err(in_words)?;
    let fresh = fresh.path().map(|path| PathBuf::from(path.to_string()));
    let fresh = fresh.ok_or_else(|| PredictError::Framework("the compiled model has no path".to_owned()))?;
    match place {
        Some(place) => {
            keep(&fresh, &place).map_err(|error| failed("cannot keep the compiled form of", error))?;
            Ok(place)
        }
        None => Ok(fresh),
    }
}

pub(crate) fn url(path: &Path) -> Retained<NSURL> {
    NSURL::fileURLWithPath(&NSString::from_str(&path.to_string_lossy()))
}

/// What the framework says of an error.
pub(crate) fn in_words(error: Retained<NSError>) -> PredictError {
    PredictError::Framework(error.localizedDescription().to_string())
}
