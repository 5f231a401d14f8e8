//! Finding a model by name: a directory, a hub id, or the embedded model.

#[cfg(feature = "nano")]
use std::path::Path;
use std::path::PathBuf;

use q35_hub::{Event, HubOptions};
use tempfile::TempDir;

use crate::{ArtefactError, select_files};

/// Name of the embedded model.
pub const NANO: &str = "q35-nano";

/// A model on disk.
#[derive(Debug)]
pub struct FoundModel {
    /// The directory with the model or its variants.
    pub dir: PathBuf,
    /// The hub id, or [`NANO`]; `None` for a local directory.
    pub id: Option<String>,
    /// The commit on the hub.
    pub commit: Option<String>,
    /// Removes the embedded model's files when dropped.
    _unpacked: Option<TempDir>,
}

/// Finds `model`: an existing directory, a hub id, whose files for `variant` are fetched unless the cache has them, or
/// [`NANO`] in a build with the feature `nano`.
///
/// # Errors
/// There is no such directory, and the hub does not serve the model.
pub fn find_model(
    model: &str,
    variant: Option<&str>,
    options: &HubOptions,
    events: &dyn Fn(Event<'_>),
) -> Result<FoundModel, ArtefactError> {
    #[cfg(feature = "nano")]
    if model == NANO && !Path::new(model).exists() {
        return FoundModel::embedded();
    }
    let select = |files: &[&str]| select_files(files, variant);
    let found = q35_hub::resolve(model, options, &select, events)?;
    Ok(FoundModel { dir: found.dir, id: found.id, commit: found.commit, _unpacked: None })
}

#[cfg(feature = "nano")]
impl FoundModel {
    /// The embedded model, unpacked into a temporary directory.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn embedded() -> Result<Self, ArtefactError> {
        let unpack = || -> std::io::Result<TempDir> {
            let dir = tempfile::tempdir()?;
            q35_nano::write_to(dir.path())?;
            Ok(dir)
        };
        let unpacked = unpack().map_err(ArtefactError::Unpack)?;
        let (dir, id) = (unpacked.path().to_owned(), Some(NANO.to_owned()));
        Ok(Self { dir, id, commit: None, _unpacked: Some(unpacked) })
    }
}
