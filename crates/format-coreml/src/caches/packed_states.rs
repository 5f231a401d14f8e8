//! Keys and values of all layers in one state; the linear-attention layers' states packed by kind into two inputs and
//! two outputs.

use q35_architecture::TextConfig;
use q35_format_mil::build::Tensor;
use q35_format_mil::{DType, TensorType};

use super::{CacheShapes, Caches, Result, scatter, slice_first_axis, update_state, with_first_axis};
use crate::WriteError;
use crate::tokens::Tokens;
use crate::weight_store::Function;

/// The state `kv_cache` of all full-attention layers, and the inputs `conv_state` and `recurrent_state` of all
/// linear-attention layers.
pub(crate) struct PackedStates {
    shapes: CacheShapes,
    /// fp16 [2 x full layers, K, C, D]: keys and values of each layer in turn.
    keys_values: Option<Tensor>,
    /// Keys and values of the layers so far, [2, K, C, D] each. They are written to the state in one operation: Core ML
    /// would have to update it at a computed position otherwise.
    new_keys_values: Vec<Tensor>,
    linear: Option<PackedLinear>,
}

/// States of the linear-attention layers, [layers, ...] as inputs, one tensor per layer as outputs.
struct PackedLinear {
    conv_state: Tensor,
    recurrent_state: Tensor,
    new_conv_states: Vec<Tensor>,
    new_recurrent_states: Vec<Tensor>,
}

impl PackedStates {
    /// Adds the inputs and the state to the function.
    pub(crate) fn new(
        f: &mut Function<'_>,
        config: &TextConfig,
        context: usize,
        dtype: DType,
    ) -> Result<Self> {
        let shapes = CacheShapes::new(config, context);
        let (linear, full) = (shapes.linear_layers.len(), shapes.full_layers.len());
        let mut input = |name: &str, shape: &[usize]| {
            f.input(name, TensorType::new(dtype, &with_first_axis(linear, shape)))
        };
        let packed = match linear {
            0 => None,
            _ => Some(PackedLinear {
                conv_state: input("conv_state", &shapes.conv_state)?,
                recurrent_state: input("recurrent_state", &shapes.recurrent_state)?,
                new_conv_states: Vec::new(),
                new_recurrent_states: Vec::new(),
            }),
        };
        // Core ML's states are fp16 whatever the type of activations.
        let keys_values = match full {
            0 => None,
            _ => {
                let shape = with_first_axis(2 * full, &shapes.keys);
                Some(f.state("kv_cache", TensorType::new(DType::F16, &shape))?)
            }
        };
        Ok(Self { shapes, keys_values, new_keys_values: Vec::new(), linear: packed })
    }

    fn linear(&mut self, layer: usize) -> Result<&mut PackedLinear> {
        self.linear.as_mut().ok_or(WriteError::Cache { layer })
    }
}

impl Caches for PackedStates {
    fn conv_state(&mut self, f: &mut Function<'_>, layer: usize) -> Result<Tensor> {
        let index = self.shapes.index_of(layer)?;
        slice_first_axis(f, &self.linear(layer)?.conv_state, index, 1)
    }

    fn set_conv_state(&mut self, _f: &mut Function<'_>, layer: usize, new: &Tensor) -> Result<()> {
        self.linear(layer)?.new_conv_states.push(new.clone());
        Ok(())
    }

    fn recurrent_state(&mut self, f: &mut Function<'_>, layer: usize) -> Result<Tensor> {
        let index = self.shapes.index_of(layer)?;
        slice_first_axis(f, &self.linear(layer)?.recurrent_state, index, 1)
    }

    fn set_recurrent_state(&mut self, _f: &mut Function<'_>, layer: usize, new: &Tensor) -> Result<()> {
        self.linear(layer)?.new_recurrent_states.push(new.clone());
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
        let first = 2 * self.shapes.index_of(layer)?;
        let state = self.keys_values.as_ref().ok_or(WriteError::Cache { layer })?;
        let rows = f.cast(&rows, DType::F16)?;
        let new = match tokens.one_hot_positions() {
            Some(positions) => {
                let old = f.read_state(state)?;
                let old = slice_first_axis(f, &old, first, 2)?;
                let new = scatter(f, &old, &rows, positions)?;
                self.new_keys_values.push(new.clone());
                new
            }
            None => {
                let all = update_state(f, state, &rows, first, tokens)?;
                slice_first_axis(f, &all, first, 2)?
            }
        };
        Ok((slice_first_axis(f, &new, 0, 1)?, slice_first_axis(f, &new, 1, 1)?))
    }

    fn finish(&mut self, f: &mut Function<'_>) -> Result<()> {
        f.set_scope("caches");
        let concat =
            |f: &mut Function<'_>, tensors: &[Tensor]| f.concat(&tensors.iter().collect::<Vec<_>>(), 0);
        if let (Some(state), false) = (&self.keys_values, self.new_keys_values.is_empty()) {
            let all = concat(f, &self.new_keys_values)?;
            f.write_state(state, &all)?;
        }
        if let Some(linear) = &self.linear {
            for (tensors, name) in [
                (&linear.new_conv_states, "conv_state_out"),
                (&linear.new_recurrent_states, "recurrent_state_out"),
            ] {
                let all = concat(f, tensors)?;
                f.output(&all, name)?;
            }
        }
        Ok(())
    }
}
