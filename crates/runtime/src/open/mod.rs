//! Opens a model to chat with, from a directory or a hub id.

mod error;
mod estimate;

use std::sync::Arc;

use q35_artefact::{ArtefactDir, ArtefactKind, select_files};
use q35_backend::RunOptions;
use q35_inference::Model;

use crate::engine::Loaded;
use crate::language::Language;
use crate::{Chat, ChatError, LoadOptions};
pub use error::OpenError;
pub use estimate::MemoryEstimate;

/// Progress of opening a model. Events come in this order, on the calling thread; none follows a failure.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum OpenEvent<'a> {
    /// Progress of a download, or the fallback to the cache when the hub cannot be reached.
    Hub(q35_hub::Event<'a>),
    /// The model was recognised.
    Found(&'a ArtefactDir),
    /// The memory that the model will need.
    Estimated(MemoryEstimate),
    /// The model is loaded; a description of its backend.
    Ready(&'a str),
}

impl Chat {
    /// Opens a model with default options: a directory, or a hub id whose files are fetched unless the cache has them.
    ///
    /// ```no_run
    /// let chat = q35_runtime::Chat::from_pretrained("mlx-community/Qwen3.5-0.8B-4bit")?;
    /// println!("{}", chat.generate("Why is the sky blue?", None, &Default::default())?.text);
    /// # Ok::<(), q35_runtime::ChatError>(())
    /// ```
    ///
    /// # Errors
    /// There is no such model, it is damaged, or it does not fit in memory.
    pub fn from_pretrained(model: &str) -> Result<Self, ChatError> {
        Self::open(model, &LoadOptions::default(), &|_| {})
    }

    /// Opens a model, reporting progress.
    ///
    /// ```
    /// use q35_runtime::{Backend, Chat, LoadOptions, OpenEvent};
    ///
    /// # let files = q35_backend_tests::nano_mlx();
    /// # let model = files.path_str();
    /// let options = LoadOptions::default()
    ///     .with_backend(Backend::Cpu)
    ///     .with_threads(2)
    ///     .with_max_context(2048)
    ///     .with_memory_limit(2_000_000_000);
    /// let chat = Chat::open(model, &options, &|event| match event {
    ///     OpenEvent::Hub(download) => eprintln!("{download:?}"),
    ///     OpenEvent::Estimated(estimate) => eprintln!("{estimate}"),
    ///     _ => {}
    /// })?;
    /// assert!(chat.describe()?.starts_with("CPU"));
    /// # Ok::<(), q35_runtime::ChatError>(())
    /// ```
    ///
    /// # Errors
    /// There is no such model, it is damaged, it does not fit in memory, or an option is out of range.
    pub fn open(
        model: &str,
        options: &LoadOptions,
        events: &dyn Fn(OpenEvent<'_>),
    ) -> Result<Self, ChatError> {
        options.check()?;
        let variant = options.variant.as_deref();
        let select = |files: &[&str]| select_files(files, variant);
        let resolved = q35_hub::resolve(model, &options.hub, &select, &|event| events(OpenEvent::Hub(event)))
            .map_err(OpenError::from)?;
        let artefact = ArtefactDir::recognise(&resolved.dir, variant).map_err(OpenError::from)?;
        events(OpenEvent::Found(&artefact));
        match artefact.kind {
            ArtefactKind::Checkpoint => return Err(OpenError::NotConverted { dir: artefact.dir }.into()),
            ArtefactKind::CompiledCoreMl => return Err(OpenError::from(artefact.refuse_compiled()).into()),
            _ => {}
        }
        let estimate = MemoryEstimate::of(&artefact, options)?;
        events(OpenEvent::Estimated(estimate));
        let limit_bytes =
            options.memory_limit_bytes.or_else(estimate::physical_memory_bytes).unwrap_or(u64::MAX);
        if estimate.total_bytes() > limit_bytes {
            return Err(OpenError::Memory { estimate, limit_bytes }.into());
        }
        let (directory, reload_options) = (artefact.dir.clone(), options.clone());
        let loader = Box::new(move || load(&artefact, &reload_options));
        let chat = Self { engine: Arc::new(crate::engine::Engine::new(loader, options.clone(), directory)?) };
        events(OpenEvent::Ready(&chat.describe()?));
        Ok(chat)
    }
}

fn load(artefact: &ArtefactDir, options: &LoadOptions) -> Result<Loaded, ChatError> {
    let template = options.chat_template.as_deref();
    // A real tokenizer takes longer than mapped weights, so each has a thread.
    let (model, language) = std::thread::scope(|scope| {
        let language = scope.spawn(|| Language::open(&artefact.dir, template));
        let model = open_model(artefact, options);
        (model, language.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    let model = model?;
    let language = language?.with_vocab_size(model.config().vocab_size);
    Ok(Loaded { model, language: Arc::new(language) })
}

fn open_model(artefact: &ArtefactDir, options: &LoadOptions) -> Result<Arc<dyn Model>, OpenError> {
    let run = RunOptions { read_ahead: true, ..options.run.clone() };
    Ok(Arc::from(artefact.open_model(&run)?.model))
}
