//! From a directory or hub id to a model.

mod artefact;
mod estimate;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use q35_backend::{BackendError, RunOptions, open_coreml, open_mlx};
use q35_format_mlx::MlxDirectory;
use q35_inference::Model;

use crate::engine::Loaded;
use crate::language::Language;
use crate::{Chat, ChatError, LoadOptions};
pub use artefact::{Artefact, ArtefactKind};
pub use estimate::MemoryEstimate;

/// Why a model could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The name could not be resolved to a directory.
    #[error(transparent)]
    Hub(Box<q35_hub::HubError>),
    /// The directory holds nothing that is known.
    #[error(
        "`{}` holds no model\n  expected: config.json with model.safetensors, or Core ML packages\n  found:    {found}",
        dir.display()
    )]
    NoModel {
        /// The directory.
        dir: PathBuf,
        /// What it holds instead.
        found: String,
    },
    /// The directory holds a float checkpoint.
    #[error(
        "`{}` is a float checkpoint\n  expected: a converted model\nhint: q35-convert mlx --model {} --out DIR",
        dir.display(), dir.display()
    )]
    NotConverted {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory has no such variant.
    #[error("`{}` has no variant `{variant}`\n  found:    {found}", dir.display())]
    NoVariant {
        /// The directory.
        dir: PathBuf,
        /// The variant asked for.
        variant: String,
        /// The variants that there are.
        found: String,
    },
    /// The backend asked for cannot run what the directory holds, or is not in this build.
    #[error("`{}`: {source}", dir.display())]
    Backend {
        /// The directory.
        dir: PathBuf,
        /// Why not.
        source: BackendError,
    },
    /// The model is estimated not to fit.
    #[error(
        "the model does not fit in memory: {estimate}\n  limit:    {} MB\n\
         hint: a smaller max_context or prompt cache, or a model of fewer bits", limit_bytes / 1_000_000
    )]
    Memory {
        /// What would be needed.
        estimate: MemoryEstimate,
        /// What may be used.
        limit_bytes: u64,
    },
    /// A file that describes the model cannot be read.
    #[error("cannot read `{}`: {message}", path.display())]
    Description {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// The MLX directory is not what its config.json says.
    #[error(transparent)]
    Mlx(Box<q35_format_mlx::MlxError>),
}

/// The causes are boxed: they are large, and an error should not make every result so.
macro_rules! boxed_causes {
    ($($variant:ident: $cause:ty),* $(,)?) => {$(
        impl From<$cause> for OpenError {
            fn from(cause: $cause) -> Self {
                Self::$variant(Box::new(cause))
            }
        }
    )*};
}

boxed_causes! {
    Hub: q35_hub::HubError,
    Mlx: q35_format_mlx::MlxError,
}

/// What opening reports, in this order, on the calling thread; nothing more comes after a failure.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum OpenEvent<'a> {
    /// A download, or the finding that the hub cannot be reached.
    Hub(q35_hub::Event<'a>),
    /// What the directory was recognised as.
    Found(&'a Artefact),
    /// What will be needed.
    Estimated(MemoryEstimate),
    /// The model is ready; who computes what.
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
    /// There is no such model, it is damaged, it does not fit in memory, or an option makes no sense.
    pub fn open(
        model: &str,
        options: &LoadOptions,
        events: &dyn Fn(OpenEvent<'_>),
    ) -> Result<Self, ChatError> {
        options.check()?;
        let variant = options.variant.as_deref();
        let wanted = |name: &str| artefact::is_wanted(name, variant);
        let resolved = q35_hub::resolve(model, &options.hub, &wanted, &|event| events(OpenEvent::Hub(event)))
            .map_err(OpenError::from)?;
        let artefact = Artefact::recognise(&resolved.dir, variant)?;
        events(OpenEvent::Found(&artefact));
        let estimate = MemoryEstimate::of(&artefact, options)?;
        events(OpenEvent::Estimated(estimate));
        let limit_bytes =
            options.memory_limit_bytes.or_else(estimate::physical_memory_bytes).unwrap_or(u64::MAX);
        if estimate.total_bytes() > limit_bytes {
            return Err(OpenError::Memory { estimate, limit_bytes }.into());
        }
        let (directory, again) = (artefact.dir.clone(), options.clone());
        let loader = Box::new(move || load(&artefact, &again));
        let chat = Self { engine: Arc::new(crate::engine::Engine::new(loader, options.clone(), directory)?) };
        events(OpenEvent::Ready(&chat.describe()?));
        Ok(chat)
    }
}

fn load(artefact: &Artefact, options: &LoadOptions) -> Result<Loaded, ChatError> {
    let template = options.chat_template.as_deref();
    // A real tokenizer takes longer than mapped weights, so each has a thread.
    let (model, language) = std::thread::scope(|scope| {
        let language = scope.spawn(|| Language::open(&artefact.dir, template));
        let model = open_model(&artefact.dir, artefact.kind, options);
        (model, language.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    let model = model?;
    let language = language?.with_rows(model.config().vocab_size);
    Ok(Loaded { model, language: Arc::new(language) })
}

fn open_model(dir: &Path, kind: ArtefactKind, options: &LoadOptions) -> Result<Arc<dyn Model>, OpenError> {
    let how = RunOptions {
        backend: options.backend,
        device: options.device,
        compute_units: options.compute_units,
        threads: options.threads,
        exact: options.exact,
        compiled_cache: options.compiled_cache.clone(),
    };
    let running = match kind {
        ArtefactKind::Mlx => {
            let directory = MlxDirectory::open(dir)?;
            directory.read_ahead();
            open_mlx(Arc::new(directory), &how)
        }
        ArtefactKind::CoreMl => open_coreml(dir, &how),
    };
    let running = running.map_err(|source| OpenError::Backend { dir: dir.to_owned(), source })?;
    Ok(Arc::from(running.model))
}
