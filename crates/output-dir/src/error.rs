//! Errors of writing or verifying a directory.

use std::io;
use std::path::{Path, PathBuf};

/// Error of writing or verifying a directory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutputDirError {
    /// The target exists already.
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
        /// The reason.
        reason: String,
    },
    /// The target was not written by q35 and is not empty.
    #[error(
        "{} cannot be replaced: it has files and no manifest.json of q35\n  found: {}\n\
         hint: give another directory, or remove these files yourself",
        path.display(),
        list_names(names)
    )]
    NotOurs {
        /// The target.
        path: PathBuf,
        /// Names of its entries, sorted.
        names: Vec<String>,
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
        /// The system's error.
        source: io::Error,
    },
    /// The manifest is absent or was not written by q35.
    #[error("{} has no readable manifest.json: {message}\nhint: only directories that q35 wrote can be verified", path.display())]
    Manifest {
        /// The directory.
        path: PathBuf,
        /// The defect.
        message: String,
    },
}

impl OutputDirError {
    /// The error of an operation on `path`; a full disk becomes [`Self::Full`].
    pub fn io(path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { path: path.to_owned() },
            _ => Self::Io { path: path.to_owned(), source },
        }
    }
}

fn list_names(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let mut text = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    text
}
