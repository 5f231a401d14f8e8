//! Release of freed memory to the operating system.

/// Releases the allocator's free memory. glibc keeps free chunks of a heap that lie between chunks in use: more than a
/// hundred megabytes after the tokenizer of a real model was read or dropped, and some in the heap of each thread that
/// takes and drops snapshots. Other allocators release free memory without being asked.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "malloc_trim has no safe wrapper")]
pub(crate) fn release_freed_memory() {
    unsafe extern "C" {
        fn malloc_trim(pad: usize) -> i32;
    }
    // SAFETY: glibc's function, declared as in its `malloc.h`; it may be called at any time from any thread, and only
    // touches free memory.
    unsafe {
        malloc_trim(0);
    }
}

/// Does nothing: this allocator releases free memory without being asked.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn release_freed_memory() {}
