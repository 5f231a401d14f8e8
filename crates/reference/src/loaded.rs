//! Loading of weights as f32.

use std::ops::Range;

use candle_core::Tensor;
use q35_architecture::{TensorSpec, TextConfig, tensor_table};
use q35_inference::{WeightError, Weights};
use rayon::prelude::*;

use crate::{Device, DeviceError, Layer, LayerState, open_device};

/// An error while loading the reference.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// A tensor could not be read.
    #[error(transparent)]
    Weights(#[from] WeightError),
    /// A tensor whose size contradicts the configuration.
    #[error(
        "tensor `{name}` does not fit the configuration\n  expected: {expected:?}\n  found:    {found} numbers"
    )]
    Size {
        /// The tensor.
        name: String,
        /// Shape according to the configuration.
        expected: Vec<usize>,
        /// Number of elements read.
        found: usize,
    },
    /// The device could not be used.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// candle failed.
    #[error("candle failed while loading: {0}")]
    Candle(#[from] candle_core::Error),
}

/// The weights, shared by a model and its sequences. Norms hold the factor.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) config: TextConfig,
    pub(crate) device: candle_core::Device,
    pub(crate) embedding: Tensor,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: Tensor,
    pub(crate) head: Tensor,
    /// State of a sequence before its first token: zeros, shared by all sequences until replaced, and KV caches of
    /// capacity 0.
    pub(crate) empty_states: Vec<LayerState>,
    pub(crate) kind: Device,
    pub(crate) bytes: u64,
}

impl Loaded {
    /// Reads all weights, each once, as f32.
    pub(crate) fn read(weights: &dyn Weights, device: Device) -> Result<Self, LoadError> {
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
        Ok(Self { config, device, embedding, layers, norm, head, empty_states, kind, bytes })
    }
}

/// Number of elements that a thread reads at once.
const READ_CHUNK: usize = 1 << 18;

/// Reads a tensor as f32 in the shape of its spec.
pub(crate) fn read_tensor(
    weights: &dyn Weights,
    spec: &TensorSpec,
    device: &candle_core::Device,
) -> Result<Tensor, LoadError> {
    read_rows(weights, &spec.name, 0..spec.shape[0], &spec.shape[1..], device)
}

/// Reads some rows of a tensor as f32 [rows, ..row], in parallel because dequantizing dominates loading.
pub(crate) fn read_rows(
    weights: &dyn Weights,
    name: &str,
    rows: Range<usize>,
    row: &[usize],
    device: &candle_core::Device,
) -> Result<Tensor, LoadError> {
    let width = row.iter().product::<usize>().max(1);
    let step = (READ_CHUNK / width).max(1);
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
