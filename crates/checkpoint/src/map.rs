//! Memory maps: the only unsafe code of this crate.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::path::Path;

use memmap2::Mmap;

/// Maps a whole file read-only.
///
/// # Errors
/// The file cannot be opened or mapped.
pub fn map_file(path: &Path) -> io::Result<Mmap> {
    let file = File::open(path)?;
    // SAFETY: the map is private to this process and never written through. Another process could shorten or rewrite
    // the file under it; model files are only ever replaced by renaming, which leaves the mapped inode alone, and
    // truncating one in place raises a bus error here instead of returning garbage.
    let map = unsafe { Mmap::map(&file)? };
    // Huge pages, where the file system supports them: every token reads all weights, and the TLB misses of 4 KiB pages
    // are a considerable part of that time. Not an error where it does not.
    #[cfg(target_os = "linux")]
    let _ = map.advise(memmap2::Advice::HugePage);
    Ok(map)
}

/// Advises the system that `part` of `map` is not needed for now: its pages leave the process's resident memory and are
/// read from the file again on the next access. `part` is rounded outwards to whole pages.
pub fn release(map: &Mmap, part: &[u8]) {
    let start = (part.as_ptr().addr()).wrapping_sub(map.as_ptr().addr());
    let Some(end) = start.checked_add(part.len()).filter(|&end| end <= map.len()) else { return };
    #[cfg(unix)]
    {
        // The largest page size of any supported system.
        const PAGE: usize = 64 << 10;
        let (start, end) = (start / PAGE * PAGE, end.next_multiple_of(PAGE).min(map.len()));
        if start < end {
            // SAFETY: the map is backed by a file and never written, so dropping its pages does not change the bytes
            // that a later access reads. The advice may be refused, which changes nothing.
            let _ =
                unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start) };
        }
    }
}
