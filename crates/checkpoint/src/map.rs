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
    let map = unsafe { Mmap::map(&file)? };
    // What is not in memory yet is then read in pages of two megabytes where the file system can: weights are read
    // throughout for every token, and small pages cost up to a quarter of that time. It may not be able to.
    #[cfg(target_os = "linux")]
    let _ = map.advise(memmap2::Advice::HugePage);
    Ok(map)
}

/// Tells the system that `part` of `map` is not needed for now. The process then no longer counts its pages as its own;
/// should it be read after all, it comes from the file again. Pages that `part` only touches go too.
pub fn release(map: &Mmap, part: &[u8]) {
    let start = (part.as_ptr().addr()).wrapping_sub(map.as_ptr().addr());
    let Some(end) = start.checked_add(part.len()).filter(|&end| end <= map.len()) else { return };
    #[cfg(unix)]
    {
        // The largest page of any system that this runs on.
        const PAGE: usize = 64 << 10;
        let (start, end) = (start / PAGE * PAGE, end.next_multiple_of(PAGE).min(map.len()));
        if start < end {
            // SAFETY: the map is a file's, shared and never written: dropping its pages changes nothing that can be
            // read from it. That the system may refuse is its right.
            let _ =
                unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start) };
        }
    }
}
