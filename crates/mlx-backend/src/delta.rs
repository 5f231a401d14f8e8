//! The gated delta rule in MLX operations: by chunks for prefill, one step for decode.
//!
//! Letters: H value heads, T tokens, C tokens of a chunk, K key width, V value width. The state is [H, K, V], f32.

use mlx_rs::error::Result;
use mlx_rs::ops::{self, indexing::TryIndexOp};
use mlx_rs::{Array, Dtype, array};

/// Tokens of a whole chunk.
const CHUNK: i32 = 64;

/// Width of the diagonal blocks that are inverted by the finite product. The powers in that product grow like
/// binomial coefficients when keys repeat: at 8 they cost two digits, at 64 all of them.
const BLOCK: i32 = 8;

/// What a layer feeds into the rule, for T tokens. q is scaled by K^-1/2 and, like k, L2-normalised.
pub(crate) struct Inputs {
    /// [H, T, K]
    pub q: Array,
    /// [H, T, K]
    pub k: Array,
    /// [H, T, V]
    pub v: Array,
    /// Log of the decay, [H, T], never positive.
    pub log_decay: Array,
    /// Write strength, [H, T], between 0 and 1.
    pub beta: Array,
}

impl Inputs {
    fn slice(&self, from: i32, to: i32) -> Result<Self> {
        Ok(Self {
            q: self.q.try_index((.., from..to))?,
            k: self.k.try_index((.., from..to))?,
            v: self.v.try_index((.., from..to))?,
            log_decay: self.log_decay.try_index((.., from..to))?,
            beta: self.beta.try_index((.., from..to))?,
        })
    }

    /// Tokens that change nothing: zero keys, values and strength, decay one.
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

/// The rule, by the fastest way that this device has.
#[derive(Default)]
pub(crate) struct DeltaRule {
    #[cfg(target_os = "macos")]
    kernel: Option<crate::metal::StepKernel>,
}

impl DeltaRule {
    /// For states of this shape, on a GPU if `gpu`.
    #[cfg(target_os = "macos")]
    pub fn new(gpu: bool, heads: i32, key_dim: i32, value_dim: i32) -> Self {
        let kernel = gpu.then(|| crate::metal::StepKernel::checked(heads, key_dim, value_dim)).flatten();
        Self { kernel }
    }

    /// For states of this shape; only Metal has a kernel of its own.
    #[cfg(not(target_os = "macos"))]
    pub fn new(_gpu: bool, _heads: i32, _key_dim: i32, _value_dim: i32) -> Self {
        Self::default()
    }

    /// Runs the rule over T tokens: outputs [H, T, V] and the state after them.
    pub fn run(&self, inputs: &Inputs, state: &Array) -> Result<(Array, Array)> {
        let tokens = inputs.q.dim(1);
        if tokens == 1 {
            #[cfg(target_os = "macos")]
            if let Some(kernel) = &self.kernel {
                return kernel.step(inputs, state);
            }
            return step_by_operations(inputs, state);
        }
        let (mut outputs, mut state) = (Vec::new(), state.clone());
        for from in (0..tokens).step_by(CHUNK as usize) {
            let (out, after) = chunk(&inputs.slice(from, tokens.min(from + CHUNK))?, &state)?;
            outputs.push(out);
            state = after;
        }
        Ok((ops::concatenate(&outputs, 1)?, state))
    }
}

/// `S *= exp(g); delta = beta (v - S^T k); S += k delta^T; o = S^T q`, for one token.
pub(crate) fn step_by_operations(inputs: &Inputs, state: &Array) -> Result<(Array, Array)> {
    let decay = inputs.log_decay.exp()?.expand_dims(-1)?;
    let state = state.multiply(&decay)?;
    let seen = inputs.k.matmul(&state)?; // [H, 1, V]
    let delta = inputs.v.subtract(&seen)?.multiply(&inputs.beta.expand_dims(-1)?)?;
    let state = state.add(&inputs.k.swap_axes(1, 2)?.multiply(&delta)?)?;
    Ok((inputs.q.matmul(&state)?, state))
}

/// The same for C <= 64 tokens at once, with matrix products only.
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

    let strong = k.multiply(&beta)?;
    let key_t = k.swap_axes(1, 2)?;
    let mixing = strong.matmul(&key_t)?.multiply(&decay)?.multiply(&strictly)?;
    let inverse = unit_lower_inverse(&mixing, width)?;
    let since_start = total.exp()?.expand_dims(-1)?;
    let values = inverse.matmul(&v.multiply(&beta)?)?;
    let reads = inverse.matmul(&strong.multiply(&since_start)?)?;
    let fresh = values.subtract(&reads.matmul(state)?)?; // [H, C, V]

    let within = q.matmul(&key_t)?.multiply(&decay)?.matmul(&fresh)?;
    let out = q.multiply(&since_start)?.matmul(state)?.add(&within)?;
    let last = total.try_index((.., (width - 1)..width))?; // [H, 1]
    let until_end = last.subtract(&total)?.exp()?.expand_dims(-1)?;
    let state = state
        .multiply(&last.exp()?.expand_dims(-1)?)?
        .add(&k.multiply(&until_end)?.swap_axes(1, 2)?.matmul(&fresh)?)?;
    let out = if width == tokens { out } else { out.try_index((.., 0..tokens))? };
    Ok((out, state))
}

/// (I + A)^-1 for strictly lower triangular A, [H, C, C] with C a power of two of at least [`BLOCK`]: diagonal blocks
/// by `(I - A)(I + A^2)(I + A^4)`, then neighbours merged until one is left.
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

/// L2 normalisation of the last axis, `x rsqrt(sum x^2 + 1e-6)`, in f32.
pub(crate) fn l2_normalised(x: &Array) -> Result<Array> {
    let x = x.as_dtype(Dtype::Float32)?;
    let norm = x.square()?.sum_axis(-1, true)?.add(array!(1e-6f32))?.rsqrt()?;
    x.multiply(&norm)
}
