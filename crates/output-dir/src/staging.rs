//! The staging directory: an output that is written beside its target and renamed into place.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use crate::hashed_file::hash_file;
use crate::rename_exchange::exchange;
use crate::{FileRecord, MANIFEST, Manifest, OutputDirError};

/// Treatment of a target that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Refuse before anything is written.
    Refuse,
    /// Keep it until the new one is complete, then replace it. Only an empty directory or one with a manifest of q35 is
    /// replaced.
    Replace,
}

/// A directory that is being written beside its target. Dropping it removes the directory unless it was published.
#[derive(Debug)]
pub struct Staging {
    target: PathBuf,
    path: PathBuf,
    existing: Existing,
    /// Lock that tells other processes that this directory is in use, not a leftover of a killed process.
    _lock: Option<File>,
}

/// Suffix of a staging directory.
const PARTIAL: &str = ".partial";
/// Suffix of an old target between the two renames of a replacement that is not atomic.
const OLD: &str = ".old";

impl Staging {
    /// Checks that `target` may be written, without creating anything: [`Self::begin`] fails for the same reasons.
    ///
    /// # Errors
    /// The target exists and may not be replaced.
    pub fn check(target: &Path, existing: Existing) -> Result<(), OutputDirError> {
        check_existing(&resolve(target)?, existing)
    }

    /// Creates the staging directory of `target`. Missing parents of the target are created; staging directories that
    /// killed processes left beside the target are removed.
    ///
    /// # Errors
    /// The target exists and may not be replaced, or its parent cannot be written.
    pub fn begin(target: &Path, existing: Existing) -> Result<Self, OutputDirError> {
        let target = resolve(target)?;
        let (parent, name) = split(&target)?;
        fs::create_dir_all(&parent).map_err(|error| OutputDirError::io(&parent, error))?;
        clear_leftovers(&target, &parent, &name);
        check_existing(&target, existing)?;
        let path = parent.join(hidden(&name, &unique(), PARTIAL));
        fs::create_dir(&path).map_err(|error| OutputDirError::io(&path, error))?;
        with_unpublished(|unpublished| unpublished.push(path.clone()));
        let lock = File::open(&path).ok().filter(|dir| dir.try_lock().is_ok());
        Ok(Self { target, path, existing, _lock: lock })
    }

    /// Checks that replacing the target does not delete `source`.
    ///
    /// # Errors
    /// [`OutputDirError::Protected`] if `source` is inside the target.
    pub fn protect(&self, source: &Path) -> Result<(), OutputDirError> {
        match (source.canonicalize(), self.target.canonicalize()) {
            (Ok(source), Ok(target)) if source.starts_with(&target) => Err(OutputDirError::Protected {
                path: self.target.clone(),
                reason: format!("it holds the source, {}", source.display()),
            }),
            _ => Ok(()),
        }
    }

    /// The staging directory, into which files are written.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The target, without symbolic links.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Writes the manifest: `manifest` with a record of every file in the staging directory. Files in `hashed` are not
    /// hashed again.
    ///
    /// # Errors
    /// A file cannot be read, or the manifest cannot be written.
    pub fn seal(&self, mut manifest: Manifest, hashed: Vec<FileRecord>) -> Result<Manifest, OutputDirError> {
        let names = list_files(&self.path)?;
        manifest.files = names
            .into_par_iter()
            .filter(|name| name != MANIFEST)
            .map(|name| match hashed.iter().find(|record| record.path == name) {
                Some(record) => Ok(record.clone()),
                None => hash_file(&self.path.join(&name), &name),
            })
            .collect::<Result<_, _>>()?;
        let path = self.path.join(MANIFEST);
        fs::write(&path, manifest.to_text()).map_err(|error| OutputDirError::io(&path, error))?;
        Ok(manifest)
    }

    /// Syncs the directory to the disk and renames it to its target. A process killed before the last rename leaves the
    /// target as it was.
    ///
    /// # Errors
    /// The target was created in the meantime, or the system refuses.
    pub fn publish(self) -> Result<(), OutputDirError> {
        sync(&self.path)?;
        let io = |error| OutputDirError::io(&self.target, error);
        if fs::symlink_metadata(&self.target).is_err() {
            fs::rename(&self.path, &self.target).map_err(io)?;
        } else if let Err(error) = check_existing(&self.target, self.existing) {
            return Err(error);
        } else if exchange(&self.path, &self.target).map_err(io)? {
            // `self.path` is now the old state, which dropping `self` removes.
        } else {
            let (parent, name) = split(&self.target)?;
            // A process killed between these two renames leaves the old state under a name that the next run
            // recognises and renames back.
            let aside = parent.join(hidden(&name, &unique(), OLD));
            fs::rename(&self.target, &aside).map_err(io)?;
            if let Err(error) = fs::rename(&self.path, &self.target) {
                fs::rename(&aside, &self.target).map_err(io)?;
                return Err(io(error));
            }
            // The new state is in place even if the old one cannot be removed.
            let _ = remove(&aside);
        }
        sync_entry(self.target.parent().unwrap_or(Path::new(".")))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // A failure cannot be reported from here; the next run tries again.
        let _ = remove(&self.path);
        with_unpublished(|unpublished| unpublished.retain(|path| *path != self.path));
    }
}

/// The staging directories of this process.
static UNPUBLISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn with_unpublished<T>(use_list: impl FnOnce(&mut Vec<PathBuf>) -> T) -> T {
    use_list(&mut UNPUBLISHED.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Removes the staging directories of this process. For a caller that is about to end the process without dropping
/// them, such as the thread that handles a second Ctrl-C; other threads may still be writing into them.
pub fn remove_unpublished() {
    const ATTEMPTS: u32 = 20;
    let paths = with_unpublished(std::mem::take);
    for path in paths {
        for _ in 0..ATTEMPTS {
            // Fails while another thread creates files in it.
            if remove(&path).is_ok() || fs::symlink_metadata(&path).is_err() {
                break;
            }
        }
    }
}

fn remove(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

/// The target without symbolic links if it exists, else as an absolute path.
fn resolve(target: &Path) -> Result<PathBuf, OutputDirError> {
    if let Ok(path) = target.canonicalize() {
        return Ok(path);
    }
    std::path::absolute(target).map_err(|error| OutputDirError::io(target, error))
}

fn split(target: &Path) -> Result<(PathBuf, OsString), OutputDirError> {
    match (target.parent(), target.file_name()) {
        (Some(parent), Some(name)) => Ok((parent.to_owned(), name.to_owned())),
        _ => Err(OutputDirError::Protected {
            path: target.to_owned(),
            reason: "it has no parent directory".to_owned(),
        }),
    }
}

fn check_existing(target: &Path, existing: Existing) -> Result<(), OutputDirError> {
    match (fs::symlink_metadata(target), existing) {
        (Err(_), _) => Ok(()),
        (Ok(_), Existing::Refuse) => Err(OutputDirError::Exists { path: target.to_owned() }),
        (Ok(_), Existing::Replace) => refuse_dangerous(target),
    }
}

fn refuse_dangerous(target: &Path) -> Result<(), OutputDirError> {
    let reason = if !target.is_dir() {
        "it is not a directory"
    } else if std::env::current_dir().is_ok_and(|here| here.starts_with(target)) {
        "it holds the current directory"
    } else {
        return refuse_foreign(target);
    };
    Err(OutputDirError::Protected { path: target.to_owned(), reason: reason.to_owned() })
}

/// Refuses a directory that has files but no manifest of q35. Files that operating systems put into any directory do
/// not count.
fn refuse_foreign(target: &Path) -> Result<(), OutputDirError> {
    const SYSTEM_FILES: [&str; 4] = [".DS_Store", ".localized", "Thumbs.db", "desktop.ini"];
    let io = |error| OutputDirError::io(target, error);
    let mut names = Vec::new();
    for entry in fs::read_dir(target).map_err(io)? {
        let name = entry.map_err(io)?.file_name().to_string_lossy().into_owned();
        if !SYSTEM_FILES.contains(&name.as_str()) {
            names.push(name);
        }
    }
    if names.is_empty() || Manifest::is_in(target) {
        return Ok(());
    }
    names.sort_unstable();
    Err(OutputDirError::NotOurs { path: target.to_owned(), names })
}

fn hidden(name: &OsString, unique: &str, ending: &str) -> OsString {
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{unique}{ending}"));
    hidden
}

/// A string that no other staging directory of this machine has.
fn unique() -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    format!("{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed))
}

/// Removes staging directories that killed processes left beside the target, and renames an old target back that one of
/// them had renamed. Failures are left for the next run.
fn clear_leftovers(target: &Path, parent: &Path, name: &OsString) {
    let mut prefix = OsString::from(".");
    prefix.push(name);
    prefix.push(".");
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let (Some(found), Some(prefix)) = (entry.file_name().to_str().map(str::to_owned), prefix.to_str())
        else {
            continue;
        };
        let Some(rest) = found.strip_prefix(prefix) else { continue };
        let is_ours = |ending: &str| {
            rest.strip_suffix(ending).is_some_and(|id| id.chars().all(|c| c.is_ascii_digit() || c == '-'))
        };
        let path = entry.path();
        // Ours are directories; a symbolic link of such a name is left alone.
        if !fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir()) {
            continue;
        }
        if is_ours(OLD) && fs::symlink_metadata(target).is_err() {
            let _ = fs::rename(&path, target);
        } else if is_ours(OLD)
            || (is_ours(PARTIAL) && File::open(&path).is_ok_and(|dir| dir.try_lock().is_ok()))
        {
            let _ = remove(&path);
        }
    }
}

/// Paths of all files below `root`, relative to it, with `/` between parts, sorted.
pub(crate) fn list_files(root: &Path) -> Result<Vec<String>, OutputDirError> {
    let mut found = Vec::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(dir) = waiting.pop() {
        let io = |error| OutputDirError::io(&dir, error);
        for entry in fs::read_dir(&dir).map_err(io)? {
            let entry = entry.map_err(io)?;
            if entry.file_type().map_err(io)?.is_dir() {
                waiting.push(entry.path());
                continue;
            }
            let path = entry.path();
            let relative = path.strip_prefix(root).unwrap_or(&path);
            let parts: Vec<_> = relative
                .components()
                .filter_map(|part| match part {
                    Component::Normal(name) => Some(name.to_string_lossy()),
                    _ => None,
                })
                .collect();
            found.push(parts.join("/"));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Syncs everything below `root` to the disk, so that a power cut after the rename cannot leave an empty file under the
/// published name.
fn sync(root: &Path) -> Result<(), OutputDirError> {
    for name in list_files(root)? {
        let path = root.join(&name);
        File::open(&path)
            .and_then(|file| file.sync_all())
            .map_err(|error| OutputDirError::io(&path, error))?;
    }
    sync_entry(root)
}

/// Syncs a directory, where the system lets directories be opened.
fn sync_entry(dir: &Path) -> Result<(), OutputDirError> {
    match File::open(dir) {
        Ok(file) if cfg!(unix) => file.sync_all().map_err(|error| OutputDirError::io(dir, error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn write(staging: &Staging, text: &str) {
        fs::write(staging.path().join("a"), text).unwrap();
    }

    #[test]
    fn nothing_shows_before_publishing_and_nothing_is_left_after_dropping() {
        let home = tempfile::tempdir().unwrap();
        let target = home.path().join("deep/model");
        let staging = Staging::begin(&target, Existing::Refuse).unwrap();
        write(&staging, "new");
        assert!(!target.exists());
        drop(staging);
        assert!(names(&home.path().join("deep")).is_empty());
    }

    #[test]
    fn an_existing_target_is_refused_or_replaced_whole() {
        let home = tempfile::tempdir().unwrap();
        let target = home.path().join("model");
        fs::create_dir(&target).unwrap();
        fs::write(target.join("old"), "old").unwrap();
        fs::write(target.join(MANIFEST), Manifest::new("test", "0").to_text()).unwrap();
        assert!(matches!(Staging::begin(&target, Existing::Refuse), Err(OutputDirError::Exists { .. })));
        let staging = Staging::begin(&target, Existing::Replace).unwrap();
        write(&staging, "new");
        assert_eq!(names(&target), [MANIFEST, "old"]);
        staging.publish().unwrap();
        assert_eq!(names(&target), ["a"]);
        assert_eq!(names(home.path()), ["model"]);
    }

    #[test]
    fn a_target_that_appears_meanwhile_is_not_overwritten() {
        let home = tempfile::tempdir().unwrap();
        let target = home.path().join("model");
        let staging = Staging::begin(&target, Existing::Refuse).unwrap();
        write(&staging, "new");
        fs::create_dir(&target).unwrap();
        assert!(matches!(staging.publish(), Err(OutputDirError::Exists { .. })));
        assert_eq!(names(home.path()), ["model"]);
    }

    #[test]
    fn leftovers_of_killed_processes_go_and_those_of_living_ones_stay() {
        let home = tempfile::tempdir().unwrap();
        let target = home.path().join("model");
        fs::create_dir_all(home.path().join(".model.999999-0.partial/sub")).unwrap();
        fs::create_dir(home.path().join(".model.notes.partial")).unwrap();
        let living = Staging::begin(&target, Existing::Refuse).unwrap();
        let second = Staging::begin(&target, Existing::Refuse).unwrap();
        assert!(living.path().exists() && second.path().exists());
        assert_eq!(names(home.path()).len(), 3);
        assert!(home.path().join(".model.notes.partial").exists());
    }

    #[test]
    fn a_target_moved_away_by_a_killed_process_comes_back() {
        let home = tempfile::tempdir().unwrap();
        let aside = home.path().join(".model.77-0.old");
        fs::create_dir(&aside).unwrap();
        fs::write(aside.join("old"), "old").unwrap();
        let target = home.path().join("model");
        assert!(matches!(Staging::begin(&target, Existing::Refuse), Err(OutputDirError::Exists { .. })));
        assert_eq!(names(&target), ["old"]);
    }

    #[test]
    fn what_must_not_be_replaced_is_not() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(matches!(Staging::begin(&file, Existing::Replace), Err(OutputDirError::Protected { .. })));
        let here = std::env::current_dir().unwrap();
        assert!(matches!(Staging::begin(&here, Existing::Replace), Err(OutputDirError::Protected { .. })));
        let target = home.path().join("model");
        fs::create_dir_all(target.join("source")).unwrap();
        fs::write(target.join(MANIFEST), Manifest::new("test", "0").to_text()).unwrap();
        let staging = Staging::begin(&target, Existing::Replace).unwrap();
        assert!(matches!(staging.protect(&target.join("source")), Err(OutputDirError::Protected { .. })));
        assert!(staging.protect(home.path()).is_ok());
    }

    #[test]
    fn only_an_empty_directory_or_one_of_ours_is_replaced() {
        let home = tempfile::tempdir().unwrap();
        let target = home.path().join("model");
        fs::create_dir(&target).unwrap();
        fs::write(target.join(".DS_Store"), "").unwrap();
        drop(Staging::begin(&target, Existing::Replace).unwrap());

        for name in ["thesis.tex", "photos"] {
            fs::write(target.join(name), "mine").unwrap();
        }
        let refused = |what: &str| {
            for result in [
                Staging::check(&target, Existing::Replace),
                Staging::begin(&target, Existing::Replace).map(|_| ()),
            ] {
                let Err(OutputDirError::NotOurs { names, .. }) = result else { panic!("{what}: {result:?}") };
                assert!(names.iter().any(|name| name == "thesis.tex"), "{what}");
            }
            assert_eq!(fs::read(target.join("thesis.tex")).unwrap(), b"mine");
        };
        refused("no manifest");
        // Another program's manifest.json.
        fs::write(target.join(MANIFEST), r#"{"name": "web app", "icons": []}"#).unwrap();
        refused("another program's manifest");
        let mut foreign = Manifest::new("test", "0");
        foreign.tool.name = "other".to_owned();
        fs::write(target.join(MANIFEST), foreign.to_text()).unwrap();
        refused("another tool's manifest");
        fs::write(target.join(MANIFEST), Manifest::new("test", "0").to_text()).unwrap();
        drop(Staging::begin(&target, Existing::Replace).unwrap());
    }

    #[test]
    fn a_target_that_becomes_foreign_meanwhile_is_not_replaced() {
        let home = tempfile::tempdir().unwrap();
        let target = home.path().join("model");
        fs::create_dir(&target).unwrap();
        let staging = Staging::begin(&target, Existing::Replace).unwrap();
        write(&staging, "new");
        fs::write(target.join("mine"), "mine").unwrap();
        assert!(matches!(staging.publish(), Err(OutputDirError::NotOurs { .. })));
        assert_eq!(names(&target), ["mine"]);
        assert_eq!(names(home.path()), ["model"]);
    }

    #[cfg(unix)]
    #[test]
    fn symbolic_links_lead_to_the_directory_and_are_kept() {
        let home = tempfile::tempdir().unwrap();
        let (target, link) = (home.path().join("disk/model"), home.path().join("link"));
        fs::create_dir_all(&target).unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let staging = Staging::begin(&link, Existing::Replace).unwrap();
        write(&staging, "new");
        staging.publish().unwrap();
        assert_eq!(names(&target), ["a"]);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        // The link's target is as foreign as it would be under its own name.
        assert!(matches!(Staging::begin(&link, Existing::Replace), Err(OutputDirError::NotOurs { .. })));
        assert!(matches!(Staging::begin(&link, Existing::Refuse), Err(OutputDirError::Exists { .. })));
        let dangling = home.path().join("dangling");
        std::os::unix::fs::symlink(home.path().join("nowhere"), &dangling).unwrap();
        for existing in [Existing::Refuse, Existing::Replace] {
            assert!(Staging::begin(&dangling, existing).is_err());
        }
        assert!(fs::symlink_metadata(&dangling).unwrap().is_symlink());
    }
}
