//! Hashing files, while they are written or afterwards.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::{BundleError, FileRecord};

/// What is written at a time, from multiples of it on: Linux then keeps the file in memory in pages as large, and who
/// maps it and reads all of it for every token is a quarter to a third faster with one thread (Zen 4, in a virtual
/// machine).
const PART: usize = 2 << 20;

/// A new file whose hash is ready when its last byte is written.
#[derive(Debug)]
pub struct HashedFile {
    name: String,
    path: PathBuf,
    file: File,
    /// The end of what was appended, less than [`PART`].
    held: Vec<u8>,
    bytes: u64,
    hash: Sha256,
}

impl HashedFile {
    /// Creates the file `name` in `dir`.
    ///
    /// # Errors
    /// It cannot be created.
    pub fn create(dir: &Path, name: &str) -> Result<Self, BundleError> {
        let path = dir.join(name);
        let file = File::create(&path).map_err(|error| BundleError::io(&path, error))?;
        let held = Vec::with_capacity(PART);
        Ok(Self { name: name.to_owned(), path, file, held, bytes: 0, hash: Sha256::new() })
    }

    /// Appends `data`.
    ///
    /// # Errors
    /// It cannot be written, be it that the disk is full.
    pub fn write(&mut self, data: &[u8]) -> Result<(), BundleError> {
        self.hash.update(data);
        self.bytes += data.len() as u64;
        let mut left = data;
        while self.held.len() + left.len() >= PART {
            let (now, rest) = left.split_at(PART - self.held.len());
            self.held.extend_from_slice(now);
            self.write_held()?;
            left = rest;
        }
        self.held.extend_from_slice(left);
        Ok(())
    }

    fn write_held(&mut self) -> Result<(), BundleError> {
        self.file.write_all(&self.held).map_err(|error| BundleError::io(&self.path, error))?;
        self.held.clear();
        Ok(())
    }

    /// What was written, for the manifest.
    ///
    /// # Errors
    /// The system reports a late failure to write.
    pub fn finish(mut self) -> Result<FileRecord, BundleError> {
        self.write_held()?;
        Ok(FileRecord { path: self.name, bytes: self.bytes, sha256: hex(&self.hash.finalize()) })
    }
}

/// Length and SHA-256 of the file at `path`, recorded under `name`.
///
/// # Errors
/// It cannot be read.
pub fn hash_file(path: &Path, name: &str) -> Result<FileRecord, BundleError> {
    let run = || -> io::Result<(u64, String)> {
        let mut file = File::open(path)?;
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        let mut bytes = 0;
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok((bytes, hex(&hash.finalize()))),
                length => {
                    hash.update(&buffer[..length]);
                    bytes += length as u64;
                }
            }
        }
    };
    let (bytes, sha256) = run().map_err(|error| BundleError::io(path, error))?;
    Ok(FileRecord { path: name.to_owned(), bytes, sha256 })
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashing_while_writing_and_afterwards_agree() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = HashedFile::create(dir.path(), "abc").unwrap();
        file.write(b"a").unwrap();
        file.write(b"bc").unwrap();
        let record = file.finish().unwrap();
        assert_eq!(record, hash_file(&dir.path().join("abc"), "abc").unwrap());
        assert_eq!(record.sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(record.bytes, 3);
    }

    #[test]
    fn pieces_of_any_size_make_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = HashedFile::create(dir.path(), "parts").unwrap();
        let mut expected = Vec::new();
        for (number, length) in [7, PART - 7, 0, PART + 1, 3 * PART, PART - 2, 1, 5].into_iter().enumerate() {
            let piece: Vec<u8> = (0..length).map(|i| (i % 251 + number) as u8).collect();
            file.write(&piece).unwrap();
            expected.extend(piece);
        }
        let record = file.finish().unwrap();
        assert_eq!(std::fs::read(dir.path().join("parts")).unwrap(), expected);
        assert_eq!(record, hash_file(&dir.path().join("parts"), "parts").unwrap());
    }
}
