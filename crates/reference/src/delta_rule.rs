//! The gated delta rule in chunks of tokens, by matrix products (Yang et al., "Gated Delta Networks", 2024).
//!
//! Per head, with state S [key, value], decay g <= 0 and step beta, token by token:
//! `S *= exp(g_t); delta = beta_t (v_t - S^T k_t); S += k_t delta^T; o_t = S^T q_t`.
//!
//! For a chunk let D\[i,j\] be the sum of g over j < t <= i, and A\[i,j\] = beta_i (k_i . k_j) exp(D\[i,j\]) for j < i. The
//! deltas N [tokens, value] of the whole chunk then solve the unit lower triangular system
//! `(I + A) N = beta (v - exp(c) (k S))`, c_i being the sum of g up to i. One token is the chunk of length one, so
//! decoding is the same code.
//!
//! Two choices are made for accuracy. D is summed from its terms by a product with a mask instead of computed as
//! c_i - c_j, which cancels after many tokens of strong decay. And (I + A)^-1 is built from the inverses of ever larger
//! diagonal blocks: the well-known finite product (I - A)(I + A^2)(I + A^4).. is exact in theory, but for a repetitive text
//! (equal keys, beta near 1) the powers of A reach 1e17 before they cancel.
//!
//! All operations are in the state's type. The reference uses f64 where the device supports it, so that the outputs,
//! rounded to f32, do not depend on the chunk boundaries.

use candle_core::{DType, Device, Result, Tensor};

/// Tokens per chunk.
pub const CHUNK: usize = 64;

/// Inputs of consecutive tokens; `n` is the number of heads times the number of sequences.
#[derive(Clone, Debug)]
pub struct DeltaInputs {
    /// [n, tokens, key], L2-normalised and scaled.
    pub queries: Tensor,
    /// [n, tokens, key], L2-normalised.
    pub keys: Tensor,
    /// [n, tokens, value].
    pub values: Tensor,
    /// [n, tokens, 1], logarithm of the decay, at most 0.
    pub log_decay: Tensor,
    /// [n, tokens, 1], between 0 and 1.
    pub beta: Tensor,
}

/// Outputs and the next state.
#[derive(Clone, Debug)]
pub struct DeltaOutputs {
    /// [n, tokens, value].
    pub outputs: Tensor,
    /// [n, key, value].
    pub state: Tensor,
}

/// Processes the tokens of `inputs` after `state` [n, key, value]. Computes and returns the state's type.
///
/// # Errors
/// Shapes that do not fit.
pub fn delta_rule(inputs: &DeltaInputs, state: &Tensor) -> Result<DeltaOutputs> {
    let tokens = inputs.queries.dim(1)?;
    let (device, dtype) = (state.device(), state.dtype());
    let mut state = state.clone();
    let mut outputs = Vec::with_capacity(tokens.div_ceil(CHUNK));
    let mut masks = Masks::new(tokens.min(CHUNK), dtype, device)?;
    for start in (0..tokens).step_by(CHUNK) {
        let length = CHUNK.min(tokens - start);
        if length != masks.length {
            masks = Masks::new(length, dtype, device)?;
        }
        let part = |t: &Tensor| t.narrow(1, start, length)?.to_dtype(dtype)?.contiguous();
        let chunk = DeltaInputs {
            queries: part(&inputs.queries)?,
            keys: part(&inputs.keys)?,
            values: part(&inputs.values)?,
            log_decay: part(&inputs.log_decay)?,
            beta: part(&inputs.beta)?,
        };
        let done = chunk_step(&chunk, &state, &masks)?;
        outputs.push(done.outputs);
        state = done.state;
    }
    Ok(DeltaOutputs { outputs: Tensor::cat(&outputs, 1)?, state })
}

fn chunk_step(chunk: &DeltaInputs, state: &Tensor, masks: &Masks) -> Result<DeltaOutputs> {
    let DeltaInputs { queries, keys, values, log_decay, beta } = chunk;
    let (heads, length, _) = keys.dims3()?;
    let spread = |mask: &Tensor| mask.broadcast_as((heads, length, length))?.contiguous();
    let lower = spread(&masks.lower)?;
    // [n, i, j]: the sum over t <= i of g_t [j < t].
    let decay = lower.matmul(&log_decay.broadcast_mul(&masks.strictly_lower)?)?.exp()?;
    let from_start = lower.matmul(log_decay)?.exp()?;

    let keys_t = keys.t()?.contiguous()?;
    let overlap =
        (keys.matmul(&keys_t)? * &decay)?.broadcast_mul(beta)?.broadcast_mul(&masks.strictly_lower)?;
    let inverse = invert_unit_lower(&overlap, masks)?;
    let expected = keys.matmul(state)?.broadcast_mul(&from_start)?;
    let deltas = inverse.matmul(&(values - expected)?.broadcast_mul(beta)?)?;

    let scores = (queries.matmul(&keys_t)? * &decay)?.broadcast_mul(&masks.lower)?;
    let outputs = (queries.matmul(state)?.broadcast_mul(&from_start)? + scores.matmul(&deltas)?)?;

    let whole = from_start.narrow(1, length - 1, 1)?;
    let to_end = decay.narrow(1, length - 1, 1)?; // [n, 1, j]
    let state = (state.broadcast_mul(&whole)? + keys_t.broadcast_mul(&to_end)?.matmul(&deltas)?)?;
    Ok(DeltaOutputs { outputs, state })
}

/// `(I + A)^-1` for a strictly lower triangular A [n, length, length].
///
/// X starts as the identity, the inverse of the blocks of size 1. If X holds the inverses of the diagonal blocks of
/// size s, then X - X B X does for size 2s, where B are A's blocks below the diagonal within blocks of 2s.
fn invert_unit_lower(a: &Tensor, masks: &Masks) -> Result<Tensor> {
    let mut inverse: Option<Tensor> = None;
    for below in &masks.blocks_below {
        let blocks = a.broadcast_mul(below)?;
        inverse = Some(match inverse {
            None => masks.identity.broadcast_sub(&blocks)?,
            Some(x) => {
                let correction = x.matmul(&blocks)?.matmul(&x)?;
                (x - correction)?
            }
        });
    }
    match inverse {
        Some(inverse) => Ok(inverse),
        None => masks.identity.broadcast_as(a.shape())?.contiguous(),
    }
}

/// Masks of zeros and ones, [1, length, length] each.
struct Masks {
    length: usize,
    /// j <= i.
    lower: Tensor,
    /// j < i.
    strictly_lower: Tensor,
    identity: Tensor,
    /// For s = 1, 2, 4..: the lower left quarters of the diagonal blocks of size 2s.
    blocks_below: Vec<Tensor>,
}

impl Masks {
    fn new(length: usize, dtype: DType, device: &Device) -> Result<Self> {
        let mask = |holds: &dyn Fn(usize, usize) -> bool| {
            let values: Vec<f32> = (0..length * length)
                .map(|at| if holds(at / length, at % length) { 1.0 } else { 0.0 })
                .collect();
            Tensor::from_vec(values, (1, length, length), device)?.to_dtype(dtype)
        };
        let mut blocks_below = Vec::new();
        let mut size = 1;
        while size < length {
            let same_pair = |i: usize, j: usize| i / (2 * size) == j / (2 * size);
            blocks_below.push(mask(&|i, j| same_pair(i, j) && i / size % 2 == 1 && j / size % 2 == 0)?);
            size *= 2;
        }
        Ok(Self {
            length,
            lower: mask(&|i, j| j <= i)?,
            strictly_lower: mask(&|i, j| j < i)?,
            identity: mask(&|i, j| j == i)?,
            blocks_below,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use q35_testkit::Random;

    struct Case {
        heads: usize,
        tokens: usize,
        key: usize,
        value: usize,
        inputs: DeltaInputs,
        state: Tensor,
    }

    fn unit(rows: usize, width: usize, random: &mut Random) -> Vec<f32> {
        let mut all = Vec::new();
        for _ in 0..rows {
            let row: Vec<f32> = (0..width).map(|_| random.normal()).collect();
            let size = row.iter().map(|x| x * x).sum::<f32>().sqrt();
            all.extend(row.iter().map(|x| x / size));
        }
        all
    }

    fn case(tokens: usize, same_key: bool, decay: f32, beta: f32) -> Case {
        let (heads, key, value) = (2, 16, 24);
        let mut random = Random::new(tokens as u64);
        let mut draw = |count: usize| (0..count).map(|_| random.normal()).collect::<Vec<f32>>();
        let tensor = |values: Vec<f32>, width: usize| {
            Tensor::from_vec(values, (heads, tokens, width), &Device::Cpu).unwrap()
        };
        let values = tensor(draw(heads * tokens * value), value);
        let state = Tensor::from_vec(draw(heads * key * value), (heads, key, value), &Device::Cpu).unwrap();
        let log_decay: Vec<f32> = draw(heads * tokens).iter().map(|x| -decay * x.abs()).collect();
        let mut random = Random::new(99);
        let keys = if same_key {
            unit(1, key, &mut random).repeat(heads * tokens)
        } else {
            unit(heads * tokens, key, &mut random)
        };
        let inputs = DeltaInputs {
            queries: tensor(unit(heads * tokens, key, &mut random), key),
            keys: tensor(keys, key),
            values,
            log_decay: tensor(log_decay, 1),
            beta: tensor((0..heads * tokens).map(|_| beta * random.uniform() + 1.0 - beta).collect(), 1),
        };
        Case { heads, tokens, key, value, inputs, state }
    }

    /// The recurrence token by token in f64: outputs and state.
    fn by_definition(case: &Case) -> (Vec<f64>, Vec<f64>) {
        let numbers = |t: &Tensor| -> Vec<f64> {
            t.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|x| f64::from(*x)).collect()
        };
        let i = &case.inputs;
        let (q, k, v) = (numbers(&i.queries), numbers(&i.keys), numbers(&i.values));
        let (g, beta, mut state) = (numbers(&i.log_decay), numbers(&i.beta), numbers(&case.state));
        let (key, value) = (case.key, case.value);
        let mut outputs = Vec::new();
        for head in 0..case.heads {
            let s = &mut state[head * key * value..(head + 1) * key * value];
            for at in head * case.tokens..(head + 1) * case.tokens {
                let (q, k) = (&q[at * key..(at + 1) * key], &k[at * key..(at + 1) * key]);
                s.iter_mut().for_each(|x| *x *= g[at].exp());
                for c in 0..value {
                    let seen: f64 = (0..key).map(|r| s[r * value + c] * k[r]).sum();
                    let delta = beta[at] * (v[at * value + c] - seen);
                    (0..key).for_each(|r| s[r * value + c] += k[r] * delta);
                    outputs.push((0..key).map(|r| s[r * value + c] * q[r]).sum());
                }
            }
        }
        (outputs, state)
    }

    fn largest_error(found: &Tensor, exact: &[f64]) -> f64 {
        let found = found.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap();
        assert_eq!(found.len(), exact.len());
        found.iter().zip(exact).map(|(f, e)| (f - e).abs()).fold(0.0, f64::max)
    }

    #[test]
    fn chunks_compute_the_definition() {
        for (tokens, same_key, decay, beta) in [
            (1, false, 0.1, 1.0),
            (3, false, 0.1, 1.0),
            (64, false, 0.01, 1.0),
            (65, false, 0.5, 1.0),
            (200, false, 0.001, 1.0),
            // A text that repeats itself: powers of A would reach 1e17 here.
            (128, true, 0.0, 0.0),
            (128, true, 0.01, 0.1),
            // A burst that forgets all: exp of the differences the other way round would overflow.
            (100, false, 30.0, 1.0),
        ] {
            let case = case(tokens, same_key, decay, beta);
            let (outputs, state) = by_definition(&case);
            for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::F64, 1e-6)] {
                let found = delta_rule(&case.inputs, &case.state.to_dtype(dtype).unwrap()).unwrap();
                let errors = (largest_error(&found.outputs, &outputs), largest_error(&found.state, &state));
                assert!(
                    errors.0 < tolerance && errors.1 < tolerance,
                    "{tokens} tokens, same key {same_key}, decay {decay}, beta {beta}: errors {errors:?} in {dtype:?}"
                );
            }
        }
    }
}
