//! How a model is opened and kept.

use std::path::PathBuf;

use q35_backend::{Backend, ComputeUnits, Device};
use q35_hub::HubOptions;

use crate::ChatError;

/// What happens when a conversation outgrows the context window.
///
/// ```
/// use q35_runtime::{Chat, LoadOptions, WindowPolicy};
/// # let files = q35_backend_tests::nano_mlx();
/// # let model = files.path_str();
/// let options = LoadOptions::default().with_max_context(96).with_window(WindowPolicy::DropOldest);
/// let chat = Chat::open(model, &options, &|_| {})?;
/// let mut session = chat.session().with_system("Be brief.");
/// for _ in 0..10 {
///     session.ask("Tell me a story.", &Default::default())?;
/// }
/// assert_eq!(session.messages()[0].content, "Be brief.");
/// # Ok::<(), q35_runtime::ChatError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WindowPolicy {
    /// [`ChatError::ContextFull`].
    #[default]
    Refuse,
    /// The oldest turns are dropped for good; the system prompt stays.
    DropOldest,
}

/// How a model is opened and kept.
///
/// ```
/// let options = q35_runtime::LoadOptions::default().with_max_context(8192).with_exact(true);
/// assert!(options.check().is_ok());
/// ```
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Who computes.
    pub backend: Backend,
    /// Where MLX computes; `None` takes the GPU where there is one.
    pub device: Option<Device>,
    /// Which units Apple's Core ML may use. Processor and Neural Engine.
    pub compute_units: ComputeUnits,
    /// Where packages compiled by Apple's Core ML are kept for the next time; `None` compiles at each opening.
    pub compiled_cache: Option<PathBuf>,
    /// Which of several variants in one directory: `int4`, `int5`, `int8`. `None` takes the only or the smallest one.
    pub variant: Option<String>,
    /// Threads; `None` takes as many as there are processors.
    pub threads: Option<usize>,
    /// Tokens of context that a session can grow to. 4096, or less where the model allows less.
    pub max_context: usize,
    /// Refuses to load what is estimated to need more bytes of memory than this.
    pub memory_limit_bytes: Option<u64>,
    /// Computes with 32-bit activations.
    pub exact: bool,
    /// Memory that snapshots of prompts may take in all; 0 keeps none. 256 MiB.
    pub prompt_cache_bytes: u64,
    /// What happens when a conversation outgrows the window.
    pub window: WindowPolicy,
    /// A chat template in place of the directory's own.
    pub chat_template: Option<String>,
    /// Whether an unloaded model is loaded again when a reply is asked for. True.
    pub auto_reload: bool,
    /// Where hub ids are looked up. A library reads no environment: an application passes its settings here.
    pub hub: HubOptions,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            backend: Backend::Auto,
            device: None,
            compute_units: ComputeUnits::default(),
            compiled_cache: None,
            variant: None,
            threads: None,
            max_context: 4096,
            memory_limit_bytes: None,
            exact: false,
            prompt_cache_bytes: 256 << 20,
            window: WindowPolicy::Refuse,
            chat_template: None,
            auto_reload: true,
            hub: HubOptions::default(),
        }
    }
}

impl LoadOptions {
    /// Sets who computes.
    pub fn with_backend(mut self, backend: Backend) -> Self {
        self.backend = backend;
        self
    }

    /// Sets where MLX computes.
    pub fn with_device(mut self, device: Device) -> Self {
        self.device = Some(device);
        self
    }

    /// Sets which units Apple's Core ML may use.
    pub fn with_compute_units(mut self, units: ComputeUnits) -> Self {
        self.compute_units = units;
        self
    }

    /// Sets where packages compiled by Apple's Core ML are kept.
    pub fn with_compiled_cache(mut self, dir: impl Into<PathBuf>) -> Self {
        self.compiled_cache = Some(dir.into());
        self
    }

    /// Sets which variant is opened.
    pub fn with_variant(mut self, variant: impl Into<String>) -> Self {
        self.variant = Some(variant.into());
        self
    }

    /// Sets the number of threads.
    pub fn with_threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// Sets the context window.
    pub fn with_max_context(mut self, tokens: usize) -> Self {
        self.max_context = tokens;
        self
    }

    /// Sets the memory limit.
    pub fn with_memory_limit(mut self, bytes: u64) -> Self {
        self.memory_limit_bytes = Some(bytes);
        self
    }

    /// Sets whether everything is computed exactly.
    pub fn with_exact(mut self, exact: bool) -> Self {
        self.exact = exact;
        self
    }

    /// Sets the memory for snapshots of prompts.
    pub fn with_prompt_cache(mut self, bytes: u64) -> Self {
        self.prompt_cache_bytes = bytes;
        self
    }

    /// Sets what happens when a conversation outgrows the window.
    pub fn with_window(mut self, policy: WindowPolicy) -> Self {
        self.window = policy;
        self
    }

    /// Replaces the directory's own chat template.
    pub fn with_chat_template(mut self, source: impl Into<String>) -> Self {
        self.chat_template = Some(source.into());
        self
    }

    /// Sets whether an unloaded model is loaded again when needed.
    pub fn with_auto_reload(mut self, reload: bool) -> Self {
        self.auto_reload = reload;
        self
    }

    /// Sets where hub ids are looked up.
    pub fn with_hub(mut self, hub: HubOptions) -> Self {
        self.hub = hub;
        self
    }

    /// Says which option makes no sense.
    ///
    /// # Errors
    /// The first such option.
    pub fn check(&self) -> Result<(), ChatError> {
        let one = |option, expected, found: usize| {
            Err(ChatError::Option { option, expected, found: found.to_string() })
        };
        match (self.threads, self.max_context) {
            (Some(0), _) => one("threads", "a whole number from 1", 0),
            (_, context @ (0 | 1)) => one("max_context", "a whole number from 2", context),
            _ => Ok(()),
        }
    }
}
