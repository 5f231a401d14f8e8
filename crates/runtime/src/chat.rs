//! A model to chat with: the entry point of the crate.

use std::sync::Arc;

use q35_inference::{CancelToken, Model};

use crate::engine::{Engine, Loaded, Loader};
use crate::generate::Reply;
use crate::language::Language;
use crate::memory::MemoryFootprint;
use crate::session::{ReplyStream, Session};
use crate::{ChatError, LoadOptions, Sampling};

/// A loaded model with its tokenizer and template. Clones share them.
#[derive(Clone)]
pub struct Chat {
    pub(crate) engine: Arc<Engine>,
}

impl Chat {
    /// A chat with a model that the caller opens, and the tokenizer and template of `dir`. `open` is called again after
    /// an unload.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use q35_artefact::ArtefactDir;
    /// use q35_runtime::{Chat, ChatError, LoadOptions, OpenError, RunOptions, Sampling};
    ///
    /// # let files = q35_backend_tests::nano_mlx();
    /// let dir = files.path().to_owned();
    /// let open = move || -> Result<Arc<dyn q35_inference::Model>, ChatError> {
    ///     let artefact = ArtefactDir::recognise(&dir, None).map_err(OpenError::from)?;
    ///     let running = artefact.open_model(&RunOptions::default()).map_err(OpenError::from)?;
    ///     Ok(Arc::from(running.model))
    /// };
    /// let chat = Chat::with_model(files.path(), &LoadOptions::default(), open)?;
    /// chat.generate("Hello!", None, &Sampling::default())?;
    /// # Ok::<(), ChatError>(())
    /// ```
    ///
    /// # Errors
    /// The directory's tokenizer or template cannot be used, an option makes no sense, or `open` fails.
    pub fn with_model(
        dir: &std::path::Path,
        options: &LoadOptions,
        open: impl Fn() -> Result<Arc<dyn Model>, ChatError> + Send + Sync + 'static,
    ) -> Result<Self, ChatError> {
        let (dir, template) = (dir.to_owned(), options.chat_template.clone());
        let directory = dir.clone();
        let loader: Loader = Box::new(move || {
            let model = open()?;
            let vocab_size = model.config().vocab_size;
            let language = Language::open(&dir, template.as_deref())?.with_vocab_size(vocab_size);
            Ok(Loaded { model, language: Arc::new(language) })
        });
        Ok(Self { engine: Arc::new(Engine::new(loader, options.clone(), directory)?) })
    }

    /// Starts a new conversation.
    pub fn session(&self) -> Session {
        Session::new(self.engine.clone())
    }

    /// Answers one prompt, outside of any conversation.
    ///
    /// # Errors
    /// As [`Session::ask`].
    pub fn generate(
        &self,
        prompt: &str,
        system: Option<&str>,
        sampling: &Sampling,
    ) -> Result<Reply, ChatError> {
        self.stream(prompt, system, sampling)?.collect_reply()
    }

    /// Streams the answer to one prompt, outside of any conversation.
    ///
    /// ```
    /// use q35_runtime::{Chunk, Sampling};
    /// # let files = q35_backend_tests::nano_mlx();
    /// # let chat = q35_runtime::Chat::from_pretrained(files.path_str())?;
    /// for chunk in chat.stream("Hello!", Some("Be brief."), &Sampling::default().with_seed(1))? {
    ///     match chunk? {
    ///         Chunk::Answer(text) => print!("{text}"),
    ///         Chunk::Finish(finish) => println!(" ({:?}, {:?})", finish.reason, finish.usage),
    ///         _ => {}
    ///     }
    /// }
    /// # Ok::<(), q35_runtime::ChatError>(())
    /// ```
    ///
    /// # Errors
    /// As [`Session::send`].
    pub fn stream(
        &self,
        prompt: &str,
        system: Option<&str>,
        sampling: &Sampling,
    ) -> Result<ReplyStream<'static>, ChatError> {
        let mut session = self.session();
        session.set_system(system.map(str::to_owned));
        session.into_stream(prompt.to_owned(), sampling, CancelToken::new())
    }

    /// Loads a prompt's state from a file that [`Session::save_prompt`] wrote for the same model; conversations that
    /// begin with that prompt continue from it. Returns the number of tokens that need not be computed.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let file = dir.path().join("prompt.safetensors");
    /// # let files = q35_backend_tests::nano_mlx();
    /// # let chat = q35_runtime::Chat::from_pretrained(files.path_str())?;
    /// let instructions = "You are a helpful assistant. ".repeat(20);
    /// chat.session().with_system(&instructions).save_prompt(&file)?;
    ///
    /// // In another process:
    /// let saved = chat.load_prompt(&file)?;
    /// let reply = chat.generate("Hello!", Some(&instructions), &Default::default())?;
    /// assert_eq!(reply.finish.usage.cached_tokens, saved);
    /// # Ok::<(), q35_runtime::ChatError>(())
    /// ```
    ///
    /// # Errors
    /// The file is of another model or version, or damaged.
    pub fn load_prompt(&self, path: &std::path::Path) -> Result<usize, ChatError> {
        let loaded = self.engine.ready()?;
        let (ids, snapshot) = crate::snapshot_file::load(path, self.engine.identity()?)?;
        // Only the backend can check that the state is complete.
        loaded.model.new_sequence(ids.len() + 1)?.restore(&snapshot)?;
        self.engine.cache.insert(&ids, || Ok(snapshot))?;
        Ok(ids.len())
    }

    /// Streams the continuation of a text, without the chat template.
    ///
    /// # Errors
    /// As [`Session::send`].
    pub fn complete(
        &self,
        text: &str,
        sampling: &Sampling,
        cancel: CancelToken,
    ) -> Result<ReplyStream<'static>, ChatError> {
        self.session().into_completion(text, sampling, cancel)
    }

    /// Token ids of a text. Special tokens are recognised.
    ///
    /// # Errors
    /// The model was unloaded and cannot be loaded again, or the tokenizer fails.
    pub fn tokenize(&self, text: &str) -> Result<Vec<u32>, ChatError> {
        Ok(self.engine.ready()?.language.tokenizer.encode(text)?)
    }

    /// Bytes of token ids. A character may extend over several tokens.
    ///
    /// # Errors
    /// The model was unloaded and cannot be loaded again.
    pub fn token_bytes(&self, ids: &[u32]) -> Result<Vec<u8>, ChatError> {
        let loaded = self.engine.ready()?;
        Ok(ids.iter().flat_map(|id| loaded.language.tokenizer.bytes_of(*id)).copied().collect())
    }

    /// True if the weights are loaded.
    pub fn is_loaded(&self) -> bool {
        self.engine.is_loaded()
    }

    /// Loads the weights again after [`Chat::unload`]; does nothing if they are loaded.
    ///
    /// # Errors
    /// As [`Chat::open`].
    pub fn load(&self) -> Result<(), ChatError> {
        self.engine.load().map(|_| ())
    }

    /// Frees weights, tokenizer, caches and snapshots. Conversations keep their messages; their next reply loads the
    /// model again if [`LoadOptions::auto_reload`] allows it.
    ///
    /// ```
    /// # let files = q35_backend_tests::nano_mlx();
    /// # let chat = q35_runtime::Chat::from_pretrained(files.path_str())?;
    /// let mut session = chat.session();
    /// session.ask("My name is Ada.", &Default::default())?;
    /// chat.unload()?;
    /// assert!(!chat.is_loaded() && chat.memory_footprint().total_bytes() == 0);
    /// session.ask("What is my name?", &Default::default())?; // loads again
    /// # Ok::<(), q35_runtime::ChatError>(())
    /// ```
    ///
    /// # Errors
    /// [`ChatError::Busy`] while replies are being generated.
    pub fn unload(&self) -> Result<(), ChatError> {
        self.engine.unload()
    }

    /// The memory in use now.
    ///
    /// ```
    /// # let files = q35_backend_tests::nano_mlx();
    /// # let chat = q35_runtime::Chat::from_pretrained(files.path_str())?;
    /// let memory = chat.memory_footprint();
    /// assert!(memory.mapped_weight_bytes > 0);
    /// assert_eq!(memory.cache_bytes, 0, "no reply was computed yet");
    /// # Ok::<(), q35_runtime::ChatError>(())
    /// ```
    pub fn memory_footprint(&self) -> MemoryFootprint {
        self.engine.footprint()
    }

    /// A readable description of backend and model.
    ///
    /// # Errors
    /// The model was unloaded and cannot be loaded again.
    pub fn describe(&self) -> Result<String, ChatError> {
        Ok(self.engine.ready()?.model.describe())
    }

    /// True if the model's directory has no chat template and [`q35_text::BUILT_IN_TEMPLATE`] replaces it.
    ///
    /// # Errors
    /// The model was unloaded and cannot be loaded again.
    pub fn uses_built_in_template(&self) -> Result<bool, ChatError> {
        Ok(self.engine.ready()?.language.template.is_built_in())
    }

    /// The default sampling settings, overridden by those of the checkpoint's `generation_config.json`.
    ///
    /// ```
    /// # let files = q35_backend_tests::nano_mlx();
    /// # let chat = q35_runtime::Chat::from_pretrained(files.path_str())?;
    /// let sampling = chat.checkpoint_sampling()?.with_max_tokens(16);
    /// chat.generate("Hello!", None, &sampling)?;
    /// # Ok::<(), q35_runtime::ChatError>(())
    /// ```
    ///
    /// # Errors
    /// The model has no generation_config.json, or was unloaded and cannot be loaded again.
    pub fn checkpoint_sampling(&self) -> Result<Sampling, ChatError> {
        let loaded = self.engine.ready()?;
        let config = &loaded.language.generation_config.json;
        if config.is_null() {
            return Err(ChatError::NoCheckpointSampling);
        }
        Ok(Sampling::default().with_generation_config(config))
    }
}
