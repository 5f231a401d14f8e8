//! A loaded model.

use q35_architecture::TextConfig;

use crate::{RunError, Sequence};

/// A loaded model. Weights are shared: any number of [`Sequence`]s may run over one model, from any threads.
pub trait Model: Send + Sync {
    /// The sizes of the model.
    fn config(&self) -> &TextConfig;

    /// Backend, arithmetic and format, for people: "CPU (AVX-512 VNNI), MLX int4 group 64, exact".
    fn describe(&self) -> String;

    /// An empty sequence with room for `max_context` tokens.
    ///
    /// # Errors
    /// The context is longer than this model can hold (a Core ML package has a fixed cache).
    fn new_sequence(&self, max_context: usize) -> Result<Box<dyn Sequence>, RunError>;

    /// Longest context of a sequence in tokens, where the artefact itself fixes one.
    fn context_limit(&self) -> Option<usize>;

    /// Alignment of prefill chunks in tokens: results do not depend on how a prompt is cut as long as every cut is a
    /// multiple of it. 1 means that results never depend on the cuts.
    fn prefill_alignment(&self) -> usize;

    /// True if prefill computes the logits of all its tokens, so that [`crate::LogitsFor::AllTokens`] costs nothing
    /// more. False if prefill computes only the last token's, so that `AllTokens` decodes token by token.
    fn prefill_returns_all_logits(&self) -> bool {
        true
    }

    /// Memory of the loaded weights.
    fn memory(&self) -> ModelMemory;
}

/// Memory of a loaded model, in bytes. Sequences report their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ModelMemory {
    /// Weights in mapped files: resident once read, reclaimed by the system under memory pressure.
    pub mapped_bytes: u64,
    /// Weights and tables on the process's own heap.
    pub owned_bytes: u64,
    /// Bytes of weights that decoding one token reads.
    pub weight_bytes_per_token: u64,
}
