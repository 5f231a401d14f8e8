//! The cache that all Hugging Face tools share: `blobs` by hash, `snapshots/COMMIT` linking to them, `refs` naming
//! commits.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use hf_hub::{Cache, Repo, RepoType};

use crate::HubOptions;

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

    /// The commit that the revision stood for when it was last asked.
    pub fn known_commit(&self) -> Option<String> {
        let by_ref = fs::read_to_string(self.reference()).ok().map(|text| text.trim().to_owned());
        by_ref.or_else(|| self.snapshot(&self.revision).is_dir().then(|| self.revision.clone()))
    }

    pub fn remember_commit(&self, commit: &str) -> io::Result<()> {
        let path = self.reference();
        fs::create_dir_all(path.parent().unwrap_or(&self.root))?;
        fs::write(path, commit)
    }

    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    pub fn blob(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(etag)
    }

    /// Where a file of a commit grows until it is whole. A commit's files never change, so what lies here may always
    /// be continued.
    pub fn unfinished(&self, commit: &str, file: &str) -> PathBuf {
        let name = format!("{commit}-{}.incomplete", file.replace(['/', '\\'], "--"));
        self.root.join("blobs").join(name)
    }

    /// Gives the finished file its name in the snapshot.
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
