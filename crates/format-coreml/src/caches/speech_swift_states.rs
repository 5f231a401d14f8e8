//! Every cache a state, in speech-swift's shapes.

use std::collections::BTreeMap;

use q35_architecture::TextConfig;
use q35_format_mil::build::Tensor;
use q35_format_mil::{DType, TensorType};

use super::{CacheShapes, Caches, Result, update_state, with_first_axis};
use crate::WriteError;
use crate::tokens::Tokens;
use crate::weight_store::Function;

/// The fp16 states `conv_state_{i}`, `recurrent_state_{i}`, `k_cache_{i}` and `v_cache_{i}`.
pub(crate) struct SpeechSwiftStates {
    states: BTreeMap<usize, CacheState>,
    /// Type of activations.
    dtype: DType,
}

/// States of one layer.
enum CacheState {
    Linear {
        /// [1, N, W - 1].
        conv_state: Tensor,
        /// [1, v, d, e].
        recurrent_state: Tensor,
    },
    Full {
        /// [1, K, C, D].
        keys: Tensor,
        /// [1, K, C, D].
        values: Tensor,
    },
}

impl SpeechSwiftStates {
    /// Adds the states to the function.
    pub(crate) fn new(
        f: &mut Function<'_>,
        config: &TextConfig,
        context: usize,
        dtype: DType,
    ) -> Result<Self> {
        let shapes = CacheShapes::new(config, context);
        let mut state = |name: String, shape: Vec<usize>| f.state(&name, TensorType::new(DType::F16, &shape));
        let mut states = BTreeMap::new();
        let [window, channels] = shapes.conv_state;
        // The linear layers' states come first, as in speech-swift's own packages.
        for &layer in &shapes.linear_layers {
            let linear = CacheState::Linear {
                conv_state: state(format!("conv_state_{layer}"), vec![1, channels, window])?,
                recurrent_state: state(
                    format!("recurrent_state_{layer}"),
                    with_first_axis(1, &shapes.recurrent_state),
                )?,
            };
            states.insert(layer, linear);
        }
        for &layer in &shapes.full_layers {
            let full = CacheState::Full {
                keys: state(format!("k_cache_{layer}"), with_first_axis(1, &shapes.keys))?,
                values: state(format!("v_cache_{layer}"), with_first_axis(1, &shapes.keys))?,
            };
            states.insert(layer, full);
        }
        Ok(Self { states, dtype })
    }

    /// The states of a linear-attention layer: convolution window and recurrent state.
    fn linear(&self, layer: usize) -> Result<(&Tensor, &Tensor)> {
        match self.states.get(&layer) {
            Some(CacheState::Linear { conv_state, recurrent_state }) => Ok((conv_state, recurrent_state)),
            _ => Err(WriteError::Cache { layer }),
        }
    }
}

impl Caches for SpeechSwiftStates {
    fn conv_state(&mut self, f: &mut Function<'_>, layer: usize) -> Result<Tensor> {
        let state = f.read_state(self.linear(layer)?.0)?;
        let state = f.transpose(&state, &[0, 2, 1])?;
        Ok(f.cast(&state, self.dtype)?)
    }

    fn set_conv_state(&mut self, f: &mut Function<'_>, layer: usize, new: &Tensor) -> Result<()> {
        let new = f.transpose(new, &[0, 2, 1])?;
        let new = f.cast(&new, DType::F16)?;
        Ok(f.write_state(self.linear(layer)?.0, &new)?)
    }

    fn recurrent_state(&mut self, f: &mut Function<'_>, layer: usize) -> Result<Tensor> {
        let state = f.read_state(self.linear(layer)?.1)?;
        Ok(f.cast(&state, self.dtype)?)
    }

    fn set_recurrent_state(&mut self, f: &mut Function<'_>, layer: usize, new: &Tensor) -> Result<()> {
        let new = f.cast(new, DType::F16)?;
        Ok(f.write_state(self.linear(layer)?.1, &new)?)
    }

    fn append_keys_values(
        &mut self,
        f: &mut Function<'_>,
        layer: usize,
        new_keys: &Tensor,
        new_values: &Tensor,
        tokens: &Tokens,
    ) -> Result<(Tensor, Tensor)> {
        let Some(CacheState::Full { keys, values }) = self.states.get(&layer) else {
            return Err(WriteError::Cache { layer });
        };
        let keys = update_state(f, keys, new_keys, 0, tokens)?;
        let values = update_state(f, values, new_values, 0, tokens)?;
        Ok((keys, values))
    }

    fn finish(&mut self, f: &mut Function<'_>) -> Result<()> {
        f.set_scope("caches");
        Ok(())
    }
}
