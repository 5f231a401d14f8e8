//! The reference as a [`Model`].

use std::sync::Arc;

use q35_architecture::TextConfig;
use q35_inference::{Model, ModelMemory, RunError, Sequence, Weights};

use crate::loaded::Loaded;
use crate::sequence::ReferenceSequence;
use crate::{Device, LoadError};

/// The model in f32. Clones share the weights.
#[derive(Clone, Debug)]
pub struct Reference {
    inner: Arc<Loaded>,
}

impl Reference {
    /// Reads all weights, each once, as f32.
    ///
    /// # Errors
    /// A weight cannot be read or has the wrong size, or the device cannot be used.
    pub fn load(weights: &dyn Weights, device: Device) -> Result<Self, LoadError> {
        Ok(Self { inner: Arc::new(Loaded::read(weights, device)?) })
    }
}

impl Model for Reference {
    fn config(&self) -> &TextConfig {
        &self.inner.config
    }

    fn describe(&self) -> String {
        format!("float reference (candle, {}, f32)", self.inner.kind.name())
    }

    fn new_sequence(&self, max_context: usize) -> Result<Box<dyn Sequence>, RunError> {
        Ok(Box::new(ReferenceSequence::new(self.inner.clone(), max_context)))
    }

    fn context_limit(&self) -> Option<usize> {
        None
    }

    fn prefill_alignment(&self) -> usize {
        crate::delta_rule::CHUNK
    }

    fn memory(&self) -> ModelMemory {
        let lookup =
            if self.inner.config.tie_word_embeddings { 0 } else { 4 * self.inner.embedding.elem_count() };
        ModelMemory {
            mapped_bytes: 0,
            owned_bytes: self.inner.bytes,
            weight_bytes_per_token: self.inner.bytes - lookup as u64,
        }
    }
}
