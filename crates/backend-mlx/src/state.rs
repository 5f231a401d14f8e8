//! The state of a sequence as MLX arrays.

use mlx_rs::Array;

use crate::kv_cache::KeyValueCache;

/// The state of one layer.
#[derive(Clone)]
pub(crate) enum LayerState {
    /// Linear attention.
    Linear {
        /// Convolution window, [taps - 1, channels].
        conv: Array,
        /// Recurrent state, [value heads, value width, key width], f32.
        recurrent: Array,
    },
    /// Full attention.
    Full(KeyValueCache),
}

impl LayerState {
    pub fn arrays(&self) -> [&Array; 2] {
        match self {
            Self::Linear { conv, recurrent } => [conv, recurrent],
            Self::Full(cache) => [&cache.keys, &cache.values],
        }
    }
}

/// The state of one sequence.
#[derive(Clone)]
pub(crate) struct State {
    /// Number of tokens so far.
    pub position: usize,
    pub layers: Vec<LayerState>,
}

impl State {
    pub fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.layers.iter().flat_map(LayerState::arrays)
    }

    pub fn size_bytes(&self) -> usize {
        self.arrays().map(Array::nbytes).sum()
    }
}
