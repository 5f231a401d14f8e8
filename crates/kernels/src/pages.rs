//! Memory for what a sequence keeps and every token reads: in large pages where the system has them, since small ones
//! cost as much time as their contents where a token reads tens of megabytes.
#![allow(unsafe_code)]

use std::alloc::{Layout, handle_alloc_error};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use bytemuck::Pod;
use memmap2::{MmapMut, MmapRaw};

/// Bytes of a large page.
const LARGE: usize = 2 << 20;

/// The least that is asked of the system at a time.
const SMALLEST: usize = 64 << 10;

/// Hands out memory. It asks for as much as it holds at a time, up to a large page: little for a small model.
#[derive(Debug, Default)]
pub struct Pages {
    /// The last region, and how much of it has been handed out.
    last: Option<(Arc<Region>, usize)>,
    held: usize,
}

#[derive(Debug)]
struct Region {
    map: MmapRaw,
    /// Where it begins in the map.
    start: usize,
    size: usize,
}

impl Region {
    fn new(size: usize) -> Self {
        // Room to begin where a large page does; what is never touched costs nothing.
        let room = if size < LARGE { 0 } else { LARGE };
        let Ok(map) = MmapMut::map_anon(size + room) else {
            handle_alloc_error(Layout::array::<u8>(size + room).expect("bytes of a region"))
        };
        #[cfg(target_os = "linux")]
        if size >= LARGE {
            // A system without large pages does as well as it can.
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        let start = if room == 0 { 0 } else { map.as_ptr().addr().wrapping_neg() % LARGE };
        Self { map: map.into(), start, size }
    }
}

impl Pages {
    /// `length` zeros that begin at a cache line.
    pub fn take<T: Pod>(&mut self, length: usize) -> Part<T> {
        let bytes = (length * size_of::<T>()).next_multiple_of(64);
        let (region, from) = match self.last.take().filter(|(region, used)| used + bytes <= region.size) {
            Some(last) => last,
            None => {
                let size = bytes.max(self.held.clamp(SMALLEST, LARGE));
                let size = if size < LARGE { size } else { size.next_multiple_of(LARGE) };
                self.held += size;
                (Arc::new(Region::new(size)), 0)
            }
        };
        self.last = Some((Arc::clone(&region), from + bytes));
        Part { region, from, length, of: PhantomData }
    }
}

/// Some of a [`Pages`]' memory. A region goes back to the system with the last of its parts.
#[derive(Debug)]
pub struct Part<T> {
    region: Arc<Region>,
    /// Bytes before it in the region.
    from: usize,
    length: usize,
    of: PhantomData<T>,
}

impl<T: Pod> Part<T> {
    fn pointer(&self) -> *mut T {
        self.region.map.as_mut_ptr().wrapping_add(self.region.start + self.from).cast()
    }
}

impl<T: Pod> Deref for Part<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `Pages::take` hands out each byte of a region once, from a cache line on (maps begin at pages), within
        // the map, which lives as long as this part. Mapped memory begins as zeros, and any bytes are a `Pod`.
        unsafe { std::slice::from_raw_parts(self.pointer(), self.length) }
    }
}

impl<T: Pod> DerefMut for Part<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and nothing else refers to these bytes.
        unsafe { std::slice::from_raw_parts_mut(self.pointer(), self.length) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_zeros_apart_from_each_other_at_cache_lines() {
        let mut pages = Pages::default();
        let mut parts: Vec<Part<u32>> = Vec::new();
        for length in [1, 0, 17, 16, 40_000, 3, 600_000, 1_000_000, 300_000, 5] {
            let mut part = pages.take::<u32>(length);
            assert_eq!((part.len(), part.as_ptr().addr() % 64), (length, 0));
            assert!(part.iter().all(|&number| number == 0), "{length} zeros");
            part.fill(parts.len() as u32);
            parts.push(part);
        }
        drop(pages);
        for (index, part) in parts.iter().enumerate() {
            assert!(part.iter().all(|&number| number == index as u32), "part {index} as it was written");
        }
    }

    #[test]
    fn regions_grow_to_large_pages_and_go_with_their_parts() {
        let mut pages = Pages::default();
        let small = pages.take::<u8>(100);
        assert!(pages.held <= SMALLEST, "{} bytes for one small part", pages.held);
        let parts: Vec<Part<u8>> = (0..100).map(|_| pages.take(LARGE / 16)).collect();
        assert!(pages.held <= (100 / 16 + 2) * LARGE, "{} bytes for 100 parts", pages.held);
        let last = &parts[99].region;
        assert_eq!((last.size, last.map.as_ptr().addr().wrapping_add(last.start) % LARGE), (LARGE, 0));
        let region = Arc::downgrade(&small.region);
        drop(small);
        assert!(region.upgrade().is_none(), "a region without parts");
    }
}
