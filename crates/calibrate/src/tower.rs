//! The model under work: a float model's weights, some of them replaced.

use std::collections::BTreeMap;

use candle_core::{Device, Result, Tensor, Var};
use q35_architecture::{TensorSpec, TextConfig, tensor_table};
use q35_inference::Weights;
use q35_quant::FloatType;
use q35_reference::Layer;

use crate::CalibrateError;
use crate::grid::Grid;

/// What stands in a float tensor's place, in the checkpoint's convention.
#[derive(Clone, Debug, PartialEq)]
pub enum Replacement {
    /// A quantized matrix.
    Grid(Grid),
    /// Other numbers.
    Float(Vec<f32>),
}

/// Weights by name: replaced where they have been, else the float model's.
pub(crate) struct Tower<'a> {
    weights: &'a dyn Weights,
    pub(crate) config: TextConfig,
    pub(crate) table: BTreeMap<String, TensorSpec>,
    pub(crate) device: Device,
    /// The type that scales, biases and most float tensors are stored in.
    pub(crate) float: FloatType,
    pub(crate) replaced: BTreeMap<String, Replacement>,
}

impl<'a> Tower<'a> {
    pub(crate) fn new(weights: &'a dyn Weights, float: FloatType, device: Device) -> Self {
        let config = weights.config().clone();
        let table = tensor_table(&config).into_iter().map(|spec| (spec.name.clone(), spec)).collect();
        Self { weights, config, table, device, float, replaced: BTreeMap::new() }
    }

    /// The float model's numbers.
    pub(crate) fn float_values(&self, name: &str) -> std::result::Result<Vec<f32>, CalibrateError> {
        let mut values = Vec::new();
        self.weights.read_rows(name, 0..self.table[name].shape[0], &mut values)?;
        Ok(values)
    }

    pub(crate) fn values(&self, name: &str) -> std::result::Result<Vec<f32>, CalibrateError> {
        match self.replaced.get(name) {
            Some(Replacement::Grid(grid)) => Ok(grid.dequantize()),
            Some(Replacement::Float(values)) => Ok(values.clone()),
            None => self.float_values(name),
        }
    }

    pub(crate) fn tensor(&self, name: &str) -> std::result::Result<Tensor, CalibrateError> {
        Ok(Tensor::from_vec(self.values(name)?, self.table[name].shape.as_slice(), &self.device)?)
    }

    pub(crate) fn layer(&self, index: usize) -> std::result::Result<Layer, CalibrateError> {
        Layer::new(&self.config, index, &mut |name| self.tensor(name))
    }

    /// The layer made of variables, and these by name.
    pub(crate) fn variable_layer(
        &self,
        index: usize,
    ) -> std::result::Result<(Layer, Vec<(String, Var)>), CalibrateError> {
        let mut variables = Vec::new();
        let layer = Layer::new(&self.config, index, &mut |name| {
            let variable = Var::from_tensor(&self.tensor(name)?)?;
            let tensor = variable.as_tensor().clone();
            variables.push((name.to_owned(), variable));
            Ok::<_, CalibrateError>(tensor)
        })?;
        Ok((layer, variables))
    }

    /// The head's name: the embedding where tied.
    pub(crate) fn head_name(&self) -> &'static str {
        if self.config.tie_word_embeddings { "embed_tokens.weight" } else { "lm_head.weight" }
    }

    /// The factor of the final norm, [hidden].
    pub(crate) fn norm_factor(&self) -> std::result::Result<Tensor, CalibrateError> {
        Ok((self.tensor("norm.weight")? + 1.0)?)
    }
}

/// Rows of `table` [vocab, hidden] for windows of equal length: [windows, length, hidden].
pub(crate) fn embed(table: &Tensor, windows: &[&[u32]]) -> Result<Tensor> {
    let length = windows[0].len();
    let ids = Tensor::from_vec(windows.concat(), windows.len() * length, table.device())?;
    table.index_select(&ids, 0)?.reshape((windows.len(), length, ()))
}
