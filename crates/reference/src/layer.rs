//! One decoder layer: h = x + mixer(norm(x)); out = h + down(silu(gate(n)) * up(n)), n = norm(h).

use candle_core::{DType, Device, Result, Tensor};
use q35_architecture::{LayerKind, TextConfig};

use crate::full_attention::{FullAttention, KeyValueCache, Rotation};
use crate::linear_attention::{LinearAttention, LinearState};
use crate::ops::{project, rms_norm};

/// A place in a layer where rows enter projections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tap {
    /// Into the mixer's input projections: `in_proj_*`, or `q_proj`, `k_proj`, `v_proj`.
    MixerInput,
    /// Into `out_proj` or `o_proj`.
    MixerOutput,
    /// Into `gate_proj` and `up_proj`.
    MlpInput,
    /// Into `down_proj`.
    MlpOutput,
}

/// Sees the rows [batch, tokens, width] that enter projections.
pub type Taps<'a> = dyn FnMut(Tap, &Tensor) -> Result<()> + 'a;

/// Looks at nothing.
///
/// # Errors
/// None.
pub fn no_taps(_: Tap, _: &Tensor) -> Result<()> {
    Ok(())
}

/// A layer's weights. All norms here hold the factor itself: one was added to zero-centred ones.
#[derive(Clone, Debug)]
pub struct Layer {
    /// `[hidden]`.
    pub input_layernorm: Tensor,
    /// What mixes tokens.
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

/// A layer's mixer.
#[derive(Clone, Debug)]
pub enum Mixer {
    /// Gated DeltaNet.
    Linear(LinearAttention),
    /// Gated softmax attention.
    Full(FullAttention),
}

/// What a layer remembers of the tokens before.
#[derive(Clone, Debug)]
pub enum LayerState {
    /// Of a linear-attention layer.
    Linear(LinearState),
    /// Of a full-attention layer.
    Full(KeyValueCache),
}

impl Layer {
    /// Builds layer `index` from tensors in the checkpoint's convention, asked for by their full names.
    ///
    /// # Errors
    /// Those of `tensor`, and shapes that do not fit.
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

    /// The residual stream after the mixer, and after the layer, for whole sequences from their first token: `x`
    /// [batch, tokens, hidden]. Differentiable by every weight and by `x`.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn forward(
        &self,
        x: &Tensor,
        config: &TextConfig,
        rotation: &Rotation,
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

    /// The residual stream after the layer for the tokens of several sequences that all stand at `position`: `x`
    /// [batch, tokens, hidden], on top of a `state` made by [`LayerState::for_batch`], which is moved on.
    ///
    /// # Errors
    /// Shapes that do not fit, or a state of another kind of layer.
    pub fn advance(
        &self,
        x: &Tensor,
        config: &TextConfig,
        rotation: &Rotation,
        position: usize,
        state: &mut LayerState,
    ) -> Result<Tensor> {
        let mixed = self.mix(x, config, rotation, position, state)?;
        self.mlp(&mixed, config, &mut no_taps)
    }

    /// The mixer half on top of `state`, which is replaced (the cache: written behind `position`).
    pub(crate) fn mix(
        &self,
        x: &Tensor,
        config: &TextConfig,
        rotation: &Rotation,
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

    /// The MLP half.
    pub(crate) fn mlp(&self, h: &Tensor, config: &TextConfig, taps: &mut Taps<'_>) -> Result<Tensor> {
        let normed = rms_norm(h, &self.post_attention_layernorm, config.rms_norm_eps)?;
        taps(Tap::MlpInput, &normed)?;
        let inner = (project(&normed, &self.gate_proj)?.silu()? * project(&normed, &self.up_proj)?)?;
        taps(Tap::MlpOutput, &inner)?;
        h + project(&inner, &self.down_proj)?
    }
}

/// f64 where the device has it: see [`crate::delta_rule`].
fn recurrence_type(device: &Device) -> DType {
    if device.is_metal() { DType::F32 } else { DType::F64 }
}

impl LayerState {
    /// Before the first token of `batch` sequences, with room for `capacity` tokens of each, the recurrence in f32.
    ///
    /// # Errors
    /// The device has no room.
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

    /// Before the first token of one sequence.
    pub(crate) fn empty(config: &TextConfig, index: usize, device: &Device) -> Result<Self> {
        Ok(match config.layer_types[index] {
            LayerKind::LinearAttention => {
                Self::Linear(LinearState::empty(config, 1, recurrence_type(device), device)?)
            }
            LayerKind::FullAttention => Self::Full(KeyValueCache::with_capacity(config, 0, device)?),
        })
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> u64 {
        let (a, b) = match self {
            Self::Linear(state) => (&state.conv, &state.recurrent),
            Self::Full(cache) => (&cache.keys, &cache.values),
        };
        let bytes = |t: &Tensor| (t.elem_count() * t.dtype().size_in_bytes()) as u64;
        bytes(a) + bytes(b)
    }
}
