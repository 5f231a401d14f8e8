//! State of a sequence: convolution windows, recurrent states, KV caches.

use q35_architecture::{LayerKind, TextConfig};
use q35_inference::{RecurrentState, RunError, Snapshot, SnapshotTensor, StateType};
use q35_kernels::{ArenaSlice, DeltaShape, HugePageArena, KV_BLOCK, KvCache, Mode};

use crate::weights::delta_shape;

/// The state of all layers.
#[derive(Debug)]
pub(crate) struct State {
    shape: DeltaShape,
    head_width: usize,
    mode: Mode,
    pub layers: Vec<LayerState>,
    /// Memory of the recurrent states and KV caches.
    pub arena: HugePageArena,
}

#[derive(Debug)]
pub(crate) enum LayerState {
    Linear {
        /// [key heads][taps - 1][channels of a key head]
        convolution: Vec<f32>,
        /// [value heads][[`DeltaShape::recurrent_state`]]
        recurrent: ArenaSlice<f32>,
    },
    /// One cache per key/value head.
    Full(Vec<KvCache>),
}

impl State {
    pub(crate) fn new(config: &TextConfig, mode: Mode) -> Self {
        let shape = delta_shape(config);
        let mut arena = HugePageArena::default();
        let layers = config.layer_types.iter().map(|kind| match kind {
            LayerKind::LinearAttention => LayerState::Linear {
                convolution: vec![0.0; shape.key_heads * shape.convolution_state()],
                recurrent: arena.alloc_zeroed(shape.value_heads * shape.recurrent_state()),
            },
            LayerKind::FullAttention => {
                let heads = 0..config.num_key_value_heads;
                LayerState::Full(heads.map(|_| KvCache::new(mode, config.head_dim)).collect())
            }
        });
        let layers = layers.collect();
        Self { shape, head_width: config.head_dim, mode, layers, arena }
    }

    pub(crate) fn reset(&mut self) {
        for layer in &mut self.layers {
            match layer {
                LayerState::Linear { convolution, recurrent } => {
                    convolution.fill(0.0);
                    recurrent.fill(0.0);
                }
                LayerState::Full(caches) => caches.iter_mut().for_each(KvCache::clear),
            }
        }
    }

    pub(crate) fn size_bytes(&self) -> usize {
        let sizes = self.layers.iter().map(|layer| match layer {
            LayerState::Linear { convolution, recurrent } => 4 * (convolution.len() + recurrent.len()),
            LayerState::Full(caches) => caches.iter().map(KvCache::size_bytes).sum(),
        });
        sizes.sum()
    }

    pub(crate) fn recurrent_states(&self) -> Vec<RecurrentState> {
        let states = self.layers.iter().enumerate().filter_map(|(layer, state)| match state {
            LayerState::Linear { recurrent, .. } => {
                let heads = recurrent.chunks_exact(self.shape.recurrent_state());
                let values = heads.flat_map(|head| self.shape.row_major_state(head)).collect();
                Some(RecurrentState { layer, values })
            }
            LayerState::Full(_) => None,
        });
        states.collect()
    }

    fn layout(&self) -> &'static str {
        match self.mode {
            Mode::Exact => "cpu-exact-2",
            Mode::Fast => "cpu-fast-5",
        }
    }

    pub(crate) fn snapshot(&self, position: usize) -> Snapshot {
        let shape = self.shape;
        let mut tensors = Vec::new();
        for (layer, state) in self.layers.iter().enumerate() {
            let mut push = |part: &str, dtype, shape: Vec<usize>, data| {
                let name = format!("layers.{layer}.{part}");
                tensors.push(SnapshotTensor { name, dtype, shape, data });
            };
            match state {
                LayerState::Linear { convolution, recurrent } => {
                    let rows = vec![shape.key_heads, shape.taps - 1, shape.head_channels()];
                    push("convolution", StateType::F32, rows, to_bytes(convolution));
                    let blocks = shape.value_width.div_ceil(16);
                    let states = vec![shape.value_heads, blocks, shape.key_width, 16];
                    push("recurrent", StateType::F32, states, to_bytes(recurrent));
                }
                LayerState::Full(caches) => {
                    let mut data = Vec::with_capacity(caches.iter().map(|c| c.saved_bytes(position)).sum());
                    caches.iter().for_each(|cache| cache.save(position, &mut data));
                    let (dtype, dims) = self.cache_shape(caches.len(), position, data.len());
                    push("cache", dtype, dims, data);
                }
            }
        }
        Snapshot { position, layout: self.layout().to_owned(), tensors }
    }

    fn cache_shape(&self, heads: usize, position: usize, bytes: usize) -> (StateType, Vec<usize>) {
        let blocks = position.div_ceil(KV_BLOCK);
        match self.mode {
            Mode::Exact => (StateType::F32, vec![heads, blocks, 2, KV_BLOCK, self.head_width]),
            Mode::Fast => (StateType::I8, vec![heads, blocks, bytes / (heads * blocks).max(1)]),
        }
    }

    /// Restores the state of a snapshot; changes nothing on error.
    pub(crate) fn restore(&mut self, snapshot: &Snapshot, max_context: usize) -> Result<(), RunError> {
        let mismatch = |expected: String, found: String| RunError::Snapshot { expected, found };
        if snapshot.layout != self.layout() {
            return Err(mismatch(self.layout().to_owned(), snapshot.layout.clone()));
        }
        if snapshot.position > max_context {
            return Err(mismatch(
                format!("at most {max_context} tokens"),
                format!("{} tokens", snapshot.position),
            ));
        }
        let expected = self.expected_sizes(snapshot.position);
        if expected.len() != snapshot.tensors.len() {
            return Err(mismatch(
                format!("{} tensors", expected.len()),
                format!("{} tensors", snapshot.tensors.len()),
            ));
        }
        let mut parts = Vec::with_capacity(expected.len());
        for (name, bytes) in expected {
            let tensor = snapshot.tensor(&name).filter(|tensor| tensor.data.len() == bytes);
            let Some(tensor) = tensor else {
                let found =
                    snapshot.tensor(&name).map_or("none".to_owned(), |t| format!("{} bytes", t.data.len()));
                return Err(mismatch(format!("`{name}` of {bytes} bytes"), found));
            };
            parts.push(&tensor.data);
        }
        let mut parts = parts.into_iter();
        let mut next = || parts.next().expect("as many parts as expected");
        for layer in &mut self.layers {
            match layer {
                LayerState::Linear { convolution, recurrent } => {
                    from_bytes(next(), convolution);
                    from_bytes(next(), recurrent);
                }
                LayerState::Full(caches) => {
                    let mut saved = &next()[..];
                    for cache in caches {
                        let (bytes, rest) = saved.split_at(cache.saved_bytes(snapshot.position));
                        cache.load(snapshot.position, bytes, &mut self.arena);
                        saved = rest;
                    }
                }
            }
        }
        Ok(())
    }

    /// Name and size in bytes of each tensor of a snapshot, in order.
    fn expected_sizes(&self, position: usize) -> Vec<(String, usize)> {
        let mut sizes = Vec::new();
        for (layer, state) in self.layers.iter().enumerate() {
            match state {
                LayerState::Linear { convolution, recurrent } => {
                    sizes.push((format!("layers.{layer}.convolution"), 4 * convolution.len()));
                    sizes.push((format!("layers.{layer}.recurrent"), 4 * recurrent.len()));
                }
                LayerState::Full(caches) => {
                    let bytes = caches.iter().map(|cache| cache.saved_bytes(position)).sum();
                    sizes.push((format!("layers.{layer}.cache"), bytes));
                }
            }
        }
        sizes
    }
}

fn to_bytes(values: &[f32]) -> Vec<u8> {
    bytemuck::cast_slice(values).to_vec()
}

fn from_bytes(bytes: &[u8], values: &mut [f32]) {
    bytemuck::cast_slice_mut(values).copy_from_slice(bytes);
}
