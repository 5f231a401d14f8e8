//! A thread pool for short parallel regions: a decode step of a 0.8B model has a hundred of them, a few microseconds apart.
//!
//! rayon, which the workspace uses elsewhere, costs 1.7 (`scope`) to 2.2 times (`par_iter`) as much per region: measured by
//! `benches/thread_pool.rs` on a shared Zen 4 on 2026-11-28, see `docs/performance/kernels.md`.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Time that an idle worker polls for the next region before it parks: about as long as waking it up takes, and longer than
/// the gaps between the regions of a decode step.
const SPIN_BEFORE_PARK: Duration = Duration::from_micros(30);

/// Worker threads for parallel regions; the thread that calls [`Pool::for_each`] takes part.
///
/// A region is open while its caller works on it. Workers enter open regions and claim items one by one; the caller closes the
/// region when no item is left and waits only for workers that are inside. So a preempted worker delays a region only if it
/// has claimed an item, and the load is balanced between cores of unequal speed.
///
/// Several threads may share a pool. A caller that finds it busy runs its region alone.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    /// Region number << 32 | [`OPEN`] | number of workers inside.
    state: AtomicU64,
    /// Valid while the region is open or a worker is inside.
    job: UnsafeCell<Option<Job>>,
    next_item: AtomicUsize,
    /// True while a caller owns the pool.
    busy: AtomicBool,
    stop: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// Number of parked workers.
    parked: AtomicUsize,
    park_lock: Mutex<()>,
    unpark: Condvar,
}

const OPEN: u64 = 1 << 31;
const REGION: u64 = 1 << 32;
const WORKERS_INSIDE: u64 = OPEN - 1;

#[derive(Clone, Copy)]
struct Job {
    work: *const (dyn Fn(usize) + Sync),
    items: usize,
}

// SAFETY: `job` is written only by the thread that set `busy`, while the region is closed and no worker is inside, and read
// only by workers that have entered an open region; `state` orders the two. The work itself is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as above; no field belongs to one thread.
unsafe impl Send for Shared {}

impl Pool {
    /// A pool of `threads` threads, the caller included. For 0 or 1 no thread is started.
    pub fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            next_item: AtomicUsize::new(0),
            busy: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            panic: Mutex::new(None),
            parked: AtomicUsize::new(0),
            park_lock: Mutex::new(()),
            unpark: Condvar::new(),
        });
        let workers = (1..threads)
            .map_while(|index| {
                let shared = Arc::clone(&shared);
                // A thread that cannot be started only costs speed.
                std::thread::Builder::new()
                    .name(format!("q35-{index}"))
                    .spawn(move || shared.worker_loop())
                    .ok()
            })
            .collect();
        Self { shared, workers }
    }

    /// Number of threads, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `work` once for each item, on any thread, in no particular order.
    ///
    /// # Panics
    /// If `work` panics, after all threads have left the region.
    pub fn for_each<T: Send>(&self, items: &mut [T], work: impl Fn(&mut T) + Sync) {
        let base = Items(items.as_mut_ptr());
        let one = |index: usize| {
            let base = &base;
            // SAFETY: `index` is below the length, and every index is claimed once per region, so this is the only
            // reference to the item; `items` stays borrowed until the region has ended.
            work(unsafe { &mut *base.0.add(index) });
        };
        if items.len() <= 1 || self.workers.is_empty() || self.shared.busy.swap(true, Ordering::Acquire) {
            (0..items.len()).for_each(one);
        } else {
            self.shared.run_region(&one, items.len());
        }
    }
}

struct Items<T>(*mut T);
// SAFETY: threads only create references to distinct items from it, and items are `Send`.
unsafe impl<T: Send> Sync for Items<T> {}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).finish()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.unpark_all();
        for worker in self.workers.drain(..) {
            // A worker does not panic: panics of the work are caught and resumed in the caller.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// Runs a region; the caller has set `busy`.
    fn run_region(&self, work: &(dyn Fn(usize) + Sync), items: usize) {
        // SAFETY: only the lifetime is erased; the region ends (see `CloseOnDrop`) before this borrow does.
        let work = unsafe {
            std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const (dyn Fn(usize) + Sync + 'static)>(
                work,
            )
        };
        // SAFETY: the pool is busy, the last region is closed and empty: no worker reads the job now.
        unsafe { *self.job.get() = Some(Job { work, items }) };
        self.next_item.store(0, Ordering::Relaxed);
        let region = self.state.load(Ordering::Relaxed) & !(REGION - 1);
        self.state.store(region.wrapping_add(REGION) | OPEN, Ordering::SeqCst);
        if self.parked.load(Ordering::SeqCst) > 0 {
            self.unpark_all();
        }
        let guard = CloseOnDrop(self);
        self.run_items(Job { work, items });
        drop(guard);
    }

    fn run_items(&self, job: Job) {
        // SAFETY: the calling thread is inside the region, which keeps the work borrowed.
        let work = unsafe { &*job.work };
        loop {
            let index = self.next_item.fetch_add(1, Ordering::Relaxed);
            if index >= job.items {
                return;
            }
            work(index);
        }
    }

    /// Main loop of a worker thread.
    fn worker_loop(&self) {
        let mut last = 0;
        loop {
            let Some(region) = self.enter(last) else { return };
            last = region;
            // SAFETY: this thread is inside an open region: the job was written before it opened.
            let job = unsafe { *self.job.get() };
            if let Some(job) = job
                && let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.run_items(job)))
            {
                // Skip the remaining items of the failed region.
                self.next_item.store(job.items, Ordering::Relaxed);
                *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
            }
            self.state.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits for an open region other than `last` and enters it; None when the pool is dropped.
    fn enter(&self, last: u64) -> Option<u64> {
        let mut since = Instant::now();
        let mut spins = 0u32;
        loop {
            let state = self.state.load(Ordering::Acquire);
            let region = state / REGION;
            if state & OPEN != 0 && region != last {
                let inside = state + 1;
                if self.state.compare_exchange(state, inside, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                    return Some(region);
                }
                continue;
            }
            if self.stop.load(Ordering::Relaxed) {
                return None;
            }
            std::hint::spin_loop();
            spins += 1;
            if spins.is_multiple_of(64) && since.elapsed() > SPIN_BEFORE_PARK {
                self.park(last);
                since = Instant::now();
            }
        }
    }

    /// Parks the thread until a region other than `last` is open or the pool stops.
    fn park(&self, last: u64) {
        let mut guard = self.park_lock.lock().unwrap_or_else(PoisonError::into_inner);
        // Incremented before the last check of `state`, as the caller opens the region before it reads `parked`: one of the two
        // sees the other.
        self.parked.fetch_add(1, Ordering::SeqCst);
        loop {
            let state = self.state.load(Ordering::SeqCst);
            if self.stop.load(Ordering::SeqCst) || (state & OPEN != 0 && state / REGION != last) {
                break;
            }
            guard = self.unpark.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.parked.fetch_sub(1, Ordering::SeqCst);
    }

    fn unpark_all(&self) {
        // The lock waits for a worker that has checked `state` but does not wait on the condition variable yet.
        drop(self.park_lock.lock().unwrap_or_else(PoisonError::into_inner));
        self.unpark.notify_all();
    }
}

/// Closes a region and waits for its workers, also when the caller's own items panic.
struct CloseOnDrop<'a>(&'a Shared);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        let shared = self.0;
        if std::thread::panicking() {
            shared.next_item.store(usize::MAX / 2, Ordering::Relaxed);
        }
        shared.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0u32;
        while shared.state.load(Ordering::Acquire) & WORKERS_INSIDE != 0 {
            spins = spins.saturating_add(1);
            if spins < 4096 {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
        let panic = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        shared.busy.store(false, Ordering::Release);
        if let Some(panic) = panic
            && !std::thread::panicking()
        {
            resume_unwind(panic);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_worked_on_once_whatever_the_number_of_threads() {
        for threads in [0, 1, 2, 3, 7] {
            let pool = Pool::new(threads);
            for items in [0, 1, 2, 5, 100] {
                let mut counts = vec![0u32; items];
                pool.for_each(&mut counts, |count| *count += 1);
                assert!(counts.iter().all(|&count| count == 1), "{threads} threads, {items} items");
            }
        }
    }

    #[test]
    fn many_short_regions_lose_no_wakeup() {
        let pool = Pool::new(3);
        let mut sums = [0usize; 8];
        for round in 0..2000 {
            pool.for_each(&mut sums, |sum| *sum += 1);
            if round % 500 == 0 {
                std::thread::sleep(SPIN_BEFORE_PARK * 20);
            }
        }
        assert_eq!(sums, [2000; 8]);
    }

    #[test]
    fn two_callers_share_a_pool_without_waiting_for_each_other_to_finish() {
        let pool = Pool::new(2);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let mut sums = [0usize; 5];
                    for _ in 0..300 {
                        pool.for_each(&mut sums, |sum| *sum += 1);
                    }
                    assert_eq!(sums, [300; 5]);
                });
            }
        });
    }

    #[test]
    fn a_region_inside_a_region_is_done_by_its_own_thread() {
        let pool = Pool::new(2);
        let mut outer = [[0u8; 3]; 4];
        pool.for_each(&mut outer, |inner| pool.for_each(inner, |cell| *cell += 1));
        assert_eq!(outer, [[1; 3]; 4]);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_leaves_the_pool_usable() {
        let pool = Pool::new(2);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            pool.for_each(&mut [0, 1, 2, 3], |item| assert!(*item != 2, "item two"));
        }));
        assert!(outcome.is_err());
        let mut counts = [0; 4];
        pool.for_each(&mut counts, |count| *count += 1);
        assert_eq!(counts, [1; 4]);
    }
}
