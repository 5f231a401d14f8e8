//! Gated softmax attention, the mixer of a full-attention layer.

use candle_core::{D, DType, Device, Result, Tensor};
use q35_architecture::TextConfig;

use crate::ops::{project, rms_norm, sigmoid, softmax};
use crate::tap::{Tap, Taps};

/// Weights of a gated softmax-attention mixer, `self_attn.*`.
#[derive(Clone, Debug)]
pub struct FullAttention {
    /// [2 x heads x head_dim, hidden]: query and gate of each head.
    pub q_proj: Tensor,
    /// [key/value heads x head_dim, hidden].
    pub k_proj: Tensor,
    /// [key/value heads x head_dim, hidden].
    pub v_proj: Tensor,
    /// `[head_dim]`, one added to the weight of the checkpoint.
    pub q_norm: Tensor,
    /// `[head_dim]`, one added.
    pub k_norm: Tensor,
    /// [hidden, heads x head_dim].
    pub o_proj: Tensor,
}

/// Rotated keys and values of all tokens so far, [batch x key/value heads, capacity, head_dim] each.
#[derive(Clone, Debug)]
pub struct KeyValueCache {
    pub(crate) keys: Tensor,
    pub(crate) values: Tensor,
}

impl KeyValueCache {
    /// Creates a cache with capacity for `capacity` tokens of one sequence.
    pub(crate) fn with_capacity(config: &TextConfig, capacity: usize, device: &Device) -> Result<Self> {
        Self::for_batch(config, 1, capacity, device)
    }

    /// Creates a cache with capacity for `capacity` tokens of each of `batch` sequences.
    pub(crate) fn for_batch(
        config: &TextConfig,
        batch: usize,
        capacity: usize,
        device: &Device,
    ) -> Result<Self> {
        let shape = (batch * config.num_key_value_heads, capacity, config.head_dim);
        Ok(Self {
            keys: Tensor::zeros(shape, DType::F32, device)?,
            values: Tensor::zeros(shape, DType::F32, device)?,
        })
    }

    pub(crate) fn capacity(&self) -> usize {
        self.keys.dims()[1]
    }

    /// Grows the cache to at least `needed` tokens, preserving the first `used`; at most to `limit` unless more are needed.
    pub(crate) fn grow(
        &mut self,
        config: &TextConfig,
        used: usize,
        needed: usize,
        limit: usize,
    ) -> Result<()> {
        if needed <= self.capacity() {
            return Ok(());
        }
        let capacity = needed.next_power_of_two().max(256).min(limit.max(needed));
        let larger = Self::with_capacity(config, capacity, self.keys.device())?;
        if used > 0 {
            larger.keys.slice_set(&self.keys.narrow(1, 0, used)?.contiguous()?, 1, 0)?;
            larger.values.slice_set(&self.values.narrow(1, 0, used)?.contiguous()?, 1, 0)?;
        }
        *self = larger;
        Ok(())
    }
}

/// Rotary position embedding (RoPE): cosines and sines for consecutive positions, [tokens, rotary / 2] each.
#[derive(Clone, Debug)]
pub struct RotaryEmbedding {
    cos: Tensor,
    sin: Tensor,
}

impl RotaryEmbedding {
    /// Computes the angles of positions `start..start + tokens`.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn new(config: &TextConfig, start: usize, tokens: usize, device: &Device) -> Result<Self> {
        let half = config.rotary_dim() / 2;
        // Frequencies and angles are rounded to f32 at the same places as in transformers; otherwise late positions differ.
        let frequency = |i: usize| {
            let exponent = (2 * i) as f32 / config.rotary_dim() as f32;
            1.0 / (config.rope_theta.powf(f64::from(exponent)) as f32)
        };
        let frequencies: Vec<f32> = (0..half).map(frequency).collect();
        let angles = (start..start + tokens)
            .flat_map(|position| frequencies.iter().map(move |f| f64::from(position as f32 * f)));
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles.map(|a| (a.cos() as f32, a.sin() as f32)).unzip();
        Ok(Self {
            cos: Tensor::from_vec(cos, (tokens, half), device)?,
            sin: Tensor::from_vec(sin, (tokens, half), device)?,
        })
    }

    /// Rotates the leading components of `x` [n, tokens, head_dim], pairing their first half with the second.
    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let half = self.cos.dim(1)?;
        let width = x.dim(D::Minus1)?;
        let first = x.narrow(D::Minus1, 0, half)?;
        let second = x.narrow(D::Minus1, half, half)?;
        let rotated_first = (first.broadcast_mul(&self.cos)? - second.broadcast_mul(&self.sin)?)?;
        let rotated_second = (second.broadcast_mul(&self.cos)? + first.broadcast_mul(&self.sin)?)?;
        let rest = x.narrow(D::Minus1, 2 * half, width - 2 * half)?;
        Tensor::cat(&[rotated_first, rotated_second, rest], D::Minus1)
    }
}

/// Limit of attention scores in memory, for long contexts.
const MAX_SCORES: usize = 1 << 23;

impl FullAttention {
    /// Computes the mixer's output for normalised `x` [batch, tokens, hidden]. With a cache, which the caller has grown,
    /// the tokens follow `position` earlier ones; without one they start the sequence.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        config: &TextConfig,
        rotation: &RotaryEmbedding,
        cache: Option<(&KeyValueCache, usize)>,
        taps: &mut Taps<'_>,
    ) -> Result<Tensor> {
        let (batch, tokens, _) = x.dims3()?;
        let (heads, kv_heads, width) =
            (config.num_attention_heads, config.num_key_value_heads, config.head_dim);
        taps(Tap::MixerInput, x)?;

        let query_and_gate = project(x, &self.q_proj)?.reshape((batch, tokens, heads, 2 * width))?;
        let queries = query_and_gate.narrow(D::Minus1, 0, width)?.contiguous()?;
        let gate = query_and_gate.narrow(D::Minus1, width, width)?.contiguous()?;
        // [batch x heads, tokens, width]
        let by_head = |t: Tensor, heads: usize| {
            t.transpose(1, 2)?.contiguous()?.reshape((batch * heads, tokens, width))
        };
        let queries = by_head(rms_norm(&queries, &self.q_norm, config.rms_norm_eps)?, heads)?;
        let queries = rotation.apply(&queries)?.affine((width as f64).powf(-0.5), 0.0)?;
        let keys = project(x, &self.k_proj)?.reshape((batch, tokens, kv_heads, width))?;
        let keys = by_head(rms_norm(&keys, &self.k_norm, config.rms_norm_eps)?, kv_heads)?;
        let keys = rotation.apply(&keys)?;
        let values = by_head(project(x, &self.v_proj)?.reshape((batch, tokens, kv_heads, width))?, kv_heads)?;

        let attended = match cache {
            None => attend(&queries, &keys, &values, 0)?,
            Some((cache, position)) => {
                cache.keys.slice_set(&keys.contiguous()?, 1, position)?;
                cache.values.slice_set(&values.contiguous()?, 1, position)?;
                attend(&queries, &cache.keys, &cache.values, position)?
            }
        };
        let attended = attended.reshape((batch, heads, tokens, width))?.transpose(1, 2)?.contiguous()?;
        let gated = (attended * sigmoid(&gate)?)?.reshape((batch, tokens, heads * width))?;
        taps(Tap::MixerOutput, &gated)?;
        project(&gated, &self.o_proj)
    }
}

/// Causal attention of scaled `queries` [n x group, tokens, width] over `keys` and `values` [n, >= position + tokens,
/// width]; `group` consecutive query heads share a key/value head. Returns [n x group, tokens, width].
fn attend(queries: &Tensor, keys: &Tensor, values: &Tensor, position: usize) -> Result<Tensor> {
    let (heads, tokens, width) = queries.dims3()?;
    let kv_heads = keys.dim(0)?;
    let group = heads / kv_heads;
    let rows = (MAX_SCORES / (heads * (position + tokens))).clamp(1, tokens);
    let mut outputs = Vec::with_capacity(tokens.div_ceil(rows));
    for start in (0..tokens).step_by(rows) {
        let rows = rows.min(tokens - start);
        let seen = position + start + rows;
        let queries =
            queries.narrow(1, start, rows)?.contiguous()?.reshape((kv_heads, group * rows, width))?;
        let keys = keys.narrow(1, 0, seen)?;
        let values = values.narrow(1, 0, seen)?;
        let scores = queries.matmul(&keys.t()?)?.reshape((heads, rows, seen))?;
        let scores = if rows == 1 {
            scores
        } else {
            scores.broadcast_add(&causal_mask(rows, seen, keys.device())?)?
        };
        let weights = softmax(&scores)?.reshape((kv_heads, group * rows, seen))?;
        outputs.push(weights.matmul(&values)?.reshape((heads, rows, width))?);
    }
    Tensor::cat(&outputs, 1)
}

/// Additive causal mask [rows, seen] for the last `rows` of `seen` tokens: minus infinity at later tokens.
fn causal_mask(rows: usize, seen: usize, device: &Device) -> Result<Tensor> {
    let masked = |row: usize, column: usize| column > seen - rows + row;
    let values: Vec<f32> = (0..rows * seen)
        .map(|at| if masked(at / seen, at % seen) { f32::NEG_INFINITY } else { 0.0 })
        .collect();
    Tensor::from_vec(values, (rows, seen), device)
}
