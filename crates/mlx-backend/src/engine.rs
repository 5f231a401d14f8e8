//! The model in MLX operations, and the sequences that run over it. Lives on the worker's thread.
//!
//! Letters: T tokens of a piece, D hidden size.

use std::collections::HashMap;

use mlx_rs::error::Result;
use mlx_rs::fast::{self, ScaledDotProductAttentionMask};
use mlx_rs::ops::{self, indexing::TryIndexOp};
use mlx_rs::transforms::async_eval;
use mlx_rs::{Array, Dtype};
use q35_model::{Rows, Site, TextConfig};

use crate::attention::KeyValueCache;
use crate::delta::{self, DeltaRule};
use crate::weights::{Attention, DeltaNet, Layer, Matrix, Mixer, ModelWeights};

/// The state of one layer.
#[derive(Clone)]
pub(crate) enum LayerState {
    Linear {
        /// The last rows before the convolution, [taps - 1, channels].
        conv: Array,
        /// [value heads, key width, value width], f32.
        recurrent: Array,
    },
    Full(KeyValueCache),
}

/// The state of one sequence.
#[derive(Clone)]
pub(crate) struct State {
    pub position: usize,
    pub layers: Vec<LayerState>,
}

/// What a piece gave, as numbers on the host.
#[derive(Default)]
pub(crate) struct Produced {
    /// Rows of logits, [rows, vocab].
    pub logits: Vec<f32>,
    /// The residual stream, each [T, D].
    pub hidden: Vec<(Site, Vec<f32>)>,
}

pub(crate) struct Engine {
    pub config: TextConfig,
    pub weights: ModelWeights,
    /// Type of activations: the scales' own on a GPU, f32 on the CPU, where MLX's half precision is very slow.
    pub dtype: Dtype,
    pub delta: DeltaRule,
    pub sequences: HashMap<u64, State>,
}

impl Engine {
    pub fn empty_state(&self) -> Result<State> {
        let config = &self.config;
        let taps = config.linear_conv_kernel_dim as i32;
        let of = |layer: &Layer| match &layer.mixer {
            Mixer::Linear(_) => Ok(LayerState::Linear {
                conv: ops::zeros_dtype(&[taps - 1, config.linear_conv_dim() as i32], self.dtype)?,
                recurrent: ops::zeros::<f32>(&[
                    config.linear_num_value_heads as i32,
                    config.linear_key_head_dim as i32,
                    config.linear_value_head_dim as i32,
                ])?,
            }),
            Mixer::Full(_) => {
                let (heads, width) = (config.num_key_value_heads as i32, config.head_dim as i32);
                KeyValueCache::new(heads, width, self.dtype).map(LayerState::Full)
            }
        };
        Ok(State { position: 0, layers: self.weights.layers.iter().map(of).collect::<Result<_>>()? })
    }

    /// Consumes a piece of tokens. The caller keeps the old state until this has succeeded.
    pub fn piece(&self, state: &State, ids: &[u32], rows: Rows, watch: bool) -> Result<(State, Produced)> {
        let mut next = state.clone();
        next.position += ids.len();
        let offset = state.position as i32;
        let mut watched = Vec::new();
        let ids = Array::from_slice(ids, &[ids.len() as i32]);
        let mut x = self.weights.embedding.rows(&ids, self.dtype)?;
        let mut watching = |site: Site, x: &Array| {
            if watch {
                watched.push((site, x.clone()));
            }
        };
        watching(Site::Embedding, &x);
        for (index, (layer, state)) in self.weights.layers.iter().zip(&mut next.layers).enumerate() {
            let normed = self.norm(&x, &layer.input_layernorm)?;
            let mixed = match (&layer.mixer, state) {
                (Mixer::Linear(net), LayerState::Linear { conv, recurrent }) => {
                    self.linear_attention(net, &normed, conv, recurrent)?
                }
                (Mixer::Full(attention), LayerState::Full(cache)) => {
                    self.full_attention(attention, &normed, cache, offset)?
                }
                _ => unreachable!("states are made from the same layers"),
            };
            x = x.add(&mixed)?;
            watching(Site::Mixer(index), &x);
            let normed = self.norm(&x, &layer.post_attention_layernorm)?;
            let gate = silu(&layer.gate_proj.apply(&normed)?)?;
            x = x.add(&layer.down_proj.apply(&gate.multiply(&layer.up_proj.apply(&normed)?)?)?)?;
            watching(Site::Layer(index), &x);
        }
        let out = self.norm(&x, &self.weights.norm)?;
        watching(Site::FinalNorm, &out);
        let tokens = out.dim(0);
        let logits = match rows {
            Rows::None => None,
            Rows::Last => Some(self.weights.head().apply(&out.try_index(tokens - 1..tokens)?)?),
            Rows::All => Some(self.weights.head().apply(&out)?),
        };
        let logits = logits.map(|rows| rows.as_dtype(Dtype::Float32)).transpose()?;
        // One graph for everything: the device works on the states while the logits are read and sampled.
        let states = next.layers.iter().flat_map(LayerState::arrays);
        async_eval(states.chain(&logits))?;
        let mut produced = Produced::default();
        if let Some(rows) = &logits {
            produced.logits = to_host(rows)?;
        }
        for (site, x) in watched {
            produced.hidden.push((site, to_host(&x)?));
        }
        Ok((next, produced))
    }

    fn norm(&self, x: &Array, weight: &Array) -> Result<Array> {
        fast::rms_norm(x, Some(weight), self.config.rms_norm_eps as f32)
    }

    /// x [T, D] -> [T, D]; the states move on.
    fn linear_attention(
        &self,
        net: &DeltaNet,
        x: &Array,
        conv: &mut Array,
        recurrent: &mut Array,
    ) -> Result<Array> {
        let config = &self.config;
        let tokens = x.dim(0);
        let (key_heads, value_heads) =
            (config.linear_num_key_heads as i32, config.linear_num_value_heads as i32);
        let (key_dim, value_dim) = (config.linear_key_head_dim as i32, config.linear_value_head_dim as i32);

        let window = ops::concatenate(&[conv.clone(), net.in_proj_qkv.apply(x)?], 0)?;
        let taps = config.linear_conv_kernel_dim as i32;
        let mut mixed = window.try_index(0..tokens)?.multiply(&net.conv1d.try_index(0)?)?;
        for tap in 1..taps {
            let shifted = window.try_index(tap..tap + tokens)?;
            mixed = mixed.add(&shifted.multiply(&net.conv1d.try_index(tap)?)?)?;
        }
        *conv = window.try_index(tokens..tokens + taps - 1)?;
        let mixed = silu(&mixed)?;

        let keys = key_heads * key_dim;
        let heads_first = |x: Array, heads: i32| x.reshape(&[tokens, heads, -1])?.swap_axes(0, 1);
        let shared = |x: Array| -> Result<Array> {
            let x = delta::l2_normalised(&heads_first(x, key_heads)?)?;
            // Each key head serves consecutive value heads.
            let times = value_heads / key_heads;
            let spread = ops::broadcast_to(x.expand_dims(1)?, &[key_heads, times, tokens, key_dim])?;
            spread.reshape(&[value_heads, tokens, key_dim])
        };
        let scale = Array::from_f32((key_dim as f32).sqrt().recip());
        let step = net.in_proj_a.apply(x)?.as_dtype(Dtype::Float32)?.add(&net.dt_bias)?;
        let softplus = ops::logaddexp(&step, Array::from_f32(0.0))?;
        let inputs = delta::Inputs {
            q: shared(mixed.try_index((.., 0..keys))?)?.multiply(&scale)?,
            k: shared(mixed.try_index((.., keys..2 * keys))?)?,
            v: heads_first(mixed.try_index((.., 2 * keys..))?, value_heads)?.as_dtype(Dtype::Float32)?,
            log_decay: net.a_log.exp()?.multiply(&softplus)?.negative()?.swap_axes(0, 1)?,
            beta: ops::sigmoid(net.in_proj_b.apply(x)?.as_dtype(Dtype::Float32)?)?.swap_axes(0, 1)?,
        };
        let (out, after) = self.delta.run(&inputs, recurrent)?;
        *recurrent = after;

        let out = out.swap_axes(0, 1)?; // [T, value heads, value width]
        let z =
            net.in_proj_z.apply(x)?.reshape(&[tokens, value_heads, value_dim])?.as_dtype(Dtype::Float32)?;
        let gated = self.norm(&out, &net.norm)?.multiply(&silu(&z)?)?;
        net.out_proj.apply(&gated.reshape(&[tokens, value_heads * value_dim])?.as_dtype(self.dtype)?)
    }

    /// x [T, D] -> [T, D]; the cache grows by T rows.
    fn full_attention(
        &self,
        attention: &Attention,
        x: &Array,
        cache: &mut KeyValueCache,
        offset: i32,
    ) -> Result<Array> {
        let config = &self.config;
        let (tokens, width) = (x.dim(0), config.head_dim as i32);
        let (heads, kv_heads) = (config.num_attention_heads as i32, config.num_key_value_heads as i32);
        let both = attention.q_proj.apply(x)?.reshape(&[tokens, heads, 2 * width])?;
        let (query, gate) = (both.try_index((.., .., 0..width))?, both.try_index((.., .., width..))?);
        let rotated = |x: &Array, norm: &Array| -> Result<Array> {
            let x = self.norm(x, norm)?.swap_axes(0, 1)?.expand_dims(0)?; // [1, heads, T, width]
            let (dims, theta) = (config.rotary_dim() as i32, config.rope_theta as f32);
            fast::rope(&x, dims, false, theta, 1.0, offset, None)
        };
        let key_value = |matrix: &Matrix| matrix.apply(x)?.reshape(&[tokens, kv_heads, width]);
        let queries = rotated(&query, &attention.q_norm)?;
        let keys = rotated(&key_value(&attention.k_proj)?, &attention.k_norm)?;
        let values = key_value(&attention.v_proj)?.swap_axes(0, 1)?.expand_dims(0)?;
        let (keys, values) = cache.append(&keys, &values)?;
        let scale = (width as f32).sqrt().recip();
        let mask = (tokens > 1).then_some(ScaledDotProductAttentionMask::Causal);
        let out = fast::scaled_dot_product_attention(&queries, &keys, &values, scale, mask, None)?;
        let out = out.squeeze_axes(&[0])?.swap_axes(0, 1)?.multiply(ops::sigmoid(&gate)?)?;
        attention.o_proj.apply(&out.reshape(&[tokens, heads * width])?)
    }
}

impl LayerState {
    pub fn arrays(&self) -> [&Array; 2] {
        match self {
            Self::Linear { conv, recurrent } => [conv, recurrent],
            Self::Full(cache) => [&cache.keys, &cache.values],
        }
    }

    pub fn size_bytes(&self) -> usize {
        self.arrays().iter().map(|array| array.nbytes()).sum()
    }
}

fn silu(x: &Array) -> Result<Array> {
    x.multiply(ops::sigmoid(x)?)
}

/// The numbers of an array, row-major, f32.
pub(crate) fn to_host(array: &Array) -> Result<Vec<f32>> {
    let array = array.as_dtype(Dtype::Float32)?.contiguous()?;
    array.eval()?;
    Ok(array.as_slice::<f32>().to_vec())
}
