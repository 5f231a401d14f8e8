//! The description of a backend under test.

use q35_runtime::{Chat, ChatError, LoadOptions, Precision};

/// A function that opens the embedded model with options.
type Open = Box<dyn Fn(&LoadOptions) -> Result<Chat, ChatError>>;

/// A way to run the embedded model, and the cases that are known to fail on it.
pub struct Backend {
    pub(crate) name: &'static str,
    open: Open,
    options: LoadOptions,
    pub(crate) reuse: Reuse,
    pub(crate) alignment: usize,
    pub(crate) steps: usize,
    pub(crate) always_exact: bool,
    pub(crate) gaps: Vec<(&'static str, &'static str)>,
}

/// The required agreement of a reply that reused a state with the reply of a cold start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reuse {
    /// All log-probabilities are equal, bit for bit.
    BitForBit,
    /// The mean KL divergence of the next-token distributions is at most this, in nats.
    MeanKl(f64),
}

impl Backend {
    /// A backend that `open` opens, with 1024 tokens of context, prefill alignment 1 and bit-for-bit reuse.
    pub fn new(name: &'static str, open: impl Fn(&LoadOptions) -> Result<Chat, ChatError> + 'static) -> Self {
        let options = LoadOptions::default().with_max_context(1024);
        let (open, reuse) = (Box::new(open), Reuse::BitForBit);
        Self { name, open, options, reuse, alignment: 1, steps: 24, always_exact: false, gaps: Vec::new() }
    }

    /// Opens with 32-bit activations.
    pub fn with_exact(mut self) -> Self {
        self.options.run.precision = Precision::Exact;
        self
    }

    /// Replaces the options.
    pub fn with_options(mut self, options: LoadOptions) -> Self {
        self.options = options;
        self
    }

    /// Sets the required agreement with a cold start.
    pub fn with_reuse(mut self, reuse: Reuse) -> Self {
        self.reuse = reuse;
        self
    }

    /// Sets the prefill alignment in tokens: fewer than this many tokens are computed again when a prompt is reused.
    pub fn with_alignment(mut self, tokens: usize) -> Self {
        self.alignment = tokens;
        self
    }

    /// Sets the number of random steps: smaller for slow backends.
    pub fn with_steps(mut self, steps: usize) -> Self {
        self.steps = steps;
        self
    }

    /// Declares that the backend computes exactly even without the option.
    pub fn with_always_exact(mut self) -> Self {
        self.always_exact = true;
        self
    }

    /// Declares that a case is known to fail, with the reason.
    pub fn with_gap(mut self, case: &'static str, why: &'static str) -> Self {
        self.gaps.push((case, why));
        self
    }

    /// Opens the model.
    pub(crate) fn chat(&self) -> Chat {
        self.chat_with(|options| options)
    }

    /// Opens the model with changed options.
    pub(crate) fn chat_with(&self, change: impl FnOnce(LoadOptions) -> LoadOptions) -> Chat {
        (self.open)(&change(self.options.clone())).unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    /// Opens the model without a prompt cache.
    pub(crate) fn cold(&self) -> Chat {
        self.chat_with(|options| options.with_prompt_cache(0))
    }
}
