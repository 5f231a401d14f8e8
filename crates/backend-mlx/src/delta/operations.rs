//! The gated delta rule in MLX operations: chunks for prefill, single steps for decode. Letters as in [`super`].

use mlx_rs::error::Result;
use mlx_rs::ops::{self, indexing::TryIndexOp};
use mlx_rs::{Array, Dtype, array};

/// Tokens of a full chunk.
const CHUNK: i32 = 64;

/// Width of the diagonal blocks that are inverted by a finite product. The powers in that product grow like binomial
/// coefficients when keys repeat: a width of 8 loses two decimal digits of precision, 64 would lose all.
const BLOCK: i32 = 8;

/// Sizes of a linear-attention layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// Number of key heads; each serves `value_heads / key_heads` consecutive value heads.
    pub key_heads: i32,
    /// Number of value heads, H.
    pub value_heads: i32,
    /// Key width, K.
    pub key_dim: i32,
    /// Value width, V.
    pub value_dim: i32,
}

/// A layer's projections of T tokens: the input of the rule.
pub(crate) struct Projected {
    /// Queries, keys and values after the convolution, before its SiLU: [T, 2 K key_heads + V H].
    pub mixed: Array,
    /// Input of the decay, [T, H].
    pub a: Array,
    /// Input of the write strength, [T, H].
    pub b: Array,
}

/// A layer's gate parameters, [H] each, f32.
#[derive(Clone, Copy)]
pub(crate) struct Gates<'a> {
    pub a_log: &'a Array,
    pub dt_bias: &'a Array,
}

/// Operands of the rule for T tokens. q and k are L2-normalised; q is also scaled by K^-1/2.
struct Inputs {
    /// [H, T, K]
    q: Array,
    /// [H, T, K]
    k: Array,
    /// [H, T, V]
    v: Array,
    /// Logarithm of the decay, [H, T], at most 0.
    log_decay: Array,
    /// Write strength, [H, T], in 0..1.
    beta: Array,
}

impl Inputs {
    fn new(projected: &Projected, gates: Gates<'_>, sizes: Sizes) -> Result<Self> {
        let Sizes { key_heads, value_heads, key_dim, value_dim } = sizes;
        let mixed = silu(&projected.mixed)?;
        let (tokens, keys) = (mixed.dim(0), key_heads * key_dim);
        let heads_first = |x: Array, heads: i32, width: i32| -> Result<Array> {
            x.as_dtype(Dtype::Float32)?.reshape(&[tokens, heads, width])?.swap_axes(0, 1)
        };
        let per_value_head = |x: Array| -> Result<Array> {
            let x = l2_normalised(&heads_first(x, key_heads, key_dim)?)?;
            let repeats = value_heads / key_heads;
            let repeated = ops::broadcast_to(x.expand_dims(1)?, &[key_heads, repeats, tokens, key_dim])?;
            repeated.reshape(&[value_heads, tokens, key_dim])
        };
        let scale = Array::from_f32((key_dim as f32).sqrt().recip());
        let step = projected.a.as_dtype(Dtype::Float32)?.add(gates.dt_bias)?;
        let softplus = ops::logaddexp(&step, Array::from_f32(0.0))?;
        Ok(Self {
            q: per_value_head(mixed.try_index((.., 0..keys))?)?.multiply(&scale)?,
            k: per_value_head(mixed.try_index((.., keys..2 * keys))?)?,
            v: heads_first(mixed.try_index((.., 2 * keys..))?, value_heads, value_dim)?,
            log_decay: gates.a_log.exp()?.multiply(&softplus)?.negative()?.swap_axes(0, 1)?,
            beta: ops::sigmoid(projected.b.as_dtype(Dtype::Float32)?)?.swap_axes(0, 1)?,
        })
    }

    fn slice(&self, from: i32, to: i32) -> Result<Self> {
        Ok(Self {
            q: self.q.try_index((.., from..to))?,
            k: self.k.try_index((.., from..to))?,
            v: self.v.try_index((.., from..to))?,
            log_decay: self.log_decay.try_index((.., from..to))?,
            beta: self.beta.try_index((.., from..to))?,
        })
    }

    /// Appends `extra` padding tokens that leave the state unchanged: keys, values and strength 0, decay 1.
    fn padded(&self, extra: i32) -> Result<Self> {
        let pad = |x: &Array| -> Result<Array> {
            let mut shape = x.shape().to_vec();
            shape[1] = extra;
            ops::concatenate(&[x.clone(), ops::zeros_dtype(&shape, x.dtype())?], 1)
        };
        Ok(Self {
            q: pad(&self.q)?,
            k: pad(&self.k)?,
            v: pad(&self.v)?,
            log_decay: pad(&self.log_decay)?,
            beta: pad(&self.beta)?,
        })
    }
}

/// The rule for T tokens, in chunks: outputs [T, H, V] and the next state [H, V, K].
pub(crate) fn chunks(
    projected: &Projected,
    gates: Gates<'_>,
    sizes: Sizes,
    state: &Array,
) -> Result<(Array, Array)> {
    let tokens = projected.mixed.dim(0);
    let inputs = Inputs::new(projected, gates, sizes)?;
    let (mut outputs, mut state) = (Vec::new(), state.clone());
    for from in (0..tokens).step_by(CHUNK as usize) {
        let (out, after) = chunk(&inputs.slice(from, tokens.min(from + CHUNK))?, &state)?;
        outputs.push(out);
        state = after;
    }
    Ok((ops::concatenate(&outputs, 1)?.swap_axes(0, 1)?, state))
}

/// The rule for one token: `S *= exp(g); delta = beta (v - S k); S += delta k^T; o = S q`. Returns the output [1, H, V]
/// and the next state [H, V, K].
pub(crate) fn step(
    projected: &Projected,
    gates: Gates<'_>,
    sizes: Sizes,
    state: &Array,
) -> Result<(Array, Array)> {
    let inputs = Inputs::new(projected, gates, sizes)?;
    let decay = inputs.log_decay.exp()?.expand_dims(-1)?;
    let state = state.multiply(&decay)?;
    let predicted = inputs.k.matmul(state.swap_axes(1, 2)?)?; // [H, 1, V]
    let delta = inputs.v.subtract(&predicted)?.multiply(inputs.beta.expand_dims(-1)?)?;
    let state = state.add(delta.swap_axes(1, 2)?.multiply(&inputs.k)?)?;
    let out = inputs.q.matmul(state.swap_axes(1, 2)?)?;
    Ok((out.swap_axes(0, 1)?, state))
}

/// The rule for C <= 64 tokens with matrix products only (the chunkwise WY form): outputs [H, C, V] and the next state.
fn chunk(inputs: &Inputs, state: &Array) -> Result<(Array, Array)> {
    let tokens = inputs.q.dim(1);
    let width = BLOCK.max((tokens as u32).next_power_of_two() as i32);
    let padded;
    let Inputs { q, k, v, log_decay, beta } = match width - tokens {
        0 => inputs,
        extra => {
            padded = inputs.padded(extra)?;
            &padded
        }
    };
    let beta = beta.expand_dims(-1)?;
    let total = ops::cumsum(log_decay, 1, None, None)?; // c_t, [H, C]
    let gap = total.expand_dims(-1)?.subtract(&total.expand_dims(-2)?)?;
    let lower = ops::tri::<f32>(width, None, None)?;
    let decay = ops::select(&lower.eq(array!(1.0f32))?, &gap, &array!(f32::NEG_INFINITY))?.exp()?;
    let strictly = ops::tri::<f32>(width, None, Some(-1))?;

    let weighted = k.multiply(&beta)?;
    let key_t = k.swap_axes(1, 2)?;
    let state_t = state.swap_axes(1, 2)?; // [H, K, V]
    let interaction = weighted.matmul(&key_t)?.multiply(&decay)?.multiply(&strictly)?;
    let inverse = unit_lower_inverse(&interaction, width)?;
    let since_start = total.exp()?.expand_dims(-1)?;
    let values = inverse.matmul(&v.multiply(&beta)?)?;
    let reads = inverse.matmul(&weighted.multiply(&since_start)?)?;
    let fresh = values.subtract(&reads.matmul(&state_t)?)?; // [H, C, V]

    let within = q.matmul(&key_t)?.multiply(&decay)?.matmul(&fresh)?;
    let out = q.multiply(&since_start)?.matmul(&state_t)?.add(&within)?;
    let last = total.try_index((.., (width - 1)..width))?; // [H, 1]
    let until_end = last.subtract(&total)?.exp()?.expand_dims(-1)?;
    let state = state
        .multiply(&last.exp()?.expand_dims(-1)?)?
        .add(&fresh.swap_axes(1, 2)?.matmul(&k.multiply(&until_end)?)?)?;
    let out = if width == tokens { out } else { out.try_index((.., 0..tokens))? };
    Ok((out, state))
}

/// (I + A)^-1 for strictly lower triangular A, [H, C, C], where C is a power of two and at least [`BLOCK`]. Diagonal
/// blocks are inverted by `(I - A)(I + A^2)(I + A^4)`; neighbours are then merged pairwise.
fn unit_lower_inverse(a: &Array, width: i32) -> Result<Array> {
    let part = |rows: i32, columns: i32, size: i32| {
        a.try_index((.., rows * size..(rows + 1) * size, columns * size..(columns + 1) * size))
    };
    let identity = ops::eye::<f32>(BLOCK, None, None)?;
    let mut inverses = Vec::new();
    for block in 0..width / BLOCK {
        let a1 = part(block, block, BLOCK)?;
        let a2 = a1.matmul(&a1)?;
        let a4 = a2.matmul(&a2)?;
        let product = identity.subtract(&a1)?.matmul(&identity.add(&a2)?)?.matmul(&identity.add(&a4)?)?;
        inverses.push(product);
    }
    let mut size = BLOCK;
    while size < width {
        let mut merged = Vec::new();
        for (pair, both) in inverses.chunks_exact(2).enumerate() {
            let (first, second) = (&both[0], &both[1]);
            let corner = part(2 * pair as i32 + 1, 2 * pair as i32, size)?;
            let below = second.matmul(&corner)?.matmul(first)?.negative()?;
            let top = ops::concatenate(&[first.clone(), ops::zeros_like(first)?], 2)?;
            let bottom = ops::concatenate(&[below, second.clone()], 2)?;
            merged.push(ops::concatenate(&[top, bottom], 1)?);
        }
        inverses = merged;
        size *= 2;
    }
    Ok(inverses.swap_remove(0))
}

pub(crate) fn silu(x: &Array) -> Result<Array> {
    x.multiply(ops::sigmoid(x)?)
}

/// L2 normalisation of the last axis, `x rsqrt(sum x^2 + 1e-6)`.
fn l2_normalised(x: &Array) -> Result<Array> {
    let norm = x.square()?.sum_axis(-1, true)?.add(array!(1e-6f32))?.rsqrt()?;
    x.multiply(&norm)
}
