//! Access to the inputs of a layer's projections, for calibration.

use candle_core::{Result, Tensor};

/// A point of a layer at which activations enter projections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tap {
    /// Input of the mixer's projections: `in_proj_*`, or `q_proj`, `k_proj`, `v_proj`.
    MixerInput,
    /// Input of `out_proj` or `o_proj`.
    MixerOutput,
    /// Input of `gate_proj` and `up_proj`.
    MlpInput,
    /// Input of `down_proj`.
    MlpOutput,
}

/// Callback that receives the activations [batch, tokens, width] that enter projections.
pub type Taps<'a> = dyn FnMut(Tap, &Tensor) -> Result<()> + 'a;

/// Ignores the activations.
///
/// # Errors
/// None.
pub fn no_taps(_: Tap, _: &Tensor) -> Result<()> {
    Ok(())
}
