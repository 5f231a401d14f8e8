//! Every cache an input and an output, layer by layer.

use std::collections::BTreeMap;

use q35_architecture::{LayerKind, TextConfig};
use q35_format_mil::build::Tensor;
use q35_format_mil::{DType, TensorType};

use super::{CacheShapes, Caches, Result, scatter, slice_first_axis, update, with_first_axis};
use crate::WriteError;
use crate::tokens::Tokens;
use crate::weight_store::Function;

/// Inputs `conv_state_{i}`, `recurrent_state_{i}` and `kv_cache_{i}`, outputs `conv_state_out_{i}` and so on.
pub(crate) struct LayerIo {
    inputs: BTreeMap<usize, CacheInput>,
    outputs: Vec<CacheOutput>,
    /// Type of activations, inputs and outputs.
    dtype: DType,
}

/// Inputs of one layer.
enum CacheInput {
    Linear {
        /// [1, W - 1, N].
        conv_state: Tensor,
        /// [1, v, d, e].
        recurrent_state: Tensor,
    },
    Full {
        /// [2, K, C, D]: keys, then values.
        keys_values: Tensor,
    },
}

/// A new cache and the name of its output.
struct CacheOutput {
    name: String,
    tensor: Tensor,
}

impl LayerIo {
    /// Adds the inputs to the function.
    pub(crate) fn new(
        f: &mut Function<'_>,
        config: &TextConfig,
        context: usize,
        dtype: DType,
    ) -> Result<Self> {
        let shapes = CacheShapes::new(config, context);
        let mut input = |name: String, shape: Vec<usize>| f.input(&name, TensorType::new(dtype, &shape));
        let mut inputs = BTreeMap::new();
        for (layer, kind) in config.layer_types.iter().enumerate() {
            let cache = match kind {
                LayerKind::LinearAttention => CacheInput::Linear {
                    conv_state: input(format!("conv_state_{layer}"), with_first_axis(1, &shapes.conv_state))?,
                    recurrent_state: input(
                        format!("recurrent_state_{layer}"),
                        with_first_axis(1, &shapes.recurrent_state),
                    )?,
                },
                LayerKind::FullAttention => CacheInput::Full {
                    keys_values: input(format!("kv_cache_{layer}"), with_first_axis(2, &shapes.keys))?,
                },
            };
            inputs.insert(layer, cache);
        }
        Ok(Self { inputs, outputs: Vec::new(), dtype })
    }

    fn output(&mut self, name: String, tensor: &Tensor) {
        self.outputs.push(CacheOutput { name, tensor: tensor.clone() });
    }
}

impl Caches for LayerIo {
    fn conv_state(&mut self, _f: &mut Function<'_>, layer: usize) -> Result<Tensor> {
        match self.inputs.get(&layer) {
            Some(CacheInput::Linear { conv_state, .. }) => Ok(conv_state.clone()),
            _ => Err(WriteError::Cache { layer }),
        }
    }

    fn set_conv_state(&mut self, _f: &mut Function<'_>, layer: usize, new: &Tensor) -> Result<()> {
        self.output(format!("conv_state_out_{layer}"), new);
        Ok(())
    }

    fn recurrent_state(&mut self, _f: &mut Function<'_>, layer: usize) -> Result<Tensor> {
        match self.inputs.get(&layer) {
            Some(CacheInput::Linear { recurrent_state, .. }) => Ok(recurrent_state.clone()),
            _ => Err(WriteError::Cache { layer }),
        }
    }

    fn set_recurrent_state(&mut self, _f: &mut Function<'_>, layer: usize, new: &Tensor) -> Result<()> {
        self.output(format!("recurrent_state_out_{layer}"), new);
        Ok(())
    }

    fn append_keys_values(
        &mut self,
        f: &mut Function<'_>,
        layer: usize,
        keys: &Tensor,
        values: &Tensor,
        tokens: &Tokens,
    ) -> Result<(Tensor, Tensor)> {
        let rows = f.concat(&[keys, values], 0)?;
        let rows = f.cast(&rows, self.dtype)?;
        let Some(CacheInput::Full { keys_values: old }) = self.inputs.get(&layer) else {
            return Err(WriteError::Cache { layer });
        };
        let new = match tokens.one_hot_positions() {
            Some(positions) => scatter(f, old, &rows, positions)?,
            None => update(f, old, &rows, 0, tokens)?,
        };
        self.output(format!("kv_cache_out_{layer}"), &new);
        Ok((slice_first_axis(f, &new, 0, 1)?, slice_first_axis(f, &new, 1, 1)?))
    }

    fn finish(&mut self, f: &mut Function<'_>) -> Result<()> {
        f.set_scope("caches");
        for CacheOutput { name, tensor } in &self.outputs {
            f.output(tensor, name)?;
        }
        Ok(())
    }
}
