//! SHA-256 of files, computed while they are written or afterwards.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::{FileRecord, OutputDirError};

/// Size and alignment of write calls: the size of a huge page. Linux then caches the file in huge pages (where the file
/// system supports large folios), and a process that maps the weights has fewer TLB misses.
const WRITE_BYTES: usize = 2 << 20;

/// A new file that is hashed while it is written.
#[derive(Debug)]
pub struct HashedFile {
    name: String,
    path: PathBuf,
    file: File,
    /// Bytes appended and not yet written, fewer than [`WRITE_BYTES`].
    buffer: Vec<u8>,
    bytes: u64,
    hash: Sha256,
}

impl HashedFile {
    /// Creates the file `name` in `dir`.
    ///
    /// # Errors
    /// It cannot be created.
    pub fn create(dir: &Path, name: &str) -> Result<Self, OutputDirError> {
        let path = dir.join(name);
        let file = File::create(&path).map_err(|error| OutputDirError::io(&path, error))?;
        let buffer = Vec::with_capacity(WRITE_BYTES);
        Ok(Self { name: name.to_owned(), path, file, buffer, bytes: 0, hash: Sha256::new() })
    }

    /// Appends `data`.
    ///
    /// # Errors
    /// It cannot be written; a full disk is [`OutputDirError::Full`].
    pub fn write(&mut self, data: &[u8]) -> Result<(), OutputDirError> {
        self.hash.update(data);
        self.bytes += data.len() as u64;
        let mut left = data;
        while self.buffer.len() + left.len() >= WRITE_BYTES {
            let (now, rest) = left.split_at(WRITE_BYTES - self.buffer.len());
            self.buffer.extend_from_slice(now);
            self.flush_buffer()?;
            left = rest;
        }
        self.buffer.extend_from_slice(left);
        Ok(())
    }

    fn flush_buffer(&mut self) -> Result<(), OutputDirError> {
        self.file.write_all(&self.buffer).map_err(|error| OutputDirError::io(&self.path, error))?;
        self.buffer.clear();
        Ok(())
    }

    /// Writes the rest of the buffer and returns the file's record for the manifest.
    ///
    /// # Errors
    /// The rest cannot be written.
    pub fn finish(mut self) -> Result<FileRecord, OutputDirError> {
        self.flush_buffer()?;
        Ok(FileRecord { path: self.name, bytes: self.bytes, sha256: hex(&self.hash.finalize()) })
    }
}

/// The record, under the name `name`, of the file at `path`.
///
/// # Errors
/// It cannot be read.
pub fn hash_file(path: &Path, name: &str) -> Result<FileRecord, OutputDirError> {
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
    let (bytes, sha256) = run().map_err(|error| OutputDirError::io(path, error))?;
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
    fn chunks_of_any_size_make_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = HashedFile::create(dir.path(), "parts").unwrap();
        let mut expected = Vec::new();
        for (number, length) in
            [7, WRITE_BYTES - 7, 0, WRITE_BYTES + 1, 3 * WRITE_BYTES, WRITE_BYTES - 2, 1, 5]
                .into_iter()
                .enumerate()
        {
            let chunk: Vec<u8> = (0..length).map(|i| (i % 251 + number) as u8).collect();
            file.write(&chunk).unwrap();
            expected.extend(chunk);
        }
        let record = file.finish().unwrap();
        assert_eq!(std::fs::read(dir.path().join("parts")).unwrap(), expected);
        assert_eq!(record, hash_file(&dir.path().join("parts"), "parts").unwrap());
    }
}
