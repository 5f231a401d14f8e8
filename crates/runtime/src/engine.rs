//! What all sessions of a model share: weights, text side, snapshots, and the book of their states.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use q35_inference::Model;

use crate::allocator::give_back_freed;
use crate::cache::PrefixCache;
use crate::generate::Live;
use crate::language::Language;
use crate::memory::MemoryFootprint;
use crate::{ChatError, LoadOptions};

/// The parts that loading makes and unloading gives back.
pub(crate) struct Loaded {
    pub(crate) model: Arc<dyn Model>,
    pub(crate) language: Arc<Language>,
}

/// Makes the parts, as often as asked.
pub(crate) type Loader = Box<dyn Fn() -> Result<Loaded, ChatError> + Send + Sync>;

pub(crate) struct Engine {
    pub(crate) options: LoadOptions,
    pub(crate) cache: Arc<PrefixCache>,
    /// The model's files.
    directory: PathBuf,
    identity: OnceLock<String>,
    loader: Loader,
    loaded: Mutex<Option<Arc<Loaded>>>,
    slots: Mutex<Vec<Weak<Slot>>>,
}

/// Where a session keeps its state between replies, so that unloading can take it away.
#[derive(Default)]
pub(crate) struct Slot {
    place: Mutex<Place>,
    cache_bytes: AtomicU64,
    scratch_bytes: AtomicU64,
}

#[derive(Default)]
pub(crate) enum Place {
    #[default]
    Empty,
    Idle(Live),
    /// A reply has the state.
    Busy,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each critical section below is a single assignment or look-up, so a poisoned value is still a valid one.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Slot {
    /// Takes the state for a reply; `None` if there is none yet.
    pub(crate) fn take(&self) -> Option<Live> {
        match std::mem::replace(&mut *lock(&self.place), Place::Busy) {
            Place::Idle(live) => Some(live),
            Place::Empty | Place::Busy => None,
        }
    }

    /// Gives the state back, or nothing if it was lost.
    pub(crate) fn put(&self, live: Option<Live>) {
        match &live {
            Some(live) => self.note(live),
            None => self.clear_gauges(),
        }
        *lock(&self.place) = live.map_or(Place::Empty, Place::Idle);
    }

    /// Records what the state occupies.
    pub(crate) fn note(&self, live: &Live) {
        self.cache_bytes.store(live.sequence.cache_bytes(), Ordering::Relaxed);
        self.scratch_bytes.store(live.sequence.scratch_bytes(), Ordering::Relaxed);
    }

    fn clear_gauges(&self) {
        self.cache_bytes.store(0, Ordering::Relaxed);
        self.scratch_bytes.store(0, Ordering::Relaxed);
    }
}

impl Engine {
    pub(crate) fn new(loader: Loader, options: LoadOptions, directory: PathBuf) -> Result<Self, ChatError> {
        options.check()?;
        let cache = Arc::new(PrefixCache::new(options.prompt_cache_bytes));
        let (loaded, slots) = (Mutex::default(), Mutex::default());
        let engine = Self { options, cache, directory, identity: OnceLock::new(), loader, loaded, slots };
        engine.load()?;
        Ok(engine)
    }

    /// The hash of the model's files, computed when first needed.
    pub(crate) fn identity(&self) -> Result<&str, ChatError> {
        if let Some(identity) = self.identity.get() {
            return Ok(identity);
        }
        let identity = crate::snapshot_file::identity(&self.directory)?;
        Ok(self.identity.get_or_init(|| identity))
    }

    pub(crate) fn is_loaded(&self) -> bool {
        lock(&self.loaded).is_some()
    }

    /// The parts, loaded now if they are not.
    pub(crate) fn load(&self) -> Result<Arc<Loaded>, ChatError> {
        let mut place = lock(&self.loaded);
        if let Some(loaded) = &*place {
            return Ok(loaded.clone());
        }
        let loaded = Arc::new((self.loader)()?);
        // Reading a tokenizer takes several times the memory that it needs afterwards.
        give_back_freed();
        *place = Some(loaded.clone());
        Ok(loaded)
    }

    /// The parts for a reply: loaded again if that is allowed.
    pub(crate) fn ready(&self) -> Result<Arc<Loaded>, ChatError> {
        if self.options.auto_reload || self.is_loaded() { self.load() } else { Err(ChatError::NotLoaded) }
    }

    /// Gives back weights, text side, states and snapshots; refuses while replies are being generated.
    pub(crate) fn unload(&self) -> Result<(), ChatError> {
        let mut loaded = lock(&self.loaded);
        let slots = self.live_slots();
        let mut places: Vec<_> = slots.iter().map(|slot| (slot, lock(&slot.place))).collect();
        let replies = places.iter().filter(|(_, place)| matches!(**place, Place::Busy)).count();
        if replies > 0 {
            return Err(ChatError::Busy { replies });
        }
        for (slot, place) in &mut places {
            **place = Place::Empty;
            slot.clear_gauges();
        }
        self.cache.clear();
        *loaded = None;
        drop(places);
        give_back_freed();
        Ok(())
    }

    pub(crate) fn new_slot(&self) -> Arc<Slot> {
        let slot = Arc::new(Slot::default());
        let mut slots = lock(&self.slots);
        slots.retain(|slot| slot.strong_count() > 0);
        slots.push(Arc::downgrade(&slot));
        slot
    }

    fn live_slots(&self) -> Vec<Arc<Slot>> {
        lock(&self.slots).iter().filter_map(Weak::upgrade).collect()
    }

    pub(crate) fn footprint(&self) -> MemoryFootprint {
        let (model, text_bytes) = match &*lock(&self.loaded) {
            Some(loaded) => (loaded.model.memory(), loaded.language.size_bytes()),
            None => Default::default(),
        };
        let sum = |gauge: fn(&Slot) -> &AtomicU64| -> u64 {
            self.live_slots().iter().map(|slot| gauge(slot).load(Ordering::Relaxed)).sum()
        };
        MemoryFootprint {
            mapped_weight_bytes: model.mapped_bytes,
            owned_weight_bytes: model.owned_bytes,
            cache_bytes: sum(|slot| &slot.cache_bytes),
            snapshot_bytes: self.cache.size_bytes(),
            snapshots: self.cache.len(),
            scratch_bytes: sum(|slot| &slot.scratch_bytes),
            text_bytes,
        }
    }
}
