//! Qwen3.5 in MLX operations: builds the lazy graph from a state and token ids to logits and the next state. Nothing is
//! evaluated here.
//!
//! Letters: T tokens of a chunk, D hidden size.

use mlx_rs::error::Result;
use mlx_rs::fast::{self, ScaledDotProductAttentionMask};
use mlx_rs::ops::{self, indexing::TryIndexOp};
use mlx_rs::{Array, Dtype};
use q35_architecture::TextConfig;
use q35_inference::{HiddenStateAt, LogitsFor};

use crate::delta::{DeltaRule, Gates, Projected};
use crate::elementwise::Elementwise;
use crate::kv_cache::KeyValueCache;
use crate::state::{LayerState, State};
use crate::weights::{Attention, DeltaNet, Layer, Matrix, Mixer, ModelWeights};

/// Results of a chunk as unevaluated arrays.
pub(crate) struct Graph {
    /// The state after the chunk.
    pub after: State,
    /// Logits, [rows, vocab], f32.
    pub logits: Option<Array>,
    /// The residual stream at each observed location, [T, D] each.
    pub hidden: Vec<(HiddenStateAt, Array)>,
}

pub(crate) struct Network {
    pub config: TextConfig,
    pub weights: ModelWeights,
    /// Type of the activations: on a GPU that of the scales, on the CPU f32, because MLX's half precision is slow there.
    pub dtype: Dtype,
    pub delta: DeltaRule,
    pub elementwise: Elementwise,
}

impl Network {
    /// The state before the first token.
    pub fn empty_state(&self) -> Result<State> {
        let config = &self.config;
        let taps = config.linear_conv_kernel_dim as i32;
        let layer_state = |layer: &Layer| match &layer.mixer {
            Mixer::Linear(_) => Ok(LayerState::Linear {
                conv: ops::zeros_dtype(&[taps - 1, config.linear_conv_dim() as i32], self.dtype)?,
                recurrent: ops::zeros::<f32>(&[
                    config.linear_num_value_heads as i32,
                    config.linear_value_head_dim as i32,
                    config.linear_key_head_dim as i32,
                ])?,
            }),
            Mixer::Full(_) => {
                let (heads, width) = (config.num_key_value_heads as i32, config.head_dim as i32);
                KeyValueCache::new(heads, width, self.dtype).map(LayerState::Full)
            }
        };
        Ok(State { position: 0, layers: self.weights.layers.iter().map(layer_state).collect::<Result<_>>()? })
    }

    /// Builds the graph of a chunk: ids [T], u32.
    pub fn graph(
        &self,
        before: &State,
        ids: &Array,
        logits_for: LogitsFor,
        observe_hidden: bool,
    ) -> Result<Graph> {
        let mut after = before.clone();
        after.position += ids.dim(0) as usize;
        let offset = before.position as i32;
        let mut hidden = Vec::new();
        let mut x = self.weights.embedding.rows(ids, self.dtype)?;
        let mut observe = |location: HiddenStateAt, x: &Array| {
            if observe_hidden {
                hidden.push((location, x.clone()));
            }
        };
        observe(HiddenStateAt::Embedding, &x);
        for (index, (layer, state)) in self.weights.layers.iter().zip(&mut after.layers).enumerate() {
            let normed = self.norm(&x, &layer.input_layernorm)?;
            let mixed = match (&layer.mixer, state) {
                (Mixer::Linear(net), LayerState::Linear { conv, recurrent }) => {
                    self.linear_attention(net, &normed, conv, recurrent)?
                }
                (Mixer::Full(attention), LayerState::Full(cache)) => {
                    self.full_attention(attention, &normed, cache, offset)?
                }
                _ => unreachable!("states are created from the same layers"),
            };
            x = x.add(&mixed)?;
            observe(HiddenStateAt::AfterAttention(index), &x);
            let normed = self.norm(&x, &layer.post_attention_layernorm)?;
            let (gate, up) = (layer.gate_proj.apply(&normed)?, layer.up_proj.apply(&normed)?);
            x = x.add(&layer.down_proj.apply(&self.elementwise.swiglu(&gate, &up)?)?)?;
            observe(HiddenStateAt::AfterMlp(index), &x);
        }
        let out = self.norm(&x, &self.weights.norm)?;
        observe(HiddenStateAt::FinalNorm, &out);
        let tokens = out.dim(0);
        let logits = match logits_for {
            LogitsFor::None => None,
            LogitsFor::LastToken => Some(self.weights.head().apply(&out.try_index(tokens - 1..tokens)?)?),
            LogitsFor::AllTokens => Some(self.weights.head().apply(&out)?),
        };
        let logits = logits.map(|logits| logits.as_dtype(Dtype::Float32)).transpose()?;
        Ok(Graph { after, logits, hidden })
    }

    fn norm(&self, x: &Array, weight: &Array) -> Result<Array> {
        fast::rms_norm(x, Some(weight), self.config.rms_norm_eps as f32)
    }

    /// x [T, D] -> [T, D]; advances the convolution window and the recurrent state by T tokens.
    fn linear_attention(
        &self,
        net: &DeltaNet,
        x: &Array,
        conv: &mut Array,
        recurrent: &mut Array,
    ) -> Result<Array> {
        let (mixed, window) = self.elementwise.convolution(conv, &net.in_proj_qkv.apply(x)?, &net.conv1d)?;
        *conv = window;
        let projected = Projected { mixed, a: net.in_proj_a.apply(x)?, b: net.in_proj_b.apply(x)? };
        let gates = Gates { a_log: &net.a_log, dt_bias: &net.dt_bias };
        let (out, after) = self.delta.run(&projected, gates, recurrent)?;
        *recurrent = after;

        let gated = self.elementwise.gated_norm(&out, &net.in_proj_z.apply(x)?, &net.norm)?;
        net.out_proj.apply(&gated)
    }

    /// x [T, D] -> [T, D]; appends T tokens to the cache.
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
