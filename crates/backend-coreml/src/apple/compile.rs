//! Compilation of packages by Core ML.

use std::path::{Path, PathBuf};

use objc2::rc::Retained;
use objc2_core_ml::MLModel;
use objc2_foundation::{NSString, NSURL};

use super::compiled_cache::{cache_path, store};
use super::error::framework_error;
use crate::PredictError;

/// Path of the package's `.mlmodelc`: from `cache` if it is there, otherwise compiled now (which takes minutes for the
/// Neural Engine) and stored in `cache`.
pub(crate) fn compile(package: &Path, cache: Option<&Path>) -> Result<PathBuf, PredictError> {
    let failed = |what: &str, error: std::io::Error| {
        PredictError::Framework(format!("{what} {}: {error}", package.display()))
    };
    let cached = match cache {
        Some(cache) => Some(cache_path(package, cache).map_err(|error| failed("cannot read", error))?),
        None => None,
    };
    if let Some(cached) = cached.as_ref().filter(|cached| cached.is_dir()) {
        return Ok(cached.clone());
    }
    #[allow(
        deprecated,
        reason = "the replacement completes asynchronously, and every caller would block on it"
    )]
    // SAFETY: the argument is a file URL and no object outlives the call.
    let fresh = unsafe { MLModel::compileModelAtURL_error(&file_url(package)) }.map_err(framework_error)?;
    let fresh = fresh.path().map(|path| PathBuf::from(path.to_string()));
    let fresh = fresh.ok_or_else(|| PredictError::Framework("the compiled model has no path".to_owned()))?;
    match cached {
        Some(cached) => {
            store(&fresh, &cached).map_err(|error| failed("cannot cache the compiled form of", error))?;
            Ok(cached)
        }
        None => Ok(fresh),
    }
}

pub(crate) fn file_url(path: &Path) -> Retained<NSURL> {
    NSURL::fileURLWithPath(&NSString::from_str(&path.to_string_lossy()))
}
