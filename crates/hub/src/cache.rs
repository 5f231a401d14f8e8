//! The cache that all Hugging Face tools share: `blobs` by hash, `snapshots/COMMIT` linking to them, `refs` naming
//! commits.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use hf_hub::{Cache, Repo, RepoType};

use crate::{HubOptions, SelectFiles};

pub(crate) struct RepositoryCache {
    root: PathBuf,
    revision: String,
}

impl RepositoryCache {
    pub fn new(id: &str, options: &HubOptions) -> Self {
        let repo = Repo::with_revision(id.to_owned(), RepoType::Model, options.revision.clone());
        let root = Cache::new(options.cache_dir.clone()).path().join(repo.folder_name());
        Self { root, revision: options.revision.clone() }
    }

    /// The commit of the revision at the last look-up.
    pub fn known_commit(&self) -> Option<String> {
        let by_ref = fs::read_to_string(self.reference()).ok().map(|text| text.trim().to_owned());
        by_ref.or_else(|| self.snapshot(&self.revision).is_dir().then(|| self.revision.clone()))
    }

    pub fn remember_commit(&self, commit: &str) -> io::Result<()> {
        let path = self.reference();
        fs::create_dir_all(path.parent().unwrap_or(&self.root))?;
        fs::write(path, commit)
    }

    /// True if the cache holds all files of a commit that `select` chooses, as far as the cache can tell: none of them
    /// is a dangling link and no transfer of the commit is unfinished.
    pub fn is_complete(&self, commit: &str, select: &SelectFiles<'_>) -> bool {
        let snapshot = self.snapshot(commit);
        let files = list_below(&snapshot, "");
        let names: Vec<&str> = files.iter().map(String::as_str).collect();
        let chosen = select(&names);
        let unfinished = fs::read_dir(self.root.join("blobs")).into_iter().flatten().flatten().any(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            name.starts_with(&format!("{commit}-")) && name.ends_with(".incomplete")
        });
        !chosen.is_empty() && !unfinished && chosen.iter().all(|file| snapshot.join(file).exists())
    }

    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    pub fn blob(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(etag)
    }

    /// The path of a file of a commit until it is complete. A commit's files never change, so an unfinished transfer can
    /// always be resumed.
    pub fn unfinished(&self, commit: &str, file: &str) -> PathBuf {
        let name = format!("{commit}-{}.incomplete", file.replace(['/', '\\'], "--"));
        self.root.join("blobs").join(name)
    }

    /// Moves the finished file to its blob and links it into the snapshot.
    pub fn publish(&self, unfinished: &Path, etag: &str, commit: &str, file: &str) -> io::Result<()> {
        let (blob, link) = (self.blob(etag), self.snapshot(commit).join(file));
        fs::rename(unfinished, &blob)?;
        fs::create_dir_all(link.parent().unwrap_or(&self.root))?;
        if link.symlink_metadata().is_ok() {
            fs::remove_file(&link)?;
        }
        link_or_copy(&blob, &link, 1 + Path::new(file).components().count())
    }

    fn reference(&self) -> PathBuf {
        self.root.join("refs").join(&self.revision)
    }
}

/// The paths of all files below `dir`, with `/` between components.
fn list_below(dir: &Path, prefix: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        match entry.path().is_dir() {
            true => found.extend(list_below(&entry.path(), &format!("{name}/"))),
            false => found.push(name),
        }
    }
    found.sort();
    found
}

#[cfg(unix)]
fn link_or_copy(blob: &Path, link: &Path, depth: usize) -> io::Result<()> {
    let name = blob.file_name().unwrap_or_default();
    let mut relative: PathBuf = std::iter::repeat_n("..", depth).collect();
    relative.push("blobs");
    relative.push(name);
    std::os::unix::fs::symlink(relative, link)
}

#[cfg(not(unix))]
fn link_or_copy(blob: &Path, link: &Path, _depth: usize) -> io::Result<()> {
    fs::hard_link(blob, link).or_else(|_| fs::copy(blob, link).map(drop))
}
