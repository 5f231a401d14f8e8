//! The source of a conversion: a directory, a repository on the hub, or the embedded model.

use std::path::PathBuf;

pub use q35_artefact::NANO;
use q35_artefact::{FoundModel, find_model};
use q35_hub::{Event, HubOptions};

use crate::ConvertError;

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
    /// Owns the embedded model's files.
    _found: Option<FoundModel>,
}

impl Source {
    /// The checkpoint in a directory.
    pub fn directory(dir: impl Into<PathBuf>) -> Self {
        let dir = dir.into();
        let name = dir.display().to_string();
        Self { dir, name, id: None, revision: None, _found: None }
    }

    /// The embedded model, unpacked into a temporary directory.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn embedded() -> Result<Self, ConvertError> {
        Ok(Self::found(NANO, FoundModel::embedded()?))
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
        Ok(Self::found(name, find_model(name, variant, hub, events)?))
    }

    fn found(name: &str, found: FoundModel) -> Self {
        Self {
            dir: found.dir.clone(),
            name: name.to_owned(),
            id: found.id.clone(),
            revision: found.commit.clone(),
            _found: Some(found),
        }
    }

    /// True if the checkpoint came from the hub.
    pub fn is_from_hub(&self) -> bool {
        self.revision.is_some()
    }
}
