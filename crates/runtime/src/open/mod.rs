//! Opens a model to chat with, from a directory or a hub id.

mod error;
mod estimate;

use std::sync::Arc;

use q35_artefact::{
    ArtefactDir, ArtefactError, ArtefactKind, QuantizeEvent, QuantizedModel, find_model, quantize_checkpoint,
};
use q35_backend::{Backend, BackendError, RunOptions};
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
    /// Progress of quantizing a float checkpoint.
    Quantize(QuantizeEvent<'a>),
    /// The memory that the model will need.
    Estimated(MemoryEstimate),
    /// The model is loaded; a description of its backend.
    Ready(&'a str),
}

impl Chat {
    /// Opens a model with default options: a directory, a hub id whose files are fetched unless the cache has them, or
    /// `"q35-nano"`, the small model in this crate (with the default feature `nano`).
    ///
    /// A float checkpoint is quantized to INT8 as it is opened, each weight rounded to nearest, and the result is cached
    /// ([`LoadOptions::quantize`]).
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
        let found = find_model(model, variant, &options.hub, &|event| events(OpenEvent::Hub(event)))
            .map_err(OpenError::from)?;
        let mut artefact = ArtefactDir::recognise(&found.dir, variant).map_err(OpenError::from)?;
        events(OpenEvent::Found(&artefact));
        let quantized = match artefact.kind {
            ArtefactKind::Checkpoint => Some(quantize(&artefact, options, events)?),
            ArtefactKind::CompiledCoreMl => return Err(OpenError::from(artefact.refuse_compiled()).into()),
            _ => None,
        };
        if let Some(quantized) = &quantized {
            artefact = quantized.artefact.clone();
        }
        let estimate = MemoryEstimate::of(&artefact, options)?;
        events(OpenEvent::Estimated(estimate));
        let limit_bytes =
            options.memory_limit_bytes.or_else(estimate::physical_memory_bytes).unwrap_or(u64::MAX);
        if estimate.total_bytes() > limit_bytes {
            return Err(OpenError::Memory { estimate, limit_bytes }.into());
        }
        let (directory, reload_options) = (artefact.dir.clone(), options.clone());
        let loader = Box::new(move || {
            // The loader owns the quantized model's files, which may be temporary.
            let _files = &quantized;
            load(&artefact, &reload_options)
        });
        let chat = Self { engine: Arc::new(crate::engine::Engine::new(loader, options.clone(), directory)?) };
        events(OpenEvent::Ready(&chat.describe()?));
        Ok(chat)
    }
}

fn quantize(
    checkpoint: &ArtefactDir,
    options: &LoadOptions,
    events: &dyn Fn(OpenEvent<'_>),
) -> Result<QuantizedModel, OpenError> {
    if options.run.backend == Backend::CoreMl {
        let (backend, form) = (options.run.backend.name(), "an MLX model, which a float checkpoint becomes");
        let source = BackendError::Unsuitable { backend, form };
        return Err(ArtefactError::Backend { dir: checkpoint.dir.clone(), source }.into());
    }
    let show = |event: QuantizeEvent<'_>| events(OpenEvent::Quantize(event));
    Ok(quantize_checkpoint(&checkpoint.dir, &options.quantize, &show)?)
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
