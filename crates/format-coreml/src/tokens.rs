//! Positions, masks and rotary tables of the tokens of one call. Letters of shapes as in [`crate::qwen3_5`].

use q35_architecture::TextConfig;
use q35_format_mil::DType;
use q35_format_mil::build::Tensor;

use crate::WriteError;
use crate::weight_store::Function;

type Result<T, E = WriteError> = std::result::Result<T, E>;

/// Score added at positions that a token must not attend to: far below any real score, and within fp16.
const MASKED_SCORE: f32 = -10_000.0;

/// Positions, masks and rotary angles of the tokens of one call.
pub(crate) struct Tokens {
    /// T.
    pub(crate) count: usize,
    /// int32 [1]: number of tokens before this call.
    pub(crate) position: Tensor,
    /// int32 [1]: `position + 1`.
    pub(crate) next_position: Tensor,
    /// [T, C]: 0 where token t attends to position c, else [`MASKED_SCORE`]; or the mask that the caller passes.
    pub(crate) attention_mask: Tensor,
    /// [1, T, 1, R / 2]: cosines of the rotary angles; R is the rotary width.
    pub(crate) cos: Tensor,
    /// [1, T, 1, R / 2]: sines of the rotary angles.
    pub(crate) sin: Tensor,
    /// [`None`] if no token is padding.
    pub(crate) padding: Option<Padding>,
}

/// Masks of a call whose real tokens may be followed by padding.
pub(crate) struct Padding {
    /// [1, T, 1]: 1 for a real token, else 0.
    pub(crate) mask: Tensor,
    /// [W - 1, T + W - 1]: row r is 1 in column r + the number of real tokens; a product with it selects the next
    /// convolution window.
    pub(crate) window: Tensor,
    /// [1, 1, T]: 1 at the last real token; [`None`] for a single token.
    pub(crate) last: Option<Tensor>,
    /// [T, C]: 1 where token t is real and has position c.
    one_hot_positions: Tensor,
}

impl Tokens {
    /// [T, C]: 1 where token t is real and has position c; [`None`] for a single token, whose position is
    /// [`Self::position`].
    pub(crate) fn one_hot_positions(&self) -> Option<&Tensor> {
        self.padding.as_ref().filter(|_| self.count > 1).map(|padding| &padding.one_hot_positions)
    }

    /// Tokens that may include padding, from `attention_mask` int32 [1, T] and `position` int32 [1]. `context` is C,
    /// `dtype` the type of activations.
    pub(crate) fn padded(
        f: &mut Function<'_>,
        config: &TextConfig,
        context: usize,
        dtype: DType,
        attention_mask: &Tensor,
        position: &Tensor,
    ) -> Result<Self> {
        f.set_scope("tokens");
        let (count, taps) = (attention_mask.shape()[1], config.linear_conv_kernel_dim);
        let mask = f.cast(attention_mask, dtype)?;
        let mask = f.reshape(&mask, &[1, count, 1])?;
        let real_count = f.reduce_sum(attention_mask, 1)?;

        let positions = absolute_positions(f, count, position)?;
        let columns: Vec<i32> = (0..context as i32).collect();
        let columns = f.int_constant("positions", &[1, context], &columns)?;
        let one_hot = f.equal(&positions, &columns)?;
        let one_hot = f.cast(&one_hot, dtype)?;
        let mask_by_row = f.reshape(&mask, &[count, 1])?;
        let one_hot_positions = f.mul(&one_hot, &mask_by_row)?;
        let causal = f.less_equal(&columns, &positions)?;
        let causal = additive_mask(f, dtype, &causal)?;

        let offsets: Vec<i32> = (0..taps as i32 - 1)
            .flat_map(|row| (0..(count + taps) as i32 - 1).map(move |column| column - row))
            .collect();
        let offsets = f.int_constant("window_offsets", &[taps - 1, count + taps - 1], &offsets)?;
        let window = f.equal(&offsets, &real_count)?;
        let window = f.cast(&window, dtype)?;
        let last = if count > 1 {
            let ordinals: Vec<i32> = (1..=count as i32).collect();
            let ordinals = f.int_constant("ordinals", &[1, count], &ordinals)?;
            let last = f.equal(&ordinals, &real_count)?;
            let last = f.cast(&last, dtype)?;
            Some(f.reshape(&last, &[1, 1, count])?)
        } else {
            None
        };
        let next_position = increment(f, position)?;
        let (cos, sin) = rotary(f, config, context, dtype, &one_hot_positions, count)?;
        let padding = Some(Padding { mask, window, last, one_hot_positions });
        let position = position.clone();
        Ok(Self { count, position, next_position, attention_mask: causal, cos, sin, padding })
    }

    /// A single real token, with the additive attention mask [1, C] as an input.
    pub(crate) fn single(
        f: &mut Function<'_>,
        config: &TextConfig,
        context: usize,
        dtype: DType,
        attention_mask: &Tensor,
        position: &Tensor,
    ) -> Result<Self> {
        f.set_scope("tokens");
        let positions = absolute_positions(f, 1, position)?;
        let columns: Vec<i32> = (0..context as i32).collect();
        let columns = f.int_constant("positions", &[1, context], &columns)?;
        let one_hot = f.equal(&positions, &columns)?;
        let one_hot = f.cast(&one_hot, dtype)?;
        let (cos, sin) = rotary(f, config, context, dtype, &one_hot, 1)?;
        let attention_mask = f.cast(attention_mask, dtype)?;
        let attention_mask = f.reshape(&attention_mask, &[1, context])?;
        let (position, next_position) = (position.clone(), increment(f, position)?);
        Ok(Self { count: 1, position, next_position, attention_mask, cos, sin, padding: None })
    }
}

/// int32 [T, 1].
fn absolute_positions(f: &mut Function<'_>, count: usize, position: &Tensor) -> Result<Tensor> {
    let steps: Vec<i32> = (0..count as i32).collect();
    let steps = f.int_constant("steps", &[count, 1], &steps)?;
    Ok(f.add(&steps, position)?)
}

/// int32 [1]: `position + 1`.
fn increment(f: &mut Function<'_>, position: &Tensor) -> Result<Tensor> {
    let one = f.int_constant("one", &[1], &[1])?;
    Ok(f.add(position, &one)?)
}

/// 0 where `allowed` is true, else [`MASKED_SCORE`].
fn additive_mask(f: &mut Function<'_>, dtype: DType, allowed: &Tensor) -> Result<Tensor> {
    let one = f.shared_constant("scalar", dtype, &[], &[1.0])?;
    let magnitude = f.shared_constant("scalar", dtype, &[], &[-MASKED_SCORE])?;
    let allowed = f.cast(allowed, dtype)?;
    let allowed = f.sub(&allowed, &one)?;
    Ok(f.mul(&allowed, &magnitude)?)
}

/// Cosines and sines of the rotary angles, selected from tables [C, R / 2] by the one-hot positions [T, C]: the angles
/// themselves would exceed the precision of fp16.
fn rotary(
    f: &mut Function<'_>,
    config: &TextConfig,
    context: usize,
    dtype: DType,
    one_hot_positions: &Tensor,
    count: usize,
) -> Result<(Tensor, Tensor)> {
    let rotated = config.rotary_dim();
    let angle = |position: usize, i: usize| {
        position as f64 * config.rope_theta.powf(-2.0 * i as f64 / rotated as f64)
    };
    let table = |wave: fn(f64) -> f64| -> Vec<f32> {
        let rows = (0..context).flat_map(|position| (0..rotated / 2).map(move |i| (position, i)));
        rows.map(|(position, i)| wave(angle(position, i)) as f32).collect()
    };
    let (cos, sin) = (table(f64::cos), table(f64::sin));
    let mut select = |name, table: &[f32]| -> Result<Tensor> {
        let table = f.shared_constant(name, dtype, &[context, rotated / 2], table)?;
        let selected = f.matmul(one_hot_positions, &table)?;
        Ok(f.reshape(&selected, &[1, count, 1, rotated / 2])?)
    };
    Ok((select("rotary_cos", &cos)?, select("rotary_sin", &sin)?))
}
