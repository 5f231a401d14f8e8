//! Options of loading a model.

use std::path::PathBuf;

use q35_artefact::QuantizeOptions;
use q35_backend::{Backend, ComputeUnits, Device, Precision, RunOptions};
use q35_hub::HubOptions;

use crate::ChatError;

/// The policy for conversations that outgrow the context window.
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
    /// Refuse the reply with [`ChatError::ContextFull`].
    #[default]
    Refuse,
    /// Drop the oldest turns for good; the system prompt stays.
    DropOldest,
}

/// Options of loading a model.
///
/// ```
/// let options = q35_runtime::LoadOptions::default().with_max_context(8192).with_threads(4);
/// assert!(options.check().is_ok());
/// ```
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Backend, device, threads and precision.
    pub run: RunOptions,
    /// The variant of a directory with several, such as `int4`. `None`: the only one; several are an error.
    pub variant: Option<String>,
    /// Bits and cache of a float checkpoint, which is quantized as it is opened.
    pub quantize: QuantizeOptions,
    /// Size of the context window in tokens. 4096, or less where the model allows less.
    pub max_context: usize,
    /// Upper limit of the estimated memory in bytes; loading is refused above it.
    pub memory_limit_bytes: Option<u64>,
    /// Budget of the prompt cache in bytes; 0 disables it. 256 MiB.
    pub prompt_cache_bytes: u64,
    /// The policy for conversations that outgrow the window.
    pub window: WindowPolicy,
    /// A chat template that replaces the directory's.
    pub chat_template: Option<String>,
    /// True loads an unloaded model again when a reply is requested. True.
    pub auto_reload: bool,
    /// Settings of the hub. A library reads no environment: an application passes its settings here.
    pub hub: HubOptions,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            run: RunOptions::default(),
            variant: None,
            quantize: QuantizeOptions::default(),
            max_context: 4096,
            memory_limit_bytes: None,
            prompt_cache_bytes: 256 << 20,
            window: WindowPolicy::Refuse,
            chat_template: None,
            auto_reload: true,
            hub: HubOptions::default(),
        }
    }
}

impl LoadOptions {
    /// Sets all options of running the model.
    pub fn with_run(mut self, run: RunOptions) -> Self {
        self.run = run;
        self
    }

    /// Sets the execution backend.
    pub fn with_backend(mut self, backend: Backend) -> Self {
        self.run.backend = backend;
        self
    }

    /// Sets the device of the MLX backend.
    pub fn with_device(mut self, device: Device) -> Self {
        self.run.device = Some(device);
        self
    }

    /// Sets the compute units that Apple's Core ML may use.
    pub fn with_compute_units(mut self, units: ComputeUnits) -> Self {
        self.run.compute_units = units;
        self
    }

    /// Sets the directory that caches packages compiled by Apple's Core ML.
    pub fn with_compiled_cache(mut self, dir: impl Into<PathBuf>) -> Self {
        self.run.compiled_cache = Some(dir.into());
        self
    }

    /// Sets the variant to open.
    pub fn with_variant(mut self, variant: impl Into<String>) -> Self {
        self.variant = Some(variant.into());
        self
    }

    /// Sets the bits and the cache of a float checkpoint that is quantized as it is opened.
    pub fn with_quantize(mut self, quantize: QuantizeOptions) -> Self {
        self.quantize = quantize;
        self
    }

    /// Sets the number of threads.
    pub fn with_threads(mut self, threads: usize) -> Self {
        self.run.threads = Some(threads);
        self
    }

    /// Sets the size of the context window in tokens.
    pub fn with_max_context(mut self, tokens: usize) -> Self {
        self.max_context = tokens;
        self
    }

    /// Sets the upper limit of the estimated memory in bytes.
    pub fn with_memory_limit(mut self, bytes: u64) -> Self {
        self.memory_limit_bytes = Some(bytes);
        self
    }

    /// Sets the arithmetic of activations.
    pub fn with_precision(mut self, precision: Precision) -> Self {
        self.run.precision = precision;
        self
    }

    /// Sets the budget of the prompt cache in bytes.
    pub fn with_prompt_cache(mut self, bytes: u64) -> Self {
        self.prompt_cache_bytes = bytes;
        self
    }

    /// Sets the policy for conversations that outgrow the window.
    pub fn with_window(mut self, policy: WindowPolicy) -> Self {
        self.window = policy;
        self
    }

    /// Replaces the directory's chat template.
    pub fn with_chat_template(mut self, source: impl Into<String>) -> Self {
        self.chat_template = Some(source.into());
        self
    }

    /// Switches automatic reloading on or off.
    pub fn with_auto_reload(mut self, reload: bool) -> Self {
        self.auto_reload = reload;
        self
    }

    /// Sets the settings of the hub.
    pub fn with_hub(mut self, hub: HubOptions) -> Self {
        self.hub = hub;
        self
    }

    /// Checks the options.
    ///
    /// # Errors
    /// The first invalid option.
    pub fn check(&self) -> Result<(), ChatError> {
        let invalid = |option, expected, found: usize| {
            Err(ChatError::Option { option, expected, found: found.to_string() })
        };
        match (self.run.threads, self.max_context) {
            (Some(0), _) => invalid("threads", "a whole number from 1", 0),
            (_, context @ (0 | 1)) => invalid("max_context", "a whole number from 2", context),
            _ => Ok(()),
        }
    }
}
