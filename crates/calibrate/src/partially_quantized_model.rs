//! A float model of which some weights are already replaced by quantized ones.

use std::collections::BTreeMap;

use candle_core::{Device, Result, Tensor, Var};
use q35_architecture::{TensorSpec, TextConfig, tensor_table};
use q35_inference::Weights;
use q35_quant::FloatType;
use q35_reference::Layer;

use crate::CalibrateError;
use crate::quantized_matrix::QuantizedMatrix;

/// Replacement of a float tensor, in the checkpoint's convention.
#[derive(Clone, Debug, PartialEq)]
pub enum Replacement {
    /// A quantized matrix.
    Quantized(QuantizedMatrix),
    /// Changed float values, in row-major order.
    Float(Vec<f32>),
}

/// Weights by name: the replacement where there is one, otherwise the float model's values.
pub(crate) struct PartiallyQuantizedModel<'a> {
    weights: &'a dyn Weights,
    pub(crate) config: TextConfig,
    pub(crate) table: BTreeMap<String, TensorSpec>,
    pub(crate) device: Device,
    /// Storage type of scales, biases and most float tensors.
    pub(crate) float: FloatType,
    pub(crate) replaced: BTreeMap<String, Replacement>,
}

impl<'a> PartiallyQuantizedModel<'a> {
    pub(crate) fn new(weights: &'a dyn Weights, float: FloatType, device: Device) -> Self {
        let config = weights.config().clone();
        let table = tensor_table(&config).into_iter().map(|spec| (spec.name.clone(), spec)).collect();
        Self { weights, config, table, device, float, replaced: BTreeMap::new() }
    }

    /// Values of the float model, in row-major order.
    pub(crate) fn float_values(&self, name: &str) -> std::result::Result<Vec<f32>, CalibrateError> {
        let mut values = Vec::new();
        self.weights.read_rows(name, 0..self.table[name].shape[0], &mut values)?;
        Ok(values)
    }

    /// Values of the partially quantized model, in row-major order.
    pub(crate) fn values(&self, name: &str) -> std::result::Result<Vec<f32>, CalibrateError> {
        match self.replaced.get(name) {
            Some(Replacement::Quantized(matrix)) => Ok(matrix.dequantize()),
            Some(Replacement::Float(values)) => Ok(values.clone()),
            None => self.float_values(name),
        }
    }

    /// The tensor in its shape, f32, on the device.
    pub(crate) fn tensor(&self, name: &str) -> std::result::Result<Tensor, CalibrateError> {
        Ok(Tensor::from_vec(self.values(name)?, self.table[name].shape.as_slice(), &self.device)?)
    }

    /// The decoder layer `index`.
    pub(crate) fn layer(&self, index: usize) -> std::result::Result<Layer, CalibrateError> {
        Layer::new(&self.config, index, &mut |name| self.tensor(name))
    }

    /// The decoder layer `index` with variables as weights, and these by name.
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

    /// Name of the head's matrix: the embedding where the two are tied.
    pub(crate) fn head_name(&self) -> &'static str {
        if self.config.tie_word_embeddings { "embed_tokens.weight" } else { "lm_head.weight" }
    }

    /// Factor of the final norm, `[hidden]`: one added to the zero-centred weight of the checkpoint.
    pub(crate) fn norm_factor(&self) -> std::result::Result<Tensor, CalibrateError> {
        Ok((self.tensor("norm.weight")? + 1.0)?)
    }
}

/// Looks up windows of equal length in `table` [vocab, hidden]: [windows, length, hidden].
pub(crate) fn embed(table: &Tensor, windows: &[&[u32]]) -> Result<Tensor> {
    let length = windows[0].len();
    let ids = Tensor::from_vec(windows.concat(), windows.len() * length, table.device())?;
    table.index_select(&ids, 0)?.reshape((windows.len(), length, ()))
}
