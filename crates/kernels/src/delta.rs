//! Gated DeltaNet (linear attention): causal convolution, delta rule and gated norm of one key head and its value heads.
//!
//! Per token, with q and k [key width] L2-normalised, v [value width], decay a = exp(-exp(A_log) * softplus(a + dt_bias)) and
//! b = sigmoid(b), the recurrent state S [key width, value width] is updated as
//!
//! ```text
//! S = a * S + k (b * (v - a * S^T k))^T        o = S^T q / sqrt(key width)
//! ```
//!
//! The state of a value head is stored in blocks of sixteen value columns, [value width / 16][key width][16], so that a block
//! stays in L1 while all tokens of a chunk pass over it. Tokens are processed one by one, so results do not depend on chunk
//! boundaries; the chunked matrix form would be faster in prefill, but differ with every chunking.

use std::cell::RefCell;

use crate::column_block::ColumnBlock;
use crate::elementwise::{load_partial, silu, store_partial, sum_of_squares};
use crate::rotary::l2_norm;
use crate::simd::{Isa, Kernel, Simd};

/// Sizes of a linear-attention layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeltaShape {
    /// Key (and query) heads.
    pub key_heads: usize,
    /// Value heads, a multiple of the key heads: each key head is shared by `value_heads / key_heads` neighbouring ones.
    pub value_heads: usize,
    /// Width of a key head.
    pub key_width: usize,
    /// Width of a value head.
    pub value_width: usize,
    /// Kernel size of the convolution.
    pub taps: usize,
}

impl DeltaShape {
    /// Number of value heads per key head.
    pub fn value_heads_per_key_head(&self) -> usize {
        self.value_heads / self.key_heads
    }

    /// Convolution channels of one key head: its query, its key, and the values of its value heads.
    pub fn head_channels(&self) -> usize {
        2 * self.key_width + self.value_heads_per_key_head() * self.value_width
    }

    /// Convolution channels of the layer: all queries, all keys, all values.
    pub fn channels(&self) -> usize {
        2 * self.key_heads * self.key_width + self.value_heads * self.value_width
    }

    /// Elements of the convolution state of one key head: [taps - 1, head_channels], oldest first.
    pub fn convolution_state(&self) -> usize {
        (self.taps - 1) * self.head_channels()
    }

    /// Elements of the recurrent state of one value head, in the blocked layout of this module.
    pub fn recurrent_state(&self) -> usize {
        self.value_width.next_multiple_of(16) * self.key_width
    }

    /// Start and width of one key head's channels among the layer's: its query, its key, its values.
    fn channel_ranges(&self, head: usize) -> [(usize, usize); 3] {
        let (keys, values) =
            (self.key_heads * self.key_width, self.value_heads_per_key_head() * self.value_width);
        [
            (head * self.key_width, self.key_width),
            (keys + head * self.key_width, self.key_width),
            (2 * keys + head * values, values),
        ]
    }

    /// Repacks convolution weights from [channels, taps], the layout of checkpoints, to `[key heads][taps][head_channels]`.
    ///
    /// # Panics
    /// If the number of weights does not match the shape.
    pub fn pack_taps(&self, taps: &[f32]) -> Vec<f32> {
        assert_eq!(taps.len(), self.channels() * self.taps, "[channels, taps]");
        let mut arranged = Vec::with_capacity(taps.len());
        for head in 0..self.key_heads {
            for tap in 0..self.taps {
                for (start, width) in self.channel_ranges(head) {
                    arranged.extend((start..start + width).map(|channel| taps[channel * self.taps + tap]));
                }
            }
        }
        arranged
    }

    /// A value head's recurrent state as [key width, value width], row-major.
    pub fn row_major_state(&self, state: &[f32]) -> Vec<f32> {
        let mut plain = vec![0.0; self.key_width * self.value_width];
        for (key, row) in plain.chunks_exact_mut(self.value_width).enumerate() {
            for (value, cell) in row.iter_mut().enumerate() {
                *cell = state[(value / 16 * self.key_width + key) * 16 + value % 16];
            }
        }
        plain
    }
}

/// Weights and projected inputs of a layer, shared by all heads.
#[derive(Clone, Copy, Debug)]
pub struct DeltaLayer<'a> {
    /// Sizes.
    pub shape: DeltaShape,
    /// Convolution weights as [`DeltaShape::pack_taps`] returns them.
    pub taps: &'a [f32],
    /// -exp(A_log) [value heads].
    pub decay: &'a [f32],
    /// dt_bias [value heads].
    pub step_bias: &'a [f32],
    /// Weight of the gated norm [value width].
    pub norm: &'a [f32],
    /// Epsilon of the gated norm.
    pub norm_eps: f32,
    /// Projected queries, keys and values before the convolution [tokens, channels].
    pub qkv: &'a [f32],
    /// Output gates [tokens, value heads * value width].
    pub z: &'a [f32],
    /// Projected inputs of beta, before the sigmoid [tokens, value heads].
    pub b: &'a [f32],
    /// Projected inputs of the decay, before bias and softplus [tokens, value heads].
    pub a: &'a [f32],
}

/// States and outputs of one key head; different heads may run in parallel.
#[derive(Debug)]
pub struct DeltaHead<'a> {
    /// Index of the key head.
    pub head: usize,
    /// Convolution window, [`DeltaShape::convolution_state`] elements.
    pub convolution: &'a mut [f32],
    /// Recurrent states, [`DeltaShape::recurrent_state`] elements per value head.
    pub recurrent: &'a mut [f32],
    /// Columns of its value heads in the output [tokens, value heads * value width].
    pub out: ColumnBlock<'a, f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Scratch buffers of a thread.
#[derive(Default)]
struct Scratch {
    /// Inputs of the convolution [taps - 1 + tokens, head_channels].
    rows: Vec<f32>,
    /// Outputs of the convolution [tokens, head_channels].
    mixed: Vec<f32>,
    /// Outputs of the delta rule [tokens, value width rounded up to 16].
    outputs: Vec<f32>,
    /// Beta and decay of each token.
    gates: Vec<(f32, f32)>,
}

/// Epsilon under the root of the L2 norms.
const L2_EPS: f32 = 1e-6;

/// Runs one key head over all tokens: updates its states and writes its normed and gated outputs.
///
/// # Panics
/// If the size of a slice does not match the shape.
pub fn delta_head(isa: Isa, layer: &DeltaLayer<'_>, head: &mut DeltaHead<'_>) {
    let shape = layer.shape;
    assert_eq!(head.convolution.len(), shape.convolution_state(), "convolution state");
    assert_eq!(
        head.recurrent.len(),
        shape.value_heads_per_key_head() * shape.recurrent_state(),
        "recurrent state"
    );
    assert_eq!(
        head.out.columns(),
        shape.value_heads_per_key_head() * shape.value_width,
        "columns of the output"
    );
    assert_eq!(layer.taps.len(), shape.channels() * shape.taps, "taps");
    SCRATCH.with_borrow_mut(|scratch| isa.run(HeadKernel { layer, head, scratch }));
}

struct HeadKernel<'a, 'b> {
    layer: &'a DeltaLayer<'a>,
    head: &'a mut DeltaHead<'b>,
    scratch: &'a mut Scratch,
}

impl Kernel for HeadKernel<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { layer, head, scratch } = self;
        let shape = layer.shape;
        let (keys, values, heads_per_key) =
            (shape.key_width, shape.value_width, shape.value_heads_per_key_head());
        let width = shape.head_channels();
        let tokens = layer.qkv.len() / shape.channels();
        convolve(simd, layer, head, scratch, tokens);
        for mixed in scratch.mixed.chunks_exact_mut(width) {
            l2_norm(simd, &mut mixed[..keys], L2_EPS, 1.0 / (keys as f32).sqrt());
            l2_norm(simd, &mut mixed[keys..2 * keys], L2_EPS, 1.0);
        }
        let padded_values = values.next_multiple_of(16);
        scratch.outputs.resize(tokens * padded_values, 0.0);
        for (index, state) in head.recurrent.chunks_exact_mut(shape.recurrent_state()).enumerate() {
            let value_head = head.head * heads_per_key + index;
            scratch.gates.clear();
            scratch.gates.extend((0..tokens).map(|t| {
                let at = t * shape.value_heads + value_head;
                let beta = 1.0 / (1.0 + (-layer.b[at]).exp());
                let step = softplus(layer.a[at] + layer.step_bias[value_head]);
                (beta, (layer.decay[value_head] * step).exp())
            }));
            for (block, state) in state.chunks_exact_mut(16 * keys).enumerate() {
                let state = state.as_chunks_mut::<16>().0;
                let columns = 16.min(values - 16 * block);
                let mixed = scratch.mixed.chunks_exact(width).zip(&scratch.gates);
                for (t, (mixed, &(beta, decay))) in mixed.enumerate() {
                    let (q, rest) = mixed.split_at(keys);
                    let (k, v) = rest.split_at(keys);
                    let v = load_partial(simd, &v[index * values + 16 * block..][..columns]);
                    let out = delta_step(simd, state, q, k, v, beta, decay);
                    let place = &mut scratch.outputs[t * padded_values + 16 * block..];
                    simd.store(out, place.first_chunk_mut().expect("padded to vectors"));
                }
            }
            for (t, o) in scratch.outputs.chunks_exact(padded_values).enumerate() {
                let z = &layer.z[t * shape.value_heads * values + value_head * values..][..values];
                let out = &mut head.out.row(t)[index * values..][..values];
                gated_norm(simd, &o[..values], z, layer.norm, layer.norm_eps, out);
            }
        }
    }
}

fn softplus(x: f32) -> f32 {
    // For large x, ln(1 + e^x) is x to the last bit.
    if x > 20.0 { x } else { x.exp().ln_1p() }
}

/// Convolves the head's channels of all tokens over time and applies SiLU; writes to `scratch.mixed`.
#[inline(always)]
fn convolve<S: Simd>(
    simd: S,
    layer: &DeltaLayer<'_>,
    head: &mut DeltaHead<'_>,
    scratch: &mut Scratch,
    tokens: usize,
) {
    let shape = layer.shape;
    let (width, before) = (shape.head_channels(), shape.taps - 1);
    scratch.rows.clear();
    scratch.rows.extend_from_slice(head.convolution);
    for row in layer.qkv.chunks_exact(shape.channels()) {
        for (start, count) in shape.channel_ranges(head.head) {
            scratch.rows.extend_from_slice(&row[start..start + count]);
        }
    }
    head.convolution.copy_from_slice(&scratch.rows[tokens * width..]);
    scratch.mixed.resize(tokens * width, 0.0);
    let taps = &layer.taps[head.head * shape.taps * width..][..shape.taps * width];
    for (t, mixed) in scratch.mixed.chunks_exact_mut(width).enumerate() {
        let rows = &scratch.rows[t * width..][..(before + 1) * width];
        for (at, mixed) in mixed.chunks_mut(16).enumerate() {
            let mut sum = simd.splat(0.0);
            for (tap, row) in taps.chunks_exact(width).zip(rows.chunks_exact(width)) {
                let (tap, row) = (load_partial(simd, &tap[16 * at..]), load_partial(simd, &row[16 * at..]));
                sum = simd.fma(tap, row, sum);
            }
            store_partial(simd, silu(simd, sum), mixed);
        }
    }
}

/// Updates one block of the state [keys][16 values] by one token; returns the token's outputs.
#[inline(always)]
fn delta_step<S: Simd>(
    simd: S,
    state: &mut [[f32; 16]],
    q: &[f32],
    k: &[f32],
    v: S::F32,
    beta: f32,
    decay: f32,
) -> S::F32 {
    // Four accumulators in rotation hide the latency of the multiply-add; chunks of four keep them in registers.
    let keys = state.len();
    let mut sums = [simd.splat(0.0); 4];
    let (k_quads, k_rest) = k[..keys].as_chunks::<4>();
    let (q_quads, q_rest) = q[..keys].as_chunks::<4>();
    let (state_quads, state_rest) = state.as_chunks_mut::<4>();
    for (state, k) in state_quads.iter().zip(k_quads) {
        for i in 0..4 {
            sums[i] = simd.fma(simd.splat(k[i]), simd.load(&state[i]), sums[i]);
        }
    }
    for ((sum, state), &k) in sums.iter_mut().zip(&*state_rest).zip(k_rest) {
        *sum = simd.fma(simd.splat(k), simd.load(state), *sum);
    }
    let recalled = simd.add(simd.add(sums[0], sums[1]), simd.add(sums[2], sums[3]));
    let decay = simd.splat(decay);
    let delta = simd.mul(simd.splat(beta), simd.sub(v, simd.mul(decay, recalled)));
    let mut sums = [simd.splat(0.0); 4];
    for ((state, k), q) in state_quads.iter_mut().zip(k_quads).zip(q_quads) {
        for i in 0..4 {
            let new = simd.fma(simd.splat(k[i]), delta, simd.mul(decay, simd.load(&state[i])));
            simd.store(new, &mut state[i]);
            sums[i] = simd.fma(simd.splat(q[i]), new, sums[i]);
        }
    }
    for (((sum, state), &k), &q) in sums.iter_mut().zip(state_rest).zip(k_rest).zip(q_rest) {
        let new = simd.fma(simd.splat(k), delta, simd.mul(decay, simd.load(state)));
        simd.store(new, state);
        *sum = simd.fma(simd.splat(q), new, *sum);
    }
    simd.add(simd.add(sums[0], sums[1]), simd.add(sums[2], sums[3]))
}

/// `out` = weight * o / rms(o) * silu(z).
#[inline(always)]
fn gated_norm<S: Simd>(simd: S, o: &[f32], z: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let factor = simd.splat(1.0 / (sum_of_squares(simd, o) / o.len() as f32 + eps).sqrt());
    for (at, out) in out.chunks_mut(16).enumerate() {
        let from = 16 * at;
        let until = from + out.len();
        let normed = simd.mul(load_partial(simd, &o[from..until]), factor);
        let weighted = simd.mul(normed, load_partial(simd, &weight[from..until]));
        let gated = simd.mul(weighted, silu(simd, load_partial(simd, &z[from..until])));
        store_partial(simd, gated, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Case {
        shape: DeltaShape,
        tokens: usize,
        taps: Vec<f32>,
        decay: Vec<f32>,
        step_bias: Vec<f32>,
        norm: Vec<f32>,
        qkv: Vec<f32>,
        z: Vec<f32>,
        b: Vec<f32>,
        a: Vec<f32>,
    }

    fn numbers(count: usize, seed: f32) -> Vec<f32> {
        (0..count).map(|i| ((i as f32 + 1.0) * seed).sin()).collect()
    }

    impl Case {
        fn new(shape: DeltaShape, tokens: usize) -> Self {
            let outputs = shape.value_heads * shape.value_width;
            Self {
                shape,
                tokens,
                taps: numbers(shape.channels() * shape.taps, 0.73),
                decay: numbers(shape.value_heads, 0.31).iter().map(|x| -x.abs()).collect(),
                step_bias: numbers(shape.value_heads, 0.47),
                norm: numbers(shape.value_width, 0.19),
                qkv: numbers(tokens * shape.channels(), 0.83),
                z: numbers(tokens * outputs, 0.57),
                b: numbers(tokens * shape.value_heads, 0.29),
                a: numbers(tokens * shape.value_heads, 0.91),
            }
        }

        /// Outputs and states when the tokens are processed in the given chunks.
        fn run(&self, isa: Isa, chunks: &[usize]) -> (Vec<f32>, Vec<f32>) {
            let shape = self.shape;
            let outputs = shape.value_heads * shape.value_width;
            let mut convolution = vec![0.0; shape.key_heads * shape.convolution_state()];
            let mut recurrent = vec![0.0; shape.value_heads * shape.recurrent_state()];
            let (mut out, mut from) = (Vec::new(), 0);
            let taps = shape.pack_taps(&self.taps);
            for &tokens in chunks {
                let part = |of: &[f32], width: usize| of[from * width..(from + tokens) * width].to_vec();
                let (qkv, z) = (part(&self.qkv, shape.channels()), part(&self.z, outputs));
                let (b, a) = (part(&self.b, shape.value_heads), part(&self.a, shape.value_heads));
                let layer = DeltaLayer {
                    shape,
                    taps: &taps,
                    decay: &self.decay,
                    step_bias: &self.step_bias,
                    norm: &self.norm,
                    norm_eps: 1e-6,
                    qkv: &qkv,
                    z: &z,
                    b: &b,
                    a: &a,
                };
                let mut chunk = vec![0.0; tokens * outputs];
                let columns = ColumnBlock::split(
                    &mut chunk,
                    outputs,
                    shape.value_heads_per_key_head() * shape.value_width,
                );
                let states = convolution
                    .chunks_mut(shape.convolution_state())
                    .zip(recurrent.chunks_mut(shape.value_heads_per_key_head() * shape.recurrent_state()));
                for (head, ((convolution, recurrent), out)) in states.zip(columns).enumerate() {
                    delta_head(isa, &layer, &mut DeltaHead { head, convolution, recurrent, out });
                }
                out.extend(chunk);
                from += tokens;
            }
            (out, recurrent)
        }

        /// Reference in f64, from the projections on.
        fn plain(&self) -> Vec<f64> {
            let s = self.shape;
            let silu = |x: f64| x / (1.0 + (-x).exp());
            let mixed = |t: usize, channel: usize| {
                let sum: f64 = (0..s.taps)
                    .filter(|tap| t + tap + 1 >= s.taps)
                    .map(|tap| {
                        f64::from(self.taps[channel * s.taps + tap])
                            * f64::from(self.qkv[(t + tap + 1 - s.taps) * s.channels() + channel])
                    })
                    .sum();
                silu(sum)
            };
            let normed = |t: usize, start: usize| {
                let x: Vec<f64> = (0..s.key_width).map(|i| mixed(t, start + i)).collect();
                let norm = (x.iter().map(|x| x * x).sum::<f64>() + 1e-6).sqrt();
                x.into_iter().map(|x| x / norm).collect::<Vec<_>>()
            };
            let mut out = vec![0.0; self.tokens * s.value_heads * s.value_width];
            for head in 0..s.value_heads {
                let key_head = head / s.value_heads_per_key_head();
                let mut state = vec![vec![0.0; s.value_width]; s.key_width];
                for t in 0..self.tokens {
                    let q = normed(t, key_head * s.key_width);
                    let k = normed(t, (s.key_heads + key_head) * s.key_width);
                    let values = 2 * s.key_heads * s.key_width + head * s.value_width;
                    let at = t * s.value_heads + head;
                    let beta = 1.0 / (1.0 + (-f64::from(self.b[at])).exp());
                    let rate = (f64::from(self.a[at]) + f64::from(self.step_bias[head])).exp().ln_1p();
                    let decay = (f64::from(self.decay[head]) * rate).exp();
                    let mut o = vec![0.0; s.value_width];
                    for (column, o) in o.iter_mut().enumerate() {
                        state.iter_mut().for_each(|row| row[column] *= decay);
                        let recalled: f64 = state.iter().zip(&k).map(|(row, k)| row[column] * k).sum();
                        let delta = beta * (mixed(t, values + column) - recalled);
                        state.iter_mut().zip(&k).for_each(|(row, k)| row[column] += k * delta);
                        *o = state.iter().zip(&q).map(|(row, q)| row[column] * q).sum::<f64>()
                            / (s.key_width as f64).sqrt();
                    }
                    let rms = (o.iter().map(|o| o * o).sum::<f64>() / s.value_width as f64 + 1e-6).sqrt();
                    for (column, o) in o.iter().enumerate() {
                        let place = at * s.value_width + column;
                        out[place] = f64::from(self.norm[column]) * o / rms * silu(f64::from(self.z[place]));
                    }
                }
            }
            out
        }
    }

    fn shapes() -> [DeltaShape; 3] {
        let shape = |key_heads, value_heads, key_width, value_width, taps| DeltaShape {
            key_heads,
            value_heads,
            key_width,
            value_width,
            taps,
        };
        [shape(2, 2, 16, 16, 4), shape(2, 6, 20, 40, 4), shape(1, 2, 7, 9, 3)]
    }

    #[test]
    fn heads_follow_the_formulas() {
        for shape in shapes() {
            let case = Case::new(shape, 9);
            let (out, _) = case.run(Isa::detect(), &[9]);
            for (got, expected) in out.iter().zip(case.plain()) {
                assert!((f64::from(*got) - expected).abs() < 2e-4, "{got} for {expected} in {shape:?}");
            }
        }
    }

    #[test]
    fn chunks_and_instruction_sets_change_no_bit() {
        for shape in shapes() {
            let case = Case::new(shape, 9);
            let whole = case.run(Isa::portable(), &[9]);
            for isa in Isa::available() {
                for chunks in [&[9][..], &[4, 5], &[1; 9], &[2, 1, 6]] {
                    assert_eq!(case.run(isa, chunks), whole, "{} in chunks {chunks:?}", isa.name());
                }
            }
        }
    }

    #[test]
    fn a_state_reads_back_as_keys_by_values() {
        let shape = DeltaShape { key_heads: 1, value_heads: 1, key_width: 3, value_width: 20, taps: 4 };
        let mut state = vec![0.0; shape.recurrent_state()];
        state[(3 + 2) * 16 + 1] = 5.0;
        let plain = shape.row_major_state(&state);
        assert_eq!(plain.iter().position(|&x| x == 5.0), Some(2 * 20 + 17));
    }
}
