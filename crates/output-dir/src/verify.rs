//! Verification of a directory against its manifest.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Component, Path};

use rayon::prelude::*;

use crate::hashed_file::hash_file;
use crate::staging::list_files;
use crate::{FileRecord, MANIFEST, Manifest, OutputDirError};

/// Result of [`verify`].
#[derive(Clone, Debug, PartialEq)]
pub struct Verification {
    /// The manifest.
    pub manifest: Manifest,
    /// Bytes of all listed files.
    pub bytes: u64,
    /// Every deviation, sorted by path; empty if the directory is as it was written.
    pub problems: Vec<VerifyProblem>,
}

/// A deviation from the manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum VerifyProblem {
    /// A file of the manifest is missing.
    Missing {
        /// Its path in the directory.
        path: String,
    },
    /// A file has another length.
    Length {
        /// Its path in the directory.
        path: String,
        /// Length in the manifest.
        expected: u64,
        /// Length of the file.
        found: u64,
    },
    /// A file has other contents.
    Hash {
        /// Its path in the directory.
        path: String,
        /// SHA-256 in the manifest.
        expected: String,
        /// SHA-256 of the file.
        found: String,
    },
    /// A file that the manifest does not list.
    Unlisted {
        /// Its path in the directory.
        path: String,
    },
    /// The manifest names a path outside of its directory.
    Outside {
        /// The path.
        path: String,
    },
}

impl fmt::Display for VerifyProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { path } => write!(f, "{path}: missing"),
            Self::Length { path, expected, found } => {
                write!(f, "{path}: {found} bytes, the manifest says {expected}")
            }
            Self::Hash { path, expected, found } => {
                write!(f, "{path}: changed\n  expected: sha256 {expected}\n  found:    sha256 {found}")
            }
            Self::Unlisted { path } => write!(f, "{path}: not in the manifest"),
            Self::Outside { path } => write!(f, "{path}: the manifest points outside of the directory"),
        }
    }
}

/// Hashes every file of `dir` and compares it with the manifest. Hidden files and those that operating systems leave in
/// directories are ignored where the manifest does not list them.
///
/// # Errors
/// The manifest is absent or unreadable, or a file cannot be read.
pub fn verify(dir: &Path) -> Result<Verification, OutputDirError> {
    let unreadable = |message: String| OutputDirError::Manifest { path: dir.to_owned(), message };
    let text = fs::read(dir.join(MANIFEST)).map_err(|error| unreadable(error.to_string()))?;
    let manifest = Manifest::parse(&text).map_err(unreadable)?;
    let found: Vec<Option<VerifyProblem>> =
        manifest.files.par_iter().map(|record| check(dir, record)).collect::<Result<_, _>>()?;
    let listed: BTreeSet<&str> = manifest.files.iter().map(|record| record.path.as_str()).collect();
    let unlisted = list_files(dir)?
        .into_iter()
        .filter(|path| path != MANIFEST && !is_stray(path))
        .filter(|path| !listed.contains(path.as_str()))
        .map(|path| VerifyProblem::Unlisted { path });
    let problems = found.into_iter().flatten().chain(unlisted).collect();
    let bytes = manifest.files.iter().map(|record| record.bytes).sum();
    Ok(Verification { manifest, bytes, problems })
}

/// True for hidden files and for the files of Windows and macOS that describe a directory's appearance.
fn is_stray(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    path.split('/').any(|part| part.starts_with('.'))
        || ["Thumbs.db", "ehthumbs.db", "desktop.ini", "Icon\r"].contains(&name)
}

fn check(dir: &Path, record: &FileRecord) -> Result<Option<VerifyProblem>, OutputDirError> {
    let path = record.path.clone();
    let inside = Path::new(&path).components().all(|part| matches!(part, Component::Normal(_)));
    if !inside || path.is_empty() {
        return Ok(Some(VerifyProblem::Outside { path }));
    }
    let Ok(metadata) = fs::metadata(dir.join(&path)) else {
        return Ok(Some(VerifyProblem::Missing { path }));
    };
    if metadata.len() != record.bytes {
        return Ok(Some(VerifyProblem::Length { path, expected: record.bytes, found: metadata.len() }));
    }
    let found = hash_file(&dir.join(&path), &path)?;
    Ok((found.sha256 != record.sha256).then(|| VerifyProblem::Hash {
        path,
        expected: record.sha256.clone(),
        found: found.sha256,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Existing, Staging};

    #[test]
    fn every_kind_of_damage_is_found() {
        let home = tempfile::tempdir().unwrap();
        let target = home.path().join("m");
        let staging = Staging::begin(&target, Existing::Refuse).unwrap();
        for name in ["a", "b", "c", "d"] {
            fs::write(staging.path().join(name), name).unwrap();
        }
        fs::create_dir(staging.path().join("sub")).unwrap();
        fs::write(staging.path().join("sub/e"), "e").unwrap();
        staging.seal(Manifest::new("test", "0"), Vec::new()).unwrap();
        staging.publish().unwrap();
        let clean = verify(&target).unwrap();
        assert_eq!((clean.problems.len(), clean.bytes, clean.manifest.files.len()), (0, 5, 5));

        fs::remove_file(target.join("a")).unwrap();
        fs::write(target.join("b"), "longer").unwrap();
        fs::write(target.join("c"), "x").unwrap();
        fs::write(target.join("sub/new"), "").unwrap();
        for stray in [".DS_Store", "sub/._e", "Thumbs.db", "sub/desktop.ini"] {
            fs::write(target.join(stray), "").unwrap();
        }
        let problems: Vec<String> =
            verify(&target).unwrap().problems.iter().map(ToString::to_string).collect();
        assert_eq!(problems.len(), 4, "{problems:?}");
        assert_eq!(problems[0], "a: missing");
        assert_eq!(problems[1], "b: 6 bytes, the manifest says 1");
        assert!(problems[2].starts_with("c: changed"));
        assert_eq!(problems[3], "sub/new: not in the manifest");

        let mut manifest = clean.manifest;
        manifest.files[0].path = "../x".to_owned();
        fs::write(target.join(MANIFEST), manifest.to_text()).unwrap();
        assert!(matches!(verify(&target).unwrap().problems[0], VerifyProblem::Outside { .. }));
        fs::write(target.join(MANIFEST), "{}").unwrap();
        assert!(matches!(verify(&target), Err(OutputDirError::Manifest { .. })));
    }
}
