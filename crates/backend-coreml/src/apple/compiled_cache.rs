//! The on-disk cache of compiled packages.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use sha2::{Digest, Sha256};

/// Path of a package's compiled form in `cache`: the package's name and a hash that identifies its contents. Hashed is
/// the `manifest.json` beside the package, which lists the hash of every file; if there is none, the program and the
/// weight file's size and modification time.
pub(crate) fn cache_path(package: &Path, cache: &Path) -> io::Result<PathBuf> {
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

/// Moves a freshly compiled model to `cached` atomically. If another process has stored it meanwhile, that identical
/// result stays.
pub(crate) fn store(fresh: &Path, cached: &Path) -> io::Result<()> {
    let cache = cached.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(cache)?;
    match fs::rename(fresh, cached) {
        Ok(()) => return Ok(()),
        Err(_) if cached.is_dir() => return fs::remove_dir_all(fresh),
        // Possibly another file system: copy. Any other cause is reported by the copy.
        Err(_) => {}
    }
    let staging = tempfile::tempdir_in(cache)?;
    let copy = staging.path().join("model");
    copy_directory(fresh, &copy)?;
    match fs::rename(&copy, cached) {
        Err(error) if !cached.is_dir() => Err(error),
        _ => fs::remove_dir_all(fresh),
    }
}

fn copy_directory(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy_directory(&entry.path(), &target)?,
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
    fn a_changed_package_has_another_path() {
        let home = tempfile::tempdir().unwrap();
        let cache = home.path().join("cache");
        let package = package(home.path(), b"one");
        let bare = cache_path(&package, &cache).unwrap();
        assert_eq!(cache_path(&package, &cache).unwrap(), bare);
        assert!(bare.starts_with(&cache) && bare.to_string_lossy().ends_with(".mlmodelc"));

        fs::write(package.join("Data/com.apple.CoreML/weights/weight.bin"), "longer").unwrap();
        assert_ne!(cache_path(&package, &cache).unwrap(), bare);

        let manifest = home.path().join("manifest.json");
        fs::write(&manifest, "{\"files\": 1}").unwrap();
        let listed = cache_path(&package, &cache).unwrap();
        assert_ne!(listed, bare);
        fs::write(&manifest, "{\"files\": 2}").unwrap();
        assert_ne!(cache_path(&package, &cache).unwrap(), listed);

        let (prefill, decode) = (home.path().join("prefill.mlpackage"), home.path().join("decode.mlpackage"));
        assert_ne!(cache_path(&prefill, &cache).unwrap(), cache_path(&decode, &cache).unwrap());
    }

    #[test]
    fn a_second_store_leaves_the_first_result() {
        let home = tempfile::tempdir().unwrap();
        let cached = home.path().join("cache/model.mlmodelc");
        for text in ["first", "second"] {
            let fresh = home.path().join("fresh.mlmodelc");
            fs::create_dir_all(fresh.join("weights")).unwrap();
            fs::write(fresh.join("weights/weight.bin"), text).unwrap();
            store(&fresh, &cached).unwrap();
            assert!(!fresh.exists());
            assert_eq!(fs::read_to_string(cached.join("weights/weight.bin")).unwrap(), "first");
        }
        assert_eq!(fs::read_dir(home.path().join("cache")).unwrap().count(), 1);
    }

    #[test]
    fn directories_are_copied_recursively() {
        let home = tempfile::tempdir().unwrap();
        let from = home.path().join("from");
        fs::create_dir_all(from.join("a/b")).unwrap();
        fs::write(from.join("a/b/c"), "deep").unwrap();
        copy_directory(&from, &home.path().join("to")).unwrap();
        assert_eq!(fs::read_to_string(home.path().join("to/a/b/c")).unwrap(), "deep");
    }
}
