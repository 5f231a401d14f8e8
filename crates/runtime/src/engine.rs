//! The parts that all sessions of a model share: weights, text processing, prompt cache, and a register of sessions.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use q35_inference::Model;

use crate::allocator::release_freed_memory;
use crate::language::Language;
use crate::memory::MemoryFootprint;
use crate::prompt_cache::PromptCache;
use crate::session_state::{SessionState, clear_all};
use crate::{ChatError, LoadOptions};

/// The parts that loading creates and unloading drops.
pub(crate) struct Loaded {
    pub(crate) model: Arc<dyn Model>,
    pub(crate) language: Arc<Language>,
}

/// Loads the parts; called again after each unload.
pub(crate) type Loader = Box<dyn Fn() -> Result<Loaded, ChatError> + Send + Sync>;

/// A model that any number of sessions use.
pub(crate) struct Engine {
    pub(crate) options: LoadOptions,
    pub(crate) cache: Arc<PromptCache>,
    /// Directory of the model's files.
    directory: PathBuf,
    identity: OnceLock<String>,
    loader: Loader,
    loaded: Mutex<Option<Arc<Loaded>>>,
    sessions: Mutex<Vec<Weak<SessionState>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each critical section below is a single assignment or look-up, so a poisoned value is still a valid one.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Engine {
    pub(crate) fn new(loader: Loader, options: LoadOptions, directory: PathBuf) -> Result<Self, ChatError> {
        options.check()?;
        let cache = Arc::new(PromptCache::new(options.prompt_cache_bytes));
        let (loaded, sessions) = (Mutex::default(), Mutex::default());
        let engine = Self { options, cache, directory, identity: OnceLock::new(), loader, loaded, sessions };
        engine.load()?;
        Ok(engine)
    }

    /// The hash of the model's files, computed at the first call.
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

    /// The parts, loaded now if necessary.
    pub(crate) fn load(&self) -> Result<Arc<Loaded>, ChatError> {
        let mut slot = lock(&self.loaded);
        if let Some(loaded) = &*slot {
            return Ok(loaded.clone());
        }
        let loaded = Arc::new((self.loader)()?);
        // Reading a tokenizer needs several times the memory of the tokenizer.
        release_freed_memory();
        *slot = Some(loaded.clone());
        Ok(loaded)
    }

    /// The parts for a reply, loaded again if the options allow it.
    pub(crate) fn ready(&self) -> Result<Arc<Loaded>, ChatError> {
        if self.options.auto_reload || self.is_loaded() { self.load() } else { Err(ChatError::NotLoaded) }
    }

    /// Drops weights, text processing, session states and snapshots; refuses while replies are being generated.
    pub(crate) fn unload(&self) -> Result<(), ChatError> {
        let mut loaded = lock(&self.loaded);
        clear_all(&self.live_sessions()).map_err(|replies| ChatError::Busy { replies })?;
        self.cache.clear();
        *loaded = None;
        release_freed_memory();
        Ok(())
    }

    /// Registers a new session.
    pub(crate) fn new_session_state(&self) -> Arc<SessionState> {
        let session = Arc::new(SessionState::default());
        let mut sessions = lock(&self.sessions);
        sessions.retain(|session| session.strong_count() > 0);
        sessions.push(Arc::downgrade(&session));
        session
    }

    fn live_sessions(&self) -> Vec<Arc<SessionState>> {
        lock(&self.sessions).iter().filter_map(Weak::upgrade).collect()
    }

    pub(crate) fn footprint(&self) -> MemoryFootprint {
        let (model, text_bytes) = match &*lock(&self.loaded) {
            Some(loaded) => (loaded.model.memory(), loaded.language.size_bytes()),
            None => Default::default(),
        };
        let sessions = self.live_sessions();
        MemoryFootprint {
            mapped_weight_bytes: model.mapped_bytes,
            owned_weight_bytes: model.owned_bytes,
            cache_bytes: sessions.iter().map(|session| session.cache_bytes()).sum(),
            snapshot_bytes: self.cache.size_bytes(),
            snapshots: self.cache.len(),
            scratch_bytes: sessions.iter().map(|session| session.scratch_bytes()).sum(),
            text_bytes,
        }
    }
}
