//! A directory that is being written beside its target.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;

use crate::exchange::exchange;
use crate::hashed::hash_file;
use crate::{BundleError, FileRecord, MANIFEST, Manifest};

/// What to do when the target exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Refuse before anything is written.
    Refuse,
    /// Leave it alone until the new one is complete, then put that in its place.
    Replace,
}

/// A directory that is being written beside its target, and disappears again unless it is published.
#[derive(Debug)]
pub struct Staging {
    target: PathBuf,
    path: PathBuf,
    existing: Existing,
    /// Held locked, so that others can tell this directory from one left behind by a killed process.
    _lock: Option<File>,
}

/// Ends the name of a directory that is being written.
const PARTIAL: &str = ".partial";
/// Ends the name of an old target for the moment in which it has been moved away and the new one not yet in.
const OLD: &str = ".old";

impl Staging {
    /// Starts a directory that is to become `target`. Missing parents of the target are created. What killed
    /// processes left beside the target is cleared away.
    ///
    /// # Errors
    /// The target exists and is not to be replaced, or must not be; or its parent cannot be written.
    pub fn begin(target: &Path, existing: Existing) -> Result<Self, BundleError> {
        let target = resolve(target)?;
        let (parent, name) = split(&target)?;
        fs::create_dir_all(&parent).map_err(|error| BundleError::io(&parent, error))?;
        clear_leftovers(&target, &parent, &name);
        if fs::symlink_metadata(&target).is_ok() {
            if existing == Existing::Refuse {
                return Err(BundleError::Exists { path: target });
            }
            refuse_dangerous(&target)?;
        }
        let path = parent.join(hidden(&name, &unique(), PARTIAL));
        fs::create_dir(&path).map_err(|error| BundleError::io(&path, error))?;
        let lock = File::open(&path).ok().filter(|dir| dir.try_lock().is_ok());
        Ok(Self { target, path, existing, _lock: lock })
    }

    /// Refuses to go on when `source` lies in the directory that is to be replaced.
    ///
    /// # Errors
    /// [`BundleError::Protected`].
    pub fn protect(&self, source: &Path) -> Result<(), BundleError> {
        match (source.canonicalize(), self.target.canonicalize()) {
            (Ok(source), Ok(target)) if source.starts_with(&target) => Err(BundleError::Protected {
                path: self.target.clone(),
                reason: format!("it holds the source, {}", source.display()),
            }),
            _ => Ok(()),
        }
    }

    /// Where to write.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where it will be.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Writes the manifest: `manifest` with every file that is there now, hashed unless it is among `known`.
    ///
    /// # Errors
    /// A file cannot be read, or the manifest not written.
    pub fn seal(&self, mut manifest: Manifest, known: Vec<FileRecord>) -> Result<Manifest, BundleError> {
        let names = list(&self.path)?;
        manifest.files = names
            .into_par_iter()
            .filter(|name| name != MANIFEST)
            .map(|name| match known.iter().find(|record| record.path == name) {
                Some(record) => Ok(record.clone()),
                None => hash_file(&self.path.join(&name), &name),
            })
            .collect::<Result<_, _>>()?;
        let path = self.path.join(MANIFEST);
        fs::write(&path, manifest.to_text()).map_err(|error| BundleError::io(&path, error))?;
        Ok(manifest)
    }

    /// Makes the directory durable and puts it in the place of its target. Killed at any moment before the last step
    /// the process leaves the target as it was.
    ///
    /// # Errors
    /// The target has come into being meanwhile, or the system refuses.
    pub fn publish(self) -> Result<(), BundleError> {
        sync(&self.path)?;
        let io = |error| BundleError::io(&self.target, error);
        if fs::symlink_metadata(&self.target).is_err() {
            fs::rename(&self.path, &self.target).map_err(io)?;
        } else if self.existing == Existing::Refuse {
            return Err(BundleError::Exists { path: self.target.clone() });
        } else if exchange(&self.path, &self.target).map_err(io)? {
            // What lies at `self.path` now is the old state, which dropping `self` removes.
        } else {
            let (parent, name) = split(&self.target)?;
            // A process killed between these two renames leaves the old state under a name that the next run
            // recognises and moves back.
            let aside = parent.join(hidden(&name, &unique(), OLD));
            fs::rename(&self.target, &aside).map_err(io)?;
            if let Err(error) = fs::rename(&self.path, &self.target) {
                fs::rename(&aside, &self.target).map_err(io)?;
                return Err(io(error));
            }
            // Failing to remove the old state does not make the new one any less there.
            let _ = remove(&aside);
        }
        sync_entry(self.target.parent().unwrap_or(Path::new(".")))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Nothing can be done about a failure here; the next run tries again.
        let _ = remove(&self.path);
    }
}

fn remove(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

/// The target without links, as far as it exists.
fn resolve(target: &Path) -> Result<PathBuf, BundleError> {
    if let Ok(path) = target.canonicalize() {
        return Ok(path);
    }
    std::path::absolute(target).map_err(|error| BundleError::io(target, error))
}

fn split(target: &Path) -> Result<(PathBuf, OsString), BundleError> {
    match (target.parent(), target.file_name()) {
        (Some(parent), Some(name)) => Ok((parent.to_owned(), name.to_owned())),
        _ => Err(BundleError::Protected {
            path: target.to_owned(),
            reason: "it has no parent directory".to_owned(),
        }),
    }
}

fn refuse_dangerous(target: &Path) -> Result<(), BundleError> {
    let reason = if !target.is_dir() {
        "it is not a directory"
    } else if std::env::current_dir().is_ok_and(|here| here.starts_with(target)) {
        "it holds the current directory"
    } else {
        return Ok(());
    };
    Err(BundleError::Protected { path: target.to_owned(), reason: reason.to_owned() })
}

fn hidden(name: &OsString, unique: &str, ending: &str) -> OsString {
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{unique}{ending}"));
    hidden
}

/// Different for every directory that this machine's processes start.
fn unique() -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    format!("{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed))
}

/// Removes what killed processes left beside the target, and moves an old target back that one of them had moved away.
/// Failures are left for the next run.
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
        if is_ours(OLD) && fs::symlink_metadata(target).is_err() {
            let _ = fs::rename(&path, target);
        } else if is_ours(OLD)
            || (is_ours(PARTIAL) && File::open(&path).is_ok_and(|dir| dir.try_lock().is_ok()))
        {
            let _ = remove(&path);
        }
    }
}

/// Paths of all files below `root`, relative to it, with `/` between parts, ascending.
pub(crate) fn list(root: &Path) -> Result<Vec<String>, BundleError> {
    let mut found = Vec::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(dir) = waiting.pop() {
        let io = |error| BundleError::io(&dir, error);
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

/// Sends everything below `root` to the disk, so that a power cut after the rename cannot leave an empty file under
/// the published name.
fn sync(root: &Path) -> Result<(), BundleError> {
    for name in list(root)? {
        let path = root.join(&name);
        File::open(&path).and_then(|file| file.sync_all()).map_err(|error| BundleError::io(&path, error))?;
    }
    sync_entry(root)
}

/// Directories can be synced only where they can be opened.
fn sync_entry(dir: &Path) -> Result<(), BundleError> {
    match File::open(dir) {
        Ok(file) if cfg!(unix) => file.sync_all().map_err(|error| BundleError::io(dir, error)),
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
        assert!(matches!(Staging::begin(&target, Existing::Refuse), Err(BundleError::Exists { .. })));
        let staging = Staging::begin(&target, Existing::Replace).unwrap();
        write(&staging, "new");
        assert_eq!(names(&target), ["old"]);
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
        assert!(matches!(staging.publish(), Err(BundleError::Exists { .. })));
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
        assert!(matches!(Staging::begin(&target, Existing::Refuse), Err(BundleError::Exists { .. })));
        assert_eq!(names(&target), ["old"]);
    }

    #[test]
    fn what_must_not_be_replaced_is_not() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(matches!(Staging::begin(&file, Existing::Replace), Err(BundleError::Protected { .. })));
        let here = std::env::current_dir().unwrap();
        assert!(matches!(Staging::begin(&here, Existing::Replace), Err(BundleError::Protected { .. })));
        let target = home.path().join("model");
        fs::create_dir_all(target.join("source")).unwrap();
        let staging = Staging::begin(&target, Existing::Replace).unwrap();
        assert!(matches!(staging.protect(&target.join("source")), Err(BundleError::Protected { .. })));
        assert!(staging.protect(home.path()).is_ok());
    }
}
