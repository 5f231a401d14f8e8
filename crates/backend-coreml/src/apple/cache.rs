//! Where compiled packages are kept.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use sha2::{Digest, Sha256};

/// The place of a package's compiled form: its name and a hash of what identifies its contents. That is the manifest of
/// the directory that it was written in, which has the hash of every file; without one, the program itself, and size
/// and time of the weights.
pub(crate) fn place(package: &Path, cache: &Path) -> io::Result<PathBuf> {
    let mut hasher = Sha256::new();
    match fs::read(package.with_file_name("manifest.json")) {
        Ok(manifest) => hasher.update(manifest),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let data = package.join("Data/com.apple.CoreML");
            hasher.update(fs::read(data.join("model.mlmodel"))?);
            if let Ok(weights) = fs::metadata(data.join("weights/weight.bin")) {
                hasher.update(weights.len().to_le_bytes());
                let age = weights.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
                hasher.update(age.as_nanos().to_le_bytes());
            }
        }
        Err(error) => return Err(error),
    }
    let hash: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    let name = package.file_stem().unwrap_or_default().to_string_lossy();
    Ok(cache.join(format!("{name}-{hash}.mlmodelc")))
}

/// Moves a freshly compiled model to its place, whole or not at all. If another process was first, its result stays:
/// it is the same.
pub(crate) fn keep(fresh: &Path, place: &Path) -> io::Result<()> {
    let cache = place.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(cache)?;
    match fs::rename(fresh, place) {
        Ok(()) => return Ok(()),
        Err(_) if place.is_dir() => return fs::remove_dir_all(fresh),
        // Another file system, or what the error below will say.
        Err(_) => {}
    }
    let beside = tempfile::tempdir_in(cache)?;
    let copy = beside.path().join("model");
    copy_tree(fresh, &copy)?;
    match fs::rename(&copy, place) {
        Err(error) if !place.is_dir() => Err(error),
        _ => fs::remove_dir_all(fresh),
    }
}

fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy_tree(&entry.path(), &target)?,
            false => drop(fs::copy(entry.path(), target)?),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(dir: &Path, weights: &[u8]) -> PathBuf {
        let package = dir.join("model.mlpackage");
        let data = package.join("Data/com.apple.CoreML");
        fs::create_dir_all(data.join("weights")).unwrap();
        fs::write(data.join("model.mlmodel"), "program").unwrap();
        fs::write(data.join("weights/weight.bin"), weights).unwrap();
        package
    }

    #[test]
    fn a_changed_package_has_another_place() {
        let home = tempfile::tempdir().unwrap();
        let cache = home.path().join("cache");
        let package = package(home.path(), b"one");
        let bare = place(&package, &cache).unwrap();
        assert_eq!(place(&package, &cache).unwrap(), bare);
        assert!(bare.starts_with(&cache) && bare.to_string_lossy().ends_with(".mlmodelc"));

        fs::write(package.join("Data/com.apple.CoreML/weights/weight.bin"), "longer").unwrap();
        assert_ne!(place(&package, &cache).unwrap(), bare);

        let manifest = home.path().join("manifest.json");
        fs::write(&manifest, "{\"files\": 1}").unwrap();
        let listed = place(&package, &cache).unwrap();
        assert_ne!(listed, bare);
        fs::write(&manifest, "{\"files\": 2}").unwrap();
        assert_ne!(place(&package, &cache).unwrap(), listed);

        let (prefill, decode) = (home.path().join("prefill.mlpackage"), home.path().join("decode.mlpackage"));
        assert_ne!(place(&prefill, &cache).unwrap(), place(&decode, &cache).unwrap());
    }

    #[test]
    fn whoever_comes_second_leaves_the_first_one_s() {
        let home = tempfile::tempdir().unwrap();
        let place = home.path().join("cache/model.mlmodelc");
        for text in ["first", "second"] {
            let fresh = home.path().join("fresh.mlmodelc");
            fs::create_dir_all(fresh.join("weights")).unwrap();
            fs::write(fresh.join("weights/weight.bin"), text).unwrap();
            keep(&fresh, &place).unwrap();
            assert!(!fresh.exists());
            assert_eq!(fs::read_to_string(place.join("weights/weight.bin")).unwrap(), "first");
        }
        assert_eq!(fs::read_dir(home.path().join("cache")).unwrap().count(), 1);
    }

    #[test]
    fn trees_are_copied_whole() {
        let home = tempfile::tempdir().unwrap();
        let from = home.path().join("from");
        fs::create_dir_all(from.join("a/b")).unwrap();
        fs::write(from.join("a/b/c"), "deep").unwrap();
        copy_tree(&from, &home.path().join("to")).unwrap();
        assert_eq!(fs::read_to_string(home.path().join("to/a/b/c")).unwrap(), "deep");
    }
}
