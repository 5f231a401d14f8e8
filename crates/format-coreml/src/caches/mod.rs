//! The caches of a function: inputs, outputs or states that carry convolution windows, recurrent states, keys and values
//! from call to call. One type per form; the graph uses them through [`Caches`].
//!
//! Letters of shapes as in [`crate::qwen3_5`].

use q35_architecture::{LayerKind, TextConfig};
use q35_format_mil::DType;
use q35_format_mil::build::Tensor;

use crate::WriteError;
use crate::tokens::Tokens;
use crate::weight_store::Function;

mod layer_io;
mod packed_states;
mod speech_swift_states;

pub(crate) use layer_io::LayerIo;
pub(crate) use packed_states::PackedStates;
pub(crate) use speech_swift_states::SpeechSwiftStates;

type Result<T, E = WriteError> = std::result::Result<T, E>;

/// The caches of one function while its graph is being built.
pub(crate) trait Caches {
    /// The convolution window of a linear-attention layer, [1, W - 1, N], oldest input first.
    fn conv_state(&mut self, f: &mut Function<'_>, layer: usize) -> Result<Tensor>;

    /// Replaces the convolution window, [1, W - 1, N].
    fn set_conv_state(&mut self, f: &mut Function<'_>, layer: usize, new: &Tensor) -> Result<()>;

    /// The recurrent state of a linear-attention layer, [1, v, d, e].
    fn recurrent_state(&mut self, f: &mut Function<'_>, layer: usize) -> Result<Tensor>;

    /// Replaces the recurrent state, [1, v, d, e].
    fn set_recurrent_state(&mut self, f: &mut Function<'_>, layer: usize, new: &Tensor) -> Result<()>;

    /// Stores the keys and values of this call, [1, K, T, D] each, in the cache of a full-attention layer, and returns
    /// all keys and values, [1, K, C, D] each.
    fn append_keys_values(
        &mut self,
        f: &mut Function<'_>,
        layer: usize,
        keys: &Tensor,
        values: &Tensor,
        tokens: &Tokens,
    ) -> Result<(Tensor, Tensor)>;

    /// Adds the caches' outputs, after those of the function, and writes what was collected for a state.
    fn finish(&mut self, f: &mut Function<'_>) -> Result<()>;
}

/// Shapes of the caches of one layer, and the layers of either kind.
struct CacheShapes {
    /// Indices of the linear-attention layers, ascending.
    linear_layers: Vec<usize>,
    /// Indices of the full-attention layers, ascending.
    full_layers: Vec<usize>,
    /// [W - 1, N].
    conv_state: [usize; 2],
    /// [v, d, e].
    recurrent_state: [usize; 3],
    /// [K, C, D].
    keys: [usize; 3],
}

impl CacheShapes {
    fn new(config: &TextConfig, context: usize) -> Self {
        Self {
            linear_layers: config.layers_of(LayerKind::LinearAttention).collect(),
            full_layers: config.layers_of(LayerKind::FullAttention).collect(),
            conv_state: [config.linear_conv_kernel_dim - 1, config.linear_conv_dim()],
            recurrent_state: [
                config.linear_num_value_heads,
                config.linear_key_head_dim,
                config.linear_value_head_dim,
            ],
            keys: [config.num_key_value_heads, context, config.head_dim],
        }
    }

    /// Index of a layer among the layers of its kind.
    fn index_of(&self, layer: usize) -> Result<usize> {
        let position = |layers: &[usize]| layers.iter().position(|&other| other == layer);
        position(&self.linear_layers)
            .or_else(|| position(&self.full_layers))
            .ok_or(WriteError::Cache { layer })
    }
}

/// The shape `rest` with the axis `first` in front.
fn with_first_axis(first: usize, rest: &[usize]) -> Vec<usize> {
    std::iter::once(first).chain(rest.iter().copied()).collect()
}

/// `count` entries of the first axis, from `start`.
fn slice_first_axis(f: &mut Function<'_>, x: &Tensor, start: usize, count: usize) -> Result<Tensor> {
    if x.shape()[0] == count {
        return Ok(x.clone());
    }
    let begin = with_first_axis(start, &vec![0; x.shape().len() - 1]);
    let end = with_first_axis(start + count, &x.shape()[1..]);
    Ok(f.slice(x, &begin, &end)?)
}

/// `old` [n, K, C, D] with `rows` [n, K, T, D] at the positions of the one-hot matrix [T, C]. A product with a matrix of
/// zeros and ones moves numbers without changing them; other positions keep their values.
fn scatter(f: &mut Function<'_>, old: &Tensor, rows: &Tensor, one_hot_positions: &Tensor) -> Result<Tensor> {
    let one_hot = f.cast(one_hot_positions, rows.dtype())?;
    let moved = f.transposed_matmul(&one_hot, rows)?;
    let written = f.reduce_sum(&one_hot, 0)?;
    let written = f.reshape(&written, &[one_hot.shape()[1], 1])?;
    let half = f.shared_constant("half", rows.dtype(), &[], &[0.5])?;
    let written = f.greater_equal(&written, &half)?;
    Ok(f.select(&written, &moved, old)?)
}

/// `old` [m, K, C, D] with `rows` [n, K, 1, D] at `first` of the first axis and the call's position of the third.
fn update(
    f: &mut Function<'_>,
    old: &Tensor,
    rows: &Tensor,
    first: usize,
    tokens: &Tokens,
) -> Result<Tensor> {
    let shape = old.shape().to_vec();
    let mut bound = |first: usize, heads: usize, position: &Tensor, width: usize| -> Result<Tensor> {
        let constant = |f: &mut Function<'_>, values: &[usize]| {
            let values: Vec<i32> = values.iter().map(|&value| value as i32).collect();
            f.int_constant("bounds", &[values.len()], &values)
        };
        let (front, back) = (constant(f, &[first, heads])?, constant(f, &[width])?);
        Ok(f.concat(&[&front, position, &back], 0)?)
    };
    let begin = bound(first, 0, &tokens.position, 0)?;
    let end = bound(first + rows.shape()[0], shape[1], &tokens.next_position, shape[3])?;
    Ok(f.slice_update(old, rows, &begin, &end)?)
}

/// Writes `rows` into a state, as [`update`] does, and returns the state's new value.
fn update_state(
    f: &mut Function<'_>,
    state: &Tensor,
    rows: &Tensor,
    first: usize,
    tokens: &Tokens,
) -> Result<Tensor> {
    let rows = f.cast(rows, DType::F16)?;
    let old = f.read_state(state)?;
    let new = update(f, &old, &rows, first, tokens)?;
    f.write_state(state, &new)?;
    Ok(f.read_state(state)?)
}
