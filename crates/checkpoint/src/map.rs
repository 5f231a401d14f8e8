//! Memory maps: the only unsafe code of this crate.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::path::Path;

use memmap2::Mmap;

/// Maps a whole file read-only.
///
/// # Errors
/// Whatever the file system says.
pub fn map_file(path: &Path) -> io::Result<Mmap> {
    let file = File::open(path)?;
    // SAFETY: the map is private to this process and never written through. Another process could shorten or rewrite
    // the file under it; model files are only ever replaced by renaming, which leaves the mapped inode alone, and
    // whoever truncates one in place gets a bus error here instead of silent garbage.
    unsafe { Mmap::map(&file) }
}
