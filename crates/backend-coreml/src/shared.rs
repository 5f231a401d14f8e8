//! The part of a loaded model that its sequences share.

use std::sync::Arc;

use q35_architecture::TextConfig;

use crate::embedding::Embedding;
use crate::predictor::Predictor;
use crate::stage::Stage;

/// A loaded model, immutable.
pub(crate) struct Shared {
    pub(crate) config: TextConfig,
    pub(crate) predictors: Vec<Arc<dyn Predictor>>,
    pub(crate) embedding: Embedding,
    /// The function that processes a chunk, if the packages have one.
    pub(crate) prefill: Option<Stage>,
    /// The function that processes one token.
    pub(crate) decode: Stage,
    /// Capacity of the KV cache in tokens.
    pub(crate) context: usize,
    /// Name of the packages' form: "multifunction", "split" or "speech-swift".
    pub(crate) form: &'static str,
}

impl Shared {
    /// Snapshot layout: names form, capacity and executor, so that a snapshot is not restored into another kind of model.
    pub(crate) fn layout(&self) -> String {
        let caches = if self.decode.states.is_empty() { "io" } else { "state" };
        format!("coreml-1 {} {caches} {} {}", self.form, self.context, self.predictors[0].describe())
    }
}
