//! The source of a conversion: a directory, a repository on the hub, or the embedded model.

use std::path::{Path, PathBuf};

use q35_artefact::select_files;
use q35_hub::{Event, HubOptions};
use tempfile::TempDir;

use crate::ConvertError;

/// Name of the embedded model.
pub const NANO: &str = "q35-nano";

/// A checkpoint on disk, and where it came from.
#[derive(Debug)]
pub struct Source {
    /// The checkpoint's directory.
    pub dir: PathBuf,
    /// Name as the caller gave it: a path, a hub id, or [`NANO`].
    pub name: String,
    /// Hub id, or [`NANO`]; [`None`] for a directory.
    pub id: Option<String>,
    /// Commit on the hub.
    pub revision: Option<String>,
    /// Files of the embedded model, removed with the last use.
    _unpacked: Option<TempDir>,
}

impl Source {
    /// The checkpoint in a directory.
    pub fn directory(dir: impl Into<PathBuf>) -> Self {
        let dir = dir.into();
        let name = dir.display().to_string();
        Self { dir, name, id: None, revision: None, _unpacked: None }
    }

    /// The embedded model, unpacked into a temporary directory.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn embedded() -> Result<Self, ConvertError> {
        let unpack = || -> std::io::Result<TempDir> {
            let dir = tempfile::tempdir()?;
            q35_nano::write_to(dir.path())?;
            Ok(dir)
        };
        let unpacked = unpack().map_err(ConvertError::Unpack)?;
        let (dir, name) = (unpacked.path().to_owned(), NANO.to_owned());
        Ok(Self { dir, id: Some(name.clone()), name, revision: None, _unpacked: Some(unpacked) })
    }

    /// The checkpoint that `name` refers to: an existing directory, [`NANO`], or a hub id, whose missing files are
    /// downloaded to the cache. `variant` selects a sub-directory of a repository of converted models.
    ///
    /// # Errors
    /// There is no such checkpoint, or the download fails.
    pub fn resolve(
        name: &str,
        variant: Option<&str>,
        hub: &HubOptions,
        events: &dyn Fn(Event<'_>),
    ) -> Result<Self, ConvertError> {
        if name == NANO && !Path::new(name).exists() {
            return Self::embedded();
        }
        let found = q35_hub::resolve(name, hub, &|files| select_files(files, variant), events)?;
        Ok(Self {
            dir: found.dir,
            name: name.to_owned(),
            id: found.id,
            revision: found.commit,
            _unpacked: None,
        })
    }

    /// True if the checkpoint came from the hub.
    pub fn is_from_hub(&self) -> bool {
        self.revision.is_some()
    }
}
