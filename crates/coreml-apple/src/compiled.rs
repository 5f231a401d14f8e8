//! Packages compiled by the system, once.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use objc2_core_ml::MLModel;
use objc2_foundation::{NSString, NSURL};
use q35_coreml_backend::PredictError;
use sha2::{Digest, Sha256};

/// The compiled form of `package`, from `cache` or by compiling it now (minutes for the Neural Engine, the first time).
pub(crate) fn compiled(package: &Path, cache: &Path) -> Result<PathBuf, PredictError> {
    let failed = |what: &str, error: io::Error| {
        PredictError::Framework(format!("{what} {}: {error}", package.display()))
    };
    let key = key(package).map_err(|error| failed("cannot read", error))?;
    let kept = cache.join(format!("{key}.mlmodelc"));
    if kept.is_dir() {
        return Ok(kept);
    }
    // SAFETY: a file URL, and no object is kept.
    #[allow(
        deprecated,
        reason = "its successor answers on another thread, which a command that waits has no use for"
    )]
    let fresh = unsafe { MLModel::compileModelAtURL_error(&url(package)) }
        .map_err(|error| PredictError::Framework(error.localizedDescription().to_string()))?;
    let fresh = fresh.path().map(|path| PathBuf::from(path.to_string()));
    let fresh = fresh.ok_or_else(|| PredictError::Framework("the compiled model has no path".to_owned()))?;
    fs::create_dir_all(cache).map_err(|error| failed("cannot cache", error))?;
    match fs::rename(&fresh, &kept) {
        Ok(()) => Ok(kept),
        // Another process was first; its result is the same.
        Err(_) if kept.is_dir() => Ok(kept),
        // Another file system: use it where the system put it, uncached.
        Err(_) => Ok(fresh),
    }
}

pub(crate) fn url(path: &Path) -> objc2::rc::Retained<NSURL> {
    NSURL::fileURLWithPath(&NSString::from_str(&path.to_string_lossy()))
}

/// A hash of what identifies the package's contents: the manifest of the directory that it was written in, which has
/// the hash of every file, or else the program itself and the size of the weights.
fn key(package: &Path) -> io::Result<String> {
    let mut hasher = Sha256::new();
    hasher.update(package.file_name().unwrap_or_default().as_encoded_bytes());
    match fs::read(package.with_file_name("manifest.json")) {
        Ok(manifest) => hasher.update(manifest),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let data = package.join("Data/com.apple.CoreML");
            hasher.update(fs::read(data.join("model.mlmodel"))?);
            if let Ok(weights) = fs::metadata(data.join("weights/weight.bin")) {
                hasher.update(weights.len().to_le_bytes());
            }
        }
        Err(error) => return Err(error),
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
