//! The graph of Qwen3.5's text model: one decoder layer.
//!
//! `h = x + mixer(norm(x)); out = h + down(silu(gate(n)) * up(n)), n = norm(h)`

mod full_attention;
mod linear_attention;

pub use full_attention::{FullAttention, KeyValueCache, RotaryEmbedding};
pub use linear_attention::{LinearAttention, LinearState};

use candle_core::{DType, Device, Result, Tensor};
use q35_architecture::{LayerKind, TextConfig};

use crate::ops::{project, rms_norm};
use crate::tap::{Tap, Taps, no_taps};

/// Weights of a layer. Norms hold the factor: one was added to the zero-centred weights of the checkpoint.
#[derive(Clone, Debug)]
pub struct Layer {
    /// `[hidden]`.
    pub input_layernorm: Tensor,
    /// The token mixer.
    pub mixer: Mixer,
    /// `[hidden]`.
    pub post_attention_layernorm: Tensor,
    /// [intermediate, hidden].
    pub gate_proj: Tensor,
    /// [intermediate, hidden].
    pub up_proj: Tensor,
    /// [hidden, intermediate].
    pub down_proj: Tensor,
}

/// Token mixer of a layer.
#[derive(Clone, Debug)]
pub enum Mixer {
    /// Gated DeltaNet.
    Linear(LinearAttention),
    /// Gated softmax attention.
    Full(FullAttention),
}

/// State of a layer after some tokens.
#[derive(Clone, Debug)]
pub enum LayerState {
    /// State of a linear-attention layer.
    Linear(LinearState),
    /// KV cache of a full-attention layer.
    Full(KeyValueCache),
}

impl Layer {
    /// Builds layer `index` from tensors in the checkpoint's convention, which `tensor` reads by their full names.
    ///
    /// # Errors
    /// The errors of `tensor`, and shapes that do not fit.
    pub fn new<E: From<candle_core::Error>>(
        config: &TextConfig,
        index: usize,
        tensor: &mut dyn FnMut(&str) -> std::result::Result<Tensor, E>,
    ) -> std::result::Result<Self, E> {
        let mut get = |name: &str| tensor(&format!("layers.{index}.{name}"));
        let input_layernorm = (get("input_layernorm.weight")? + 1.0)?;
        let mixer = match config.layer_types[index] {
            LayerKind::LinearAttention => Mixer::Linear(LinearAttention {
                in_proj_qkv: get("linear_attn.in_proj_qkv.weight")?,
                in_proj_z: get("linear_attn.in_proj_z.weight")?,
                in_proj_b: get("linear_attn.in_proj_b.weight")?,
                in_proj_a: get("linear_attn.in_proj_a.weight")?,
                conv1d: get("linear_attn.conv1d.weight")?.squeeze(1)?.t()?.contiguous()?,
                dt_bias: get("linear_attn.dt_bias")?,
                a_log: get("linear_attn.A_log")?,
                norm: get("linear_attn.norm.weight")?,
                out_proj: get("linear_attn.out_proj.weight")?,
            }),
            LayerKind::FullAttention => Mixer::Full(FullAttention {
                q_proj: get("self_attn.q_proj.weight")?,
                k_proj: get("self_attn.k_proj.weight")?,
                v_proj: get("self_attn.v_proj.weight")?,
                q_norm: (get("self_attn.q_norm.weight")? + 1.0)?,
                k_norm: (get("self_attn.k_norm.weight")? + 1.0)?,
                o_proj: get("self_attn.o_proj.weight")?,
            }),
        };
        Ok(Self {
            input_layernorm,
            mixer,
            post_attention_layernorm: (get("post_attention_layernorm.weight")? + 1.0)?,
            gate_proj: get("mlp.gate_proj.weight")?,
            up_proj: get("mlp.up_proj.weight")?,
            down_proj: get("mlp.down_proj.weight")?,
        })
    }

    /// Returns the residual stream after the layer for whole sequences from their first token; `x` and the result are
    /// [batch, tokens, hidden]. Differentiable with respect to every weight and `x`.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn forward(
        &self,
        x: &Tensor,
        config: &TextConfig,
        rotation: &RotaryEmbedding,
        taps: &mut Taps<'_>,
    ) -> Result<Tensor> {
        let normed = rms_norm(x, &self.input_layernorm, config.rms_norm_eps)?;
        let mixed = match &self.mixer {
            Mixer::Linear(mixer) => {
                let empty = LinearState::empty(config, x.dim(0)?, DType::F32, x.device())?;
                mixer.forward(&normed, config, &empty, taps)?.0
            }
            Mixer::Full(mixer) => mixer.forward(&normed, config, rotation, None, taps)?,
        };
        self.mlp(&(x + mixed)?, config, taps)
    }

    /// Returns the residual stream after the layer for the next tokens of several sequences, all at `position`. `x` and
    /// the result are [batch, tokens, hidden]. Updates `state`, which [`LayerState::for_batch`] created.
    ///
    /// # Errors
    /// Shapes that do not fit, or a state of another kind of layer.
    pub fn advance(
        &self,
        x: &Tensor,
        config: &TextConfig,
        rotation: &RotaryEmbedding,
        position: usize,
        state: &mut LayerState,
    ) -> Result<Tensor> {
        let mixed = self.mix(x, config, rotation, position, state)?;
        self.mlp(&mixed, config, &mut no_taps)
    }

    /// Computes `x + mixer(norm(x))`. Replaces a linear-attention `state`; writes into a KV cache from `position` on.
    pub(crate) fn mix(
        &self,
        x: &Tensor,
        config: &TextConfig,
        rotation: &RotaryEmbedding,
        position: usize,
        state: &mut LayerState,
    ) -> Result<Tensor> {
        let normed = rms_norm(x, &self.input_layernorm, config.rms_norm_eps)?;
        let mixed = match (&self.mixer, state) {
            (Mixer::Linear(mixer), LayerState::Linear(state)) => {
                let (mixed, after) = mixer.forward(&normed, config, state, &mut no_taps)?;
                *state = after;
                mixed
            }
            (Mixer::Full(mixer), LayerState::Full(cache)) => {
                mixer.forward(&normed, config, rotation, Some((cache, position)), &mut no_taps)?
            }
            _ => return Err(candle_core::Error::msg("the state is of another kind of layer")),
        };
        x + mixed
    }

    /// Computes `h + mlp(norm(h))`.
    pub(crate) fn mlp(&self, h: &Tensor, config: &TextConfig, taps: &mut Taps<'_>) -> Result<Tensor> {
        let normed = rms_norm(h, &self.post_attention_layernorm, config.rms_norm_eps)?;
        taps(Tap::MlpInput, &normed)?;
        let inner = (project(&normed, &self.gate_proj)?.silu()? * project(&normed, &self.up_proj)?)?;
        taps(Tap::MlpOutput, &inner)?;
        h + project(&inner, &self.down_proj)?
    }
}

/// Type of the recurrent state: f64 if the device supports it, see [`crate::delta_rule`].
fn recurrence_type(device: &Device) -> DType {
    if device.is_metal() { DType::F32 } else { DType::F64 }
}

impl LayerState {
    /// Creates the state before the first token of `batch` sequences, with capacity for `capacity` tokens each. The
    /// recurrent state is f32.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn for_batch(
        config: &TextConfig,
        index: usize,
        batch: usize,
        capacity: usize,
        device: &Device,
    ) -> Result<Self> {
        Ok(match config.layer_types[index] {
            LayerKind::LinearAttention => {
                Self::Linear(LinearState::empty(config, batch, DType::F32, device)?)
            }
            LayerKind::FullAttention => {
                Self::Full(KeyValueCache::for_batch(config, batch, capacity, device)?)
            }
        })
    }

    /// Creates the state before the first token of one sequence.
    pub(crate) fn empty(config: &TextConfig, index: usize, device: &Device) -> Result<Self> {
        Ok(match config.layer_types[index] {
            LayerKind::LinearAttention => {
                Self::Linear(LinearState::empty(config, 1, recurrence_type(device), device)?)
            }
            LayerKind::FullAttention => Self::Full(KeyValueCache::with_capacity(config, 0, device)?),
        })
    }

    /// Size in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        let (a, b) = match self {
            Self::Linear(state) => (&state.conv, &state.recurrent),
            Self::Full(cache) => (&cache.keys, &cache.values),
        };
        let bytes = |t: &Tensor| (t.elem_count() * t.dtype().size_in_bytes()) as u64;
        bytes(a) + bytes(b)
    }
}
