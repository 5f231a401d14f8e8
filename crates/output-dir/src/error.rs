//! Why a directory could not be written or checked.

use std::io;
use std::path::{Path, PathBuf};

/// Why a directory could not be written or checked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// The target is there already.
    #[error("{} exists already\nhint: give another directory, or replace this one with --force", path.display())]
    Exists {
        /// The target.
        path: PathBuf,
    },
    /// The target must not be replaced.
    #[error("{} cannot be replaced: {reason}", path.display())]
    Protected {
        /// The target.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The disk is full.
    #[error("no space left while writing {}\nhint: free some space and start again; nothing was changed", path.display())]
    Full {
        /// The file being written.
        path: PathBuf,
    },
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The manifest is absent or not one of ours.
    #[error("{} has no readable manifest.json: {message}\nhint: only directories that q35 wrote can be verified", path.display())]
    Manifest {
        /// The directory.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
}

impl BundleError {
    /// The error of an operation on `path`, a full disk told from the rest.
    pub fn io(path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { path: path.to_owned() },
            _ => Self::Io { path: path.to_owned(), source },
        }
    }
}
