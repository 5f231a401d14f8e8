//! Gated DeltaNet, the mixer of a linear-attention layer.
//!
//! K and V below are the widths of all key and all value heads together.

use candle_core::{D, DType, Device, Result, Tensor};
use q35_architecture::TextConfig;

use crate::delta_rule::{DeltaInputs, delta_rule};
use crate::ops::{l2_norm, project, rms_norm, sigmoid, softplus};
use crate::tap::{Tap, Taps};

/// Weights of a gated DeltaNet mixer, `linear_attn.*`.
#[derive(Clone, Debug)]
pub struct LinearAttention {
    /// [2K + V, hidden].
    pub in_proj_qkv: Tensor,
    /// [V, hidden].
    pub in_proj_z: Tensor,
    /// [value heads, hidden].
    pub in_proj_b: Tensor,
    /// [value heads, hidden].
    pub in_proj_a: Tensor,
    /// Convolution kernel [kernel, 2K + V]; the last row applies to the current token.
    pub conv1d: Tensor,
    /// [value heads].
    pub dt_bias: Tensor,
    /// [value heads].
    pub a_log: Tensor,
    /// [value width], the weight of the checkpoint.
    pub norm: Tensor,
    /// [hidden, V].
    pub out_proj: Tensor,
}

/// State of a linear-attention layer.
#[derive(Clone, Debug)]
pub struct LinearState {
    /// Convolution window [batch, kernel - 1, 2K + V], oldest token first.
    pub conv: Tensor,
    /// Recurrent state [batch x value heads, key width, value width], in the type of the recurrence.
    pub recurrent: Tensor,
}

impl LinearState {
    /// Creates the state before the first token of `batch` sequences. The recurrence is computed in `dtype`.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn empty(config: &TextConfig, batch: usize, dtype: DType, device: &Device) -> Result<Self> {
        let zeros = |shape: (usize, usize, usize), dtype| Tensor::zeros(shape, dtype, device);
        Ok(Self {
            conv: zeros((batch, config.linear_conv_kernel_dim - 1, config.linear_conv_dim()), DType::F32)?,
            recurrent: zeros(
                (
                    batch * config.linear_num_value_heads,
                    config.linear_key_head_dim,
                    config.linear_value_head_dim,
                ),
                dtype,
            )?,
        })
    }
}

impl LinearAttention {
    /// Returns the mixer's output for normalised `x` [batch, tokens, hidden] after `state`, and the next state.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        config: &TextConfig,
        state: &LinearState,
        taps: &mut Taps<'_>,
    ) -> Result<(Tensor, LinearState)> {
        let (batch, tokens, _) = x.dims3()?;
        let (key_dim, value_dim) = (config.linear_key_dim(), config.linear_value_dim());
        let (key_heads, value_heads) = (config.linear_num_key_heads, config.linear_num_value_heads);
        let (key_width, value_width) = (config.linear_key_head_dim, config.linear_value_head_dim);
        taps(Tap::MixerInput, x)?;

        let qkv = Tensor::cat(&[&state.conv, &project(x, &self.in_proj_qkv)?], 1)?;
        let conv = qkv.narrow(1, tokens, config.linear_conv_kernel_dim - 1)?.contiguous()?;
        let mixed = self.convolve(&qkv, tokens)?;

        let by_key_head = |start: usize| -> Result<Tensor> {
            let heads =
                mixed.narrow(D::Minus1, start, key_dim)?.reshape((batch, tokens, key_heads, key_width))?;
            let shared = value_heads / key_heads;
            let heads = l2_norm(&heads)?
                .unsqueeze(3)?
                .broadcast_as((batch, tokens, key_heads, shared, key_width))?
                .reshape((batch, tokens, value_heads, key_width))?;
            by_head(&heads)
        };
        let queries = by_key_head(0)?.affine((key_width as f64).powf(-0.5), 0.0)?;
        let keys = by_key_head(key_dim)?;
        let values = mixed.narrow(D::Minus1, 2 * key_dim, value_dim)?;
        let values = by_head(&values.reshape((batch, tokens, value_heads, value_width))?)?;

        let per_head = |t: &Tensor| by_head(&t.reshape((batch, tokens, value_heads, 1))?);
        let step = softplus(&project(x, &self.in_proj_a)?.broadcast_add(&self.dt_bias)?)?;
        let log_decay = per_head(&step.broadcast_mul(&self.a_log.exp()?.neg()?)?)?;
        let beta = per_head(&sigmoid(&project(x, &self.in_proj_b)?)?)?;

        let done = delta_rule(&DeltaInputs { queries, keys, values, log_decay, beta }, &state.recurrent)?;
        let outputs = done.outputs.to_dtype(DType::F32)?;
        let outputs =
            outputs.reshape((batch, value_heads, tokens, value_width))?.transpose(1, 2)?.contiguous()?;
        let gate = project(x, &self.in_proj_z)?.reshape((batch, tokens, value_heads, value_width))?.silu()?;
        let gated = (rms_norm(&outputs, &self.norm, config.rms_norm_eps)? * gate)?;
        let gated = gated.reshape((batch, tokens, value_dim))?;
        taps(Tap::MixerOutput, &gated)?;
        Ok((project(&gated, &self.out_proj)?, LinearState { conv, recurrent: done.state }))
    }

    /// Depthwise causal convolution over `rows` [batch, kernel - 1 + tokens, channels], then SiLU.
    fn convolve(&self, rows: &Tensor, tokens: usize) -> Result<Tensor> {
        let mut sum: Option<Tensor> = None;
        for tap in 0..self.conv1d.dim(0)? {
            let part = rows.narrow(1, tap, tokens)?.broadcast_mul(&self.conv1d.get(tap)?)?;
            sum = Some(match sum {
                Some(sum) => (sum + part)?,
                None => part,
            });
        }
        sum.unwrap_or_else(|| rows.clone()).silu()
    }
}

/// Transposes [batch, tokens, heads, width] to [batch x heads, tokens, width].
fn by_head(t: &Tensor) -> Result<Tensor> {
    let (batch, tokens, heads, width) = t.dims4()?;
    t.transpose(1, 2)?.contiguous()?.reshape((batch * heads, tokens, width))
}
