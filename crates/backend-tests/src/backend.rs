//! A way to run the embedded model.

use q35_runtime::{Chat, ChatError, LoadOptions, Precision};

/// Opens the embedded model with some options.
type Open = Box<dyn Fn(&LoadOptions) -> Result<Chat, ChatError>>;

/// A way to run the embedded model, and what is known not to work there.
pub struct Backend {
    pub(crate) name: &'static str,
    open: Open,
    options: LoadOptions,
    pub(crate) reuse: Reuse,
    pub(crate) grid: usize,
    pub(crate) steps: usize,
    pub(crate) always_exact: bool,
    pub(crate) gaps: Vec<(&'static str, &'static str)>,
}

/// How near a reply must be to that of a cold start, when something was reused for it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reuse {
    /// Every log-probability the same, bit for bit.
    BitForBit,
    /// The mean Kullback-Leibler divergence of the next-token distributions at most this.
    MeanKl(f64),
}

impl Backend {
    /// A backend that `open` opens, with 1024 tokens of context, that reuses anywhere and bit for bit.
    pub fn new(name: &'static str, open: impl Fn(&LoadOptions) -> Result<Chat, ChatError> + 'static) -> Self {
        let options = LoadOptions::default().with_max_context(1024);
        let (open, reuse) = (Box::new(open), Reuse::BitForBit);
        Self { name, open, options, reuse, grid: 1, steps: 24, always_exact: false, gaps: Vec::new() }
    }

    /// Computes exactly.
    pub fn with_exact(mut self) -> Self {
        self.options.run.precision = Precision::Exact;
        self
    }

    /// Opens with these options instead.
    pub fn with_options(mut self, options: LoadOptions) -> Self {
        self.options = options;
        self
    }

    /// Sets how near to a cold start a reply must be.
    pub fn with_reuse(mut self, reuse: Reuse) -> Self {
        self.reuse = reuse;
        self
    }

    /// Sets the grid on which prompts are reused: up to so many tokens are computed again.
    pub fn with_grid(mut self, tokens: usize) -> Self {
        self.grid = tokens;
        self
    }

    /// Sets how much is done to conversations at random: less where computing is slow.
    pub fn with_steps(mut self, steps: usize) -> Self {
        self.steps = steps;
        self
    }

    /// Says that it computes exactly even where that is not asked for.
    pub fn with_one_way_to_compute(mut self) -> Self {
        self.always_exact = true;
        self
    }

    /// Says that a case is known not to hold, and why.
    pub fn with_gap(mut self, case: &'static str, why: &'static str) -> Self {
        self.gaps.push((case, why));
        self
    }

    /// The model, opened as usual.
    pub(crate) fn chat(&self) -> Chat {
        self.chat_with(|options| options)
    }

    /// The model, opened with changed options.
    pub(crate) fn chat_with(&self, change: impl FnOnce(LoadOptions) -> LoadOptions) -> Chat {
        (self.open)(&change(self.options.clone())).unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    /// The model without any prompt cache.
    pub(crate) fn cold(&self) -> Chat {
        self.chat_with(|options| options.with_prompt_cache(0))
    }
}
