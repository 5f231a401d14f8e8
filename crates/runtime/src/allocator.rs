//! Freed memory, given back to the system.

/// Asks the allocator to give back what is free. glibc keeps freed pieces of a heap that lie between pieces in use:
/// after a tokenizer was read or dropped, that is more than a hundred megabytes of a real model, and snapshots that
/// threads take and drop in turn leave such pieces in the heap of each. Other allocators give back by themselves.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "there is no safe way to ask the allocator")]
pub(crate) fn give_back_freed() {
    unsafe extern "C" {
        fn malloc_trim(pad: usize) -> i32;
    }
    // SAFETY: glibc's function, declared as in its `malloc.h`; it may be called at any time from any thread, and only
    // touches memory that nobody owns.
    unsafe {
        malloc_trim(0);
    }
}

/// Asks the allocator to give back what is free; here it does so by itself.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn give_back_freed() {}
