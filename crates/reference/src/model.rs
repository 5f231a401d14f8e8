//! The loaded model.

use std::ops::Range;
use std::sync::Arc;

use candle_core::Tensor;
use q35_architecture::{TensorSpec, TextConfig, tensor_table};
use q35_inference::{Model, ModelMemory, RunError, Sequence, WeightError, Weights};

use rayon::prelude::*;

use crate::sequence::ReferenceSequence;
use crate::{Device, DeviceError, Layer, LayerState, open_device};

/// Why the reference could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// A tensor could not be read.
    #[error(transparent)]
    Weights(#[from] WeightError),
    /// A tensor has another size than the configuration says.
    #[error(
        "tensor `{name}` does not fit the configuration\n  expected: {expected:?}\n  found:    {found} numbers"
    )]
    Size {
        /// The tensor.
        name: String,
        /// Shape by the configuration.
        expected: Vec<usize>,
        /// Numbers read.
        found: usize,
    },
    /// The device could not be used.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// candle failed.
    #[error("candle failed while loading: {0}")]
    Candle(#[from] candle_core::Error),
}

/// The model in f32. Cheap to clone: the weights are shared.
#[derive(Clone, Debug)]
pub struct Reference {
    inner: Arc<Loaded>,
}

#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) config: TextConfig,
    pub(crate) device: candle_core::Device,
    pub(crate) embedding: Tensor,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: Tensor,
    pub(crate) head: Tensor,
    /// Of a sequence before its first token: zeros, shared by all until they are replaced, and caches without room.
    pub(crate) empty_states: Vec<LayerState>,
    kind: Device,
    bytes: u64,
}

impl Reference {
    /// Reads all weights, each once, as f32.
    ///
    /// # Errors
    /// A weight cannot be read or has the wrong size, or the device cannot be used.
    pub fn load(weights: &dyn Weights, device: Device) -> Result<Self, LoadError> {
        let config = weights.config().clone();
        let kind = device;
        let device = open_device(kind)?;
        let table = tensor_table(&config);
        let mut read = |name: &str| {
            let spec = table.iter().find(|spec| spec.name == name);
            let spec =
                spec.ok_or_else(|| WeightError { name: name.into(), message: "not in the table".into() })?;
            read_tensor(weights, spec, &device)
        };
        let embedding = read("embed_tokens.weight")?;
        let layers = (0..config.num_hidden_layers)
            .map(|index| Layer::new(&config, index, &mut read))
            .collect::<Result<_, _>>()?;
        let norm = (read("norm.weight")? + 1.0)?;
        let head = if config.tie_word_embeddings { embedding.clone() } else { read("lm_head.weight")? };
        let empty_states = (0..config.num_hidden_layers)
            .map(|index| LayerState::empty(&config, index, &device))
            .collect::<Result<_, _>>()?;
        let numbers: usize = table.iter().map(|spec| spec.shape.iter().product::<usize>()).sum();
        let bytes = 4 * numbers as u64;
        Ok(Self {
            inner: Arc::new(Loaded {
                config,
                device,
                embedding,
                layers,
                norm,
                head,
                empty_states,
                kind,
                bytes,
            }),
        })
    }
}

/// Numbers of a tensor that are read in one go.
const READ_AT_A_TIME: usize = 1 << 18;

/// One tensor as f32 in its table's shape.
pub(crate) fn read_tensor(
    weights: &dyn Weights,
    spec: &TensorSpec,
    device: &candle_core::Device,
) -> Result<Tensor, LoadError> {
    read_rows(weights, &spec.name, 0..spec.shape[0], &spec.shape[1..], device)
}

/// Some rows of a tensor as f32, [rows, ..row]. Every thread brings a part of them to f32: dequantizing is what loading
/// takes its time for.
pub(crate) fn read_rows(
    weights: &dyn Weights,
    name: &str,
    rows: Range<usize>,
    row: &[usize],
    device: &candle_core::Device,
) -> Result<Tensor, LoadError> {
    let width = row.iter().product::<usize>().max(1);
    let step = (READ_AT_A_TIME / width).max(1);
    let mut values = vec![0.0; rows.len() * width];
    values.par_chunks_mut(step * width).enumerate().try_for_each_init(Vec::new, |part, (index, out)| {
        let start = rows.start + index * step;
        let wanted = start..start + out.len() / width;
        weights.read_rows(name, wanted.clone(), part)?;
        if part.len() != out.len() {
            let expected = [&[wanted.len()], row].concat();
            return Err(LoadError::Size { name: name.to_owned(), expected, found: part.len() });
        }
        out.copy_from_slice(part);
        Ok(())
    })?;
    Ok(Tensor::from_vec(values, [&[rows.len()], row].concat(), device)?)
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
