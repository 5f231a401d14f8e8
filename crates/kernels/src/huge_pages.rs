//! Memory for caches and states that every token reads, in huge pages where the system has them: at tens of megabytes per
//! token, TLB misses of 4 KiB pages cost as much time as the reads.
#![allow(unsafe_code)]

use std::alloc::{Layout, handle_alloc_error};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use bytemuck::Pod;
use memmap2::{MmapMut, MmapRaw};

/// Size of a huge page.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Smallest mapping.
const MIN_MAPPING_BYTES: usize = 64 << 10;

/// An arena of zeroed, cache-line aligned buffers. Each mapping is as large as all before it, up to a huge page, so that a
/// small model uses little memory.
#[derive(Debug, Default)]
pub struct HugePageArena {
    /// The newest mapping and the number of its bytes in use.
    newest: Option<(Arc<Mapping>, usize)>,
    mapped_bytes: usize,
}

#[derive(Debug)]
struct Mapping {
    map: MmapRaw,
    /// Offset of the first huge page in the map.
    start: usize,
    size: usize,
}

impl Mapping {
    fn new(size: usize) -> Self {
        // Slack to align to a huge page; untouched pages cost nothing.
        let slack = if size < HUGE_PAGE_BYTES { 0 } else { HUGE_PAGE_BYTES };
        let Ok(map) = MmapMut::map_anon(size + slack) else {
            handle_alloc_error(Layout::array::<u8>(size + slack).expect("size of a mapping"))
        };
        #[cfg(target_os = "linux")]
        if size >= HUGE_PAGE_BYTES {
            // Without huge pages the memory is only slower.
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        let start = if slack == 0 { 0 } else { map.as_ptr().addr().wrapping_neg() % HUGE_PAGE_BYTES };
        Self { map: map.into(), start, size }
    }
}

impl HugePageArena {
    /// Allocates `length` zeros, aligned to a cache line.
    pub fn alloc_zeroed<T: Pod>(&mut self, length: usize) -> ArenaSlice<T> {
        let bytes = (length * size_of::<T>()).next_multiple_of(64);
        let (mapping, offset) =
            match self.newest.take().filter(|(mapping, used)| used + bytes <= mapping.size) {
                Some(newest) => newest,
                None => {
                    let size = bytes.max(self.mapped_bytes.clamp(MIN_MAPPING_BYTES, HUGE_PAGE_BYTES));
                    let size =
                        if size < HUGE_PAGE_BYTES { size } else { size.next_multiple_of(HUGE_PAGE_BYTES) };
                    self.mapped_bytes += size;
                    (Arc::new(Mapping::new(size)), 0)
                }
            };
        self.newest = Some((Arc::clone(&mapping), offset + bytes));
        ArenaSlice { mapping, offset, length, elements: PhantomData }
    }
}

/// A buffer of a [`HugePageArena`]. A mapping is unmapped with the last of its slices.
#[derive(Debug)]
pub struct ArenaSlice<T> {
    mapping: Arc<Mapping>,
    /// Offset in the mapping, in bytes.
    offset: usize,
    length: usize,
    elements: PhantomData<T>,
}

impl<T: Pod> ArenaSlice<T> {
    fn pointer(&self) -> *mut T {
        self.mapping.map.as_mut_ptr().wrapping_add(self.mapping.start + self.offset).cast()
    }
}

impl<T: Pod> Deref for ArenaSlice<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `HugePageArena::alloc_zeroed` hands out each byte of a mapping once, from a cache line on (maps begin at
        // pages), within the map, which lives as long as this slice. Mapped memory is zeroed, and any bytes are a `Pod`.
        unsafe { std::slice::from_raw_parts(self.pointer(), self.length) }
    }
}

impl<T: Pod> DerefMut for ArenaSlice<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and nothing else refers to these bytes.
        unsafe { std::slice::from_raw_parts_mut(self.pointer(), self.length) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_zeroed_disjoint_and_aligned() {
        let mut arena = HugePageArena::default();
        let mut slices: Vec<ArenaSlice<u32>> = Vec::new();
        for length in [1, 0, 17, 16, 40_000, 3, 600_000, 1_000_000, 300_000, 5] {
            let mut slice = arena.alloc_zeroed::<u32>(length);
            assert_eq!((slice.len(), slice.as_ptr().addr() % 64), (length, 0));
            assert!(slice.iter().all(|&number| number == 0), "{length} zeros");
            slice.fill(slices.len() as u32);
            slices.push(slice);
        }
        drop(arena);
        for (index, slice) in slices.iter().enumerate() {
            assert!(slice.iter().all(|&number| number == index as u32), "slice {index} as it was written");
        }
    }

    #[test]
    fn mappings_grow_to_huge_pages_and_are_unmapped_with_their_slices() {
        let mut arena = HugePageArena::default();
        let small = arena.alloc_zeroed::<u8>(100);
        assert!(arena.mapped_bytes <= MIN_MAPPING_BYTES, "{} bytes for one small slice", arena.mapped_bytes);
        let slices: Vec<ArenaSlice<u8>> =
            (0..100).map(|_| arena.alloc_zeroed(HUGE_PAGE_BYTES / 16)).collect();
        assert!(
            arena.mapped_bytes <= (100 / 16 + 2) * HUGE_PAGE_BYTES,
            "{} bytes for 100 slices",
            arena.mapped_bytes
        );
        let last = &slices[99].mapping;
        assert_eq!(
            (last.size, last.map.as_ptr().addr().wrapping_add(last.start) % HUGE_PAGE_BYTES),
            (HUGE_PAGE_BYTES, 0)
        );
        let mapping = Arc::downgrade(&small.mapping);
        drop(small);
        assert!(mapping.upgrade().is_none(), "a mapping without slices");
    }
}
