//! The prompt cache: snapshots of prompts, so that a repeated prefix is not computed again.
//!
//! The recurrent state of a linear-attention layer cannot be rewound, so a snapshot cannot be trimmed to a common
//! prefix: either all of its tokens are a prefix of the new prompt, or it is useless. Snapshots are therefore taken at
//! lengths at which prompts stay the same from turn to turn, and are looked up by their tokens alone, which stays
//! correct even if a template rewrites history.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use q35_inference::{RunError, Snapshot};

use crate::allocator::release_freed_memory;

/// Snapshots by their tokens, evicted in least-recently-used order.
pub(crate) struct PromptCache {
    budget_bytes: u64,
    entries: Mutex<Entries>,
}

#[derive(Default)]
struct Entries {
    snapshots: Vec<Entry>,
    clock: u64,
    /// Bytes of snapshots evicted since freed memory was last released to the system.
    evicted_bytes: u64,
}

/// Freed memory is released to the system after evictions of one part in this many of the budget.
const RELEASE_PART: u64 = 4;

struct Entry {
    ids: Vec<u32>,
    snapshot: Arc<Snapshot>,
    used: u64,
}

impl Entry {
    fn size_bytes(&self) -> u64 {
        self.snapshot.size_bytes() + 4 * self.ids.len() as u64
    }
}

impl PromptCache {
    pub(crate) fn new(budget_bytes: u64) -> Self {
        Self { budget_bytes, entries: Mutex::default() }
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        // Every change leaves the list valid, so a panic elsewhere does not spoil it.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The longest snapshot whose tokens are a proper prefix of `ids`: at least one token must be computed to have
    /// logits. Returns its length and the snapshot.
    pub(crate) fn longest_prefix(&self, ids: &[u32]) -> Option<(usize, Arc<Snapshot>)> {
        let mut entries = self.entries();
        entries.clock += 1;
        let now = entries.clock;
        let mut best: Option<(usize, Arc<Snapshot>)> = None;
        for entry in &mut entries.snapshots {
            if entry.ids.len() < ids.len() && ids.starts_with(&entry.ids) {
                entry.used = now;
                if best.as_ref().is_none_or(|(length, _)| *length < entry.ids.len()) {
                    best = Some((entry.ids.len(), entry.snapshot.clone()));
                }
            }
        }
        best
    }

    /// The snapshot of exactly these tokens.
    pub(crate) fn get(&self, ids: &[u32]) -> Option<Arc<Snapshot>> {
        self.entries().snapshots.iter().find(|entry| entry.ids == ids).map(|entry| entry.snapshot.clone())
    }

    /// Inserts a snapshot of these tokens, unless there is one already or it is larger than the budget.
    pub(crate) fn insert(
        &self,
        ids: &[u32],
        take: impl FnOnce() -> Result<Snapshot, RunError>,
    ) -> Result<(), RunError> {
        if self.budget_bytes == 0 || self.get(ids).is_some() {
            return Ok(());
        }
        // The large copy is made outside the lock.
        let snapshot = Arc::new(take()?);
        let mut entries = self.entries();
        entries.clock += 1;
        let entry = Entry { ids: ids.to_vec(), snapshot, used: entries.clock };
        if entry.size_bytes() > self.budget_bytes {
            return Ok(());
        }
        entries.snapshots.push(entry);
        while entries.snapshots.iter().map(Entry::size_bytes).sum::<u64>() > self.budget_bytes {
            let oldest =
                entries.snapshots.iter().enumerate().min_by_key(|(_, entry)| entry.used).map(|(at, _)| at);
            match oldest {
                Some(at) => entries.evicted_bytes += entries.snapshots.swap_remove(at).size_bytes(),
                None => break,
            }
        }
        let release = entries.evicted_bytes >= self.budget_bytes / RELEASE_PART;
        if release {
            entries.evicted_bytes = 0;
        }
        drop(entries);
        if release {
            release_freed_memory();
        }
        Ok(())
    }

    pub(crate) fn clear(&self) {
        self.entries().snapshots = Vec::new();
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.entries().snapshots.iter().map(Entry::size_bytes).sum()
    }

    pub(crate) fn len(&self) -> usize {
        self.entries().snapshots.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use q35_inference::{SnapshotTensor, StateType};

    fn snapshot(position: usize, bytes: usize) -> Snapshot {
        let tensor = SnapshotTensor {
            name: "s".into(),
            dtype: StateType::I8,
            shape: vec![bytes],
            data: vec![0; bytes],
        };
        Snapshot { position, layout: "test".into(), tensors: vec![tensor] }
    }

    fn keep(cache: &PromptCache, ids: &[u32], bytes: usize) {
        cache.insert(ids, || Ok(snapshot(ids.len(), bytes))).unwrap();
    }

    fn found(cache: &PromptCache, ids: &[u32]) -> Option<usize> {
        cache.longest_prefix(ids).map(|(length, _)| length)
    }

    #[test]
    fn only_true_prefixes_count() {
        let cache = PromptCache::new(1 << 20);
        keep(&cache, &[1, 2], 10);
        keep(&cache, &[1, 2, 3, 4], 10);
        keep(&cache, &[1, 2, 9], 10);
        assert_eq!(found(&cache, &[1, 2, 3, 4, 5]), Some(4));
        assert_eq!(found(&cache, &[1, 2, 3, 4]), Some(2), "one token must be left to compute");
        assert_eq!(found(&cache, &[1, 2, 3, 5]), Some(2));
        assert_eq!(found(&cache, &[1, 3]), None);
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let cache = PromptCache::new(300);
        keep(&cache, &[1], 100);
        keep(&cache, &[2], 100);
        assert_eq!(found(&cache, &[1, 7]), Some(1));
        keep(&cache, &[3], 100);
        assert_eq!(
            (found(&cache, &[1, 7]), found(&cache, &[2, 7]), found(&cache, &[3, 7])),
            (Some(1), None, Some(1))
        );
        assert!(cache.size_bytes() <= 300);
        keep(&cache, &[4], 1000);
        assert_eq!(
            (found(&cache, &[4, 7]), cache.len()),
            (None, 2),
            "larger than the budget: not kept, nothing lost"
        );
        cache.clear();
        assert_eq!(cache.size_bytes(), 0);
    }
}
