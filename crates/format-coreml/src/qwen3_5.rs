//! The graph: the Qwen3.5 text model as MIL, for one call of T tokens.
//!
//! Letters of shapes: T tokens of this call; H hidden width; D head width; Q query heads, K key/value heads, G = Q / K;
//! C context; for linear layers k key heads, v value heads, d key width, e value width, N = 2kd + ve channels, W taps of
//! the convolution.
//!
//! The arithmetic is safe in fp16: norms divide by the largest magnitude before they square, exponents are never
//! positive, and sums that become exponents are not rounded in between. There is no loop and no operator whose output
//! shape depends on a value. Padding tokens (mask 0) get the embedding of token 0 and change no cache: no key or value
//! row, no step of the recurrence, no input of the convolution window.

use q35_architecture::{LayerKind, TextConfig};
use q35_format_mil::DType;
use q35_format_mil::build::Tensor;

use crate::WriteError;
use crate::caches::Caches;
use crate::tokens::{Padding, Tokens};
use crate::weight_store::{Function, WeightStore};

type Result<T, E = WriteError> = std::result::Result<T, E>;

/// Epsilon of the L2 norms of queries and keys in linear layers.
const L2_EPSILON: f64 = 1e-6;

/// One function of the model while its graph is being built.
pub(crate) struct Graph<'g, 'w, 'a> {
    pub(crate) f: &'g mut Function<'w>,
    pub(crate) weights: &'g mut WeightStore<'a>,
    pub(crate) config: &'a TextConfig,
    /// Type of activations.
    pub(crate) dtype: DType,
    /// C.
    pub(crate) context: usize,
}

impl Graph<'_, '_, '_> {
    /// A scalar constant of the activations' type.
    fn scalar(&mut self, value: f32) -> Result<Tensor> {
        Ok(self.f.shared_constant("scalar", self.dtype, &[], &[value])?)
    }

    /// Rows [1, T, H] of the embedding for `input_ids` int32 [1, T]. The matrix is split by rows into the `splits` parts
    /// of the tied head: the row is gathered from every part, and the part that holds the id is selected.
    pub(crate) fn embedding(&mut self, input_ids: &Tensor, splits: usize) -> Result<Tensor> {
        self.f.set_scope("embedding");
        let parts = self.weights.matrix_parts(self.f, "embed_tokens.weight", splits)?;
        let rows = match parts.as_slice() {
            [whole] => self.f.gather(whole, input_ids)?,
            parts => {
                let size = self.int(parts[0].shape()[0])?;
                let row = self.f.remainder(input_ids, &size)?;
                let part_of_id = self.f.floor_div(input_ids, &size)?;
                let mut candidates = Vec::with_capacity(parts.len());
                for part in parts {
                    let last = self.int(part.shape()[0] - 1)?;
                    let row = self.f.minimum(&row, &last)?;
                    candidates.push(self.f.gather(part, &row)?);
                }
                let candidates = self.f.concat(&candidates.iter().collect::<Vec<_>>(), 0)?;
                let (count, tokens) = (parts.len(), input_ids.shape()[1]);
                let numbers: Vec<i32> = (0..count as i32).collect();
                let numbers = self.f.int_constant("part_numbers", &[count, 1], &numbers)?;
                let selected = self.f.equal(&numbers, &part_of_id)?;
                let selected = self.f.cast(&selected, self.dtype)?;
                let selected = self.f.reshape(&selected, &[count, tokens, 1])?;
                let chosen = self.f.mul(&candidates, &selected)?;
                self.f.reduce_sum(&chosen, 0)?
            }
        };
        self.f.rename(&rows, "embedded")?;
        Ok(rows)
    }

    /// A scalar int32 constant.
    fn int(&mut self, value: usize) -> Result<Tensor> {
        Ok(self.f.int_constant("int", &[], &[i32::try_from(value).unwrap_or(i32::MAX)])?)
    }

    /// All layers and the final norm: [1, T, H] to [1, 1, H] of the last real token.
    pub(crate) fn layers(
        &mut self,
        embedded: &Tensor,
        tokens: &Tokens,
        caches: &mut dyn Caches,
    ) -> Result<Tensor> {
        let mut x = embedded.clone();
        for (layer, kind) in self.config.layer_types.iter().enumerate() {
            let prefix = format!("layers.{layer}");
            self.f.set_scope(&format!("layers_{layer}_mixer"));
            let normed = self.centered_norm(&x, &format!("{prefix}.input_layernorm.weight"))?;
            let mixed = match kind {
                LayerKind::LinearAttention => self.linear_attention(layer, &normed, tokens, caches)?,
                LayerKind::FullAttention => self.full_attention(layer, &normed, tokens, caches)?,
            };
            x = self.f.add(&x, &mixed)?;
            self.f.rename(&x, &format!("layers_{layer}_mixed"))?;

            self.f.set_scope(&format!("layers_{layer}_mlp"));
            let normed = self.centered_norm(&x, &format!("{prefix}.post_attention_layernorm.weight"))?;
            let gate = self.linear(&normed, &format!("{prefix}.mlp.gate_proj.weight"))?;
            let gate = self.f.silu(&gate)?;
            let up = self.linear(&normed, &format!("{prefix}.mlp.up_proj.weight"))?;
            let product = self.f.mul(&gate, &up)?;
            let down = self.linear(&product, &format!("{prefix}.mlp.down_proj.weight"))?;
            x = self.f.add(&x, &down)?;
            self.f.rename(&x, &format!("layers_{layer}_output"))?;
        }
        self.f.set_scope("final");
        let last = match &tokens.padding {
            Some(Padding { last: Some(last), .. }) => self.f.matmul(last, &x)?,
            _ => x,
        };
        let normed = self.centered_norm(&last, "norm.weight")?;
        self.f.rename(&normed, "final_norm")?;
        Ok(normed)
    }

    /// Logits fp16 [1, 1, vocabulary] of `x` [1, 1, H]; the head is split into `splits` matrices.
    pub(crate) fn head(&mut self, x: &Tensor, splits: usize) -> Result<Tensor> {
        self.f.set_scope("head");
        let name = if self.config.tie_word_embeddings { "embed_tokens.weight" } else { "lm_head.weight" };
        let parts = self.weights.matrix_parts(self.f, name, splits)?;
        let logits = parts.iter().map(|part| self.f.linear(x, part, None)).collect::<Result<Vec<_>, _>>()?;
        let logits = self.f.concat(&logits.iter().collect::<Vec<_>>(), -1)?;
        Ok(self.f.cast(&logits, DType::F16)?)
    }

    /// `x W^T` with a quantized weight [out, in].
    fn linear(&mut self, x: &Tensor, weight: &str) -> Result<Tensor> {
        let weight = self.weights.matrix(self.f, weight)?;
        Ok(self.f.linear(x, &weight, None)?)
    }

    /// `x / max(|x|, floor)` along the last axis, and the divisor. Squares of the result are within fp16.
    fn scaled(&mut self, x: &Tensor, floor: &Tensor) -> Result<(Tensor, Tensor)> {
        let magnitude = self.f.abs(x)?;
        let largest = self.f.reduce_max(&magnitude, -1)?;
        let largest = self.f.maximum(&largest, floor)?;
        Ok((self.f.real_div(x, &largest)?, largest))
    }

    /// `x / sqrt(sum or mean of x^2 + epsilon)` along the last axis.
    fn normalize(&mut self, x: &Tensor, epsilon: f64, mean: bool) -> Result<Tensor> {
        // With m = max(|x|, sqrt(epsilon)): x / sqrt(S(x^2) + epsilon) = (x/m) / sqrt(S((x/m)^2) + (sqrt(epsilon)/m)^2).
        let root = self.scalar(epsilon.sqrt() as f32)?;
        let (scaled, largest) = self.scaled(x, &root)?;
        let squares = self.f.square(&scaled)?;
        let total = if mean { self.f.reduce_mean(&squares, -1)? } else { self.f.reduce_sum(&squares, -1)? };
        let relative = self.f.real_div(&root, &largest)?;
        let relative = self.f.square(&relative)?;
        let total = self.f.add(&total, &relative)?;
        let inverse = self.f.rsqrt(&total)?;
        Ok(self.f.mul(&scaled, &inverse)?)
    }

    /// RMSNorm whose weight the checkpoint stores zero-centred (the plan adds 1).
    fn centered_norm(&mut self, x: &Tensor, weight: &str) -> Result<Tensor> {
        let normed = self.normalize(x, self.config.rms_norm_eps, true)?;
        let weight = self.weights.float_tensor(self.f, weight)?;
        Ok(self.f.mul(&normed, &weight)?)
    }

    /// Gated softmax attention: `x` [1, T, H] to [1, T, H].
    fn full_attention(
        &mut self,
        layer: usize,
        x: &Tensor,
        tokens: &Tokens,
        caches: &mut dyn Caches,
    ) -> Result<Tensor> {
        let config = self.config;
        let (queries, keys, width) =
            (config.num_attention_heads, config.num_key_value_heads, config.head_dim);
        let (count, group) = (tokens.count, queries / keys);
        let name = |part: &str| format!("layers.{layer}.self_attn.{part}.weight");

        let q = self.linear(x, &name("q_proj"))?;
        let q = self.f.reshape(&q, &[1, count, queries, 2 * width])?;
        let parts = self.f.split(&q, &[width, width], -1)?;
        let (q, gate) = (&parts[0], &parts[1]);
        let q = self.centered_norm(q, &name("q_norm"))?;
        let q = self.rotate(&q, tokens)?;
        let scale = self.scalar((width as f64).powf(-0.5) as f32)?;
        let q = self.f.mul(&q, &scale)?;
        let q = self.f.transpose(&q, &[0, 2, 1, 3])?;
        let q = self.f.reshape(&q, &[1, keys, group * count, width])?;

        let k = self.linear(x, &name("k_proj"))?;
        let k = self.f.reshape(&k, &[1, count, keys, width])?;
        let k = self.centered_norm(&k, &name("k_norm"))?;
        let k = self.rotate(&k, tokens)?;
        let k = self.f.transpose(&k, &[0, 2, 1, 3])?;
        let v = self.linear(x, &name("v_proj"))?;
        let v = self.f.reshape(&v, &[1, count, keys, width])?;
        let v = self.f.transpose(&v, &[0, 2, 1, 3])?;
        // [1, K, C, D] each, this call's tokens included.
        let (k, v) = caches.append_keys_values(self.f, layer, &k, &v, tokens)?;

        // States are fp16 in an fp32 model too.
        let (k, v) = (self.f.cast(&k, self.dtype)?, self.f.cast(&v, self.dtype)?);
        let scores = self.f.matmul_transposed(&q, &k)?;
        let scores = self.f.reshape(&scores, &[keys, group, count, self.context])?;
        let scores = self.f.add(&scores, &tokens.attention_mask)?;
        let weights = self.f.softmax(&scores)?;
        let weights = self.f.reshape(&weights, &[1, keys, group * count, self.context])?;
        let mixed = self.f.matmul(&weights, &v)?;
        let mixed = self.f.reshape(&mixed, &[1, queries, count, width])?;
        let mixed = self.f.transpose(&mixed, &[0, 2, 1, 3])?;
        let gate = self.f.sigmoid(gate)?;
        let mixed = self.f.mul(&mixed, &gate)?;
        let mixed = self.f.reshape(&mixed, &[1, count, queries * width])?;
        self.linear(&mixed, &name("o_proj"))
    }

    /// RoPE on the first R components of each head of `x` [1, T, heads, D]: component i is rotated with i + R / 2.
    fn rotate(&mut self, x: &Tensor, tokens: &Tokens) -> Result<Tensor> {
        let (half, rest) = (self.config.rotary_dim() / 2, self.config.head_dim - self.config.rotary_dim());
        let sizes = if rest == 0 { vec![half, half] } else { vec![half, half, rest] };
        let parts = self.f.split(x, &sizes, -1)?;
        let (first, second) = (&parts[0], &parts[1]);
        let a = self.f.mul(first, &tokens.cos)?;
        let b = self.f.mul(second, &tokens.sin)?;
        let rotated_first = self.f.sub(&a, &b)?;
        let a = self.f.mul(second, &tokens.cos)?;
        let b = self.f.mul(first, &tokens.sin)?;
        let rotated_second = self.f.add(&a, &b)?;
        let mut joined = vec![&rotated_first, &rotated_second];
        joined.extend(parts.get(2));
        Ok(self.f.concat(&joined, -1)?)
    }

    /// Gated DeltaNet: `x` [1, T, H] to [1, T, H].
    fn linear_attention(
        &mut self,
        layer: usize,
        x: &Tensor,
        tokens: &Tokens,
        caches: &mut dyn Caches,
    ) -> Result<Tensor> {
        let config = self.config;
        let count = tokens.count;
        let (key_heads, value_heads) = (config.linear_num_key_heads, config.linear_num_value_heads);
        let (key_width, value_width) = (config.linear_key_head_dim, config.linear_value_head_dim);
        let (key_dim, value_dim) = (config.linear_key_dim(), config.linear_value_dim());
        let name = |part: &str| format!("layers.{layer}.linear_attn.{part}");

        let qkv = self.linear(x, &name("in_proj_qkv.weight"))?;
        let qkv = self.convolve(layer, &qkv, tokens, caches)?;
        let qkv = self.f.silu(&qkv)?;
        let parts = self.f.split(&qkv, &[key_dim, key_dim, value_dim], -1)?;
        // [1, T, k, d], normalised, to [1, v, T, d]: a key head serves v / k consecutive value heads.
        let mut heads = |part: &Tensor, scale: Option<f32>| -> Result<Tensor> {
            let part = self.f.reshape(part, &[1, count, key_heads, key_width])?;
            let mut part = self.normalize(&part, L2_EPSILON, false)?;
            if let Some(scale) = scale {
                let scale = self.scalar(scale)?;
                part = self.f.mul(&part, &scale)?;
            }
            let part = self.f.transpose(&part, &[0, 2, 1, 3])?;
            if key_heads == value_heads {
                return Ok(part);
            }
            let part = self.f.reshape(&part, &[key_heads, 1, count, key_width])?;
            let part = self.f.tile(&part, &[1, value_heads / key_heads, 1, 1])?;
            Ok(self.f.reshape(&part, &[1, value_heads, count, key_width])?)
        };
        let q = heads(&parts[0], Some((key_width as f64).powf(-0.5) as f32))?;
        let k = heads(&parts[1], None)?;
        let v = self.f.reshape(&parts[2], &[1, count, value_heads, value_width])?;
        let v = self.f.transpose(&v, &[0, 2, 1, 3])?;

        // [1, T, v] each; the projections of the gates stay in float.
        let b = self.weights.float_tensor(self.f, &name("in_proj_b.weight"))?;
        let beta = self.f.linear(x, &b, None)?;
        let beta = self.f.sigmoid(&beta)?;
        let a = self.weights.float_tensor(self.f, &name("in_proj_a.weight"))?;
        let step_bias = self.weights.float_tensor(self.f, &name("dt_bias"))?;
        let step = self.f.linear(x, &a, Some(&step_bias))?;
        let step = self.f.softplus(&step)?;
        let rate = self.weights.float_tensor(self.f, &name("A_log"))?;
        let decay = self.f.mul(&step, &rate)?;
        let beta = self.gate_by_head(&beta, tokens)?;
        let decay = self.gate_by_head(&decay, tokens)?;

        let state = caches.recurrent_state(self.f, layer)?;
        let gates = Gates { beta, decay };
        let (mixed, state) = if count == 1 {
            self.delta_step(&q, &k, &v, &gates, &state)?
        } else {
            self.delta_chunk(&q, &k, &v, &gates, &state)?
        };
        caches.set_recurrent_state(self.f, layer, &state)?;

        let mixed = self.f.transpose(&mixed, &[0, 2, 1, 3])?;
        let mixed = self.normalize(&mixed, config.rms_norm_eps, true)?;
        let weight = self.weights.float_tensor(self.f, &name("norm.weight"))?;
        let mixed = self.f.mul(&mixed, &weight)?;
        let z = self.linear(x, &name("in_proj_z.weight"))?;
        let z = self.f.silu(&z)?;
        let z = self.f.reshape(&z, &[1, count, value_heads, value_width])?;
        let mixed = self.f.mul(&mixed, &z)?;
        let mixed = self.f.reshape(&mixed, &[1, count, value_dim])?;
        self.linear(&mixed, &name("out_proj.weight"))
    }

    /// Causal depthwise convolution of `x` [1, T, N], preceded by the convolution window.
    fn convolve(
        &mut self,
        layer: usize,
        x: &Tensor,
        tokens: &Tokens,
        caches: &mut dyn Caches,
    ) -> Result<Tensor> {
        let (count, channels, before) =
            (tokens.count, self.config.linear_conv_dim(), self.config.linear_conv_kernel_dim - 1);
        let state = caches.conv_state(self.f, layer)?;
        let window = self.f.concat(&[&state, x], 1)?;
        let next = match &tokens.padding {
            // The last W - 1 inputs before the padding.
            Some(padding) => self.f.matmul(&padding.window, &window)?,
            None => self.f.slice(&window, &[0, count, 0], &[1, count + before, channels])?,
        };
        caches.set_conv_state(self.f, layer, &next)?;
        let taps = self.weights.float_tensor(self.f, &format!("layers.{layer}.linear_attn.conv1d.weight"))?;
        let window = self.f.transpose(&window, &[0, 2, 1])?;
        let out = self.f.depthwise_conv(&window, &taps)?;
        Ok(self.f.transpose(&out, &[0, 2, 1])?)
    }

    /// [1, T, v] to [1, v, T, 1], 0 for padding: a step of the recurrence with both gates 0 keeps the state.
    fn gate_by_head(&mut self, gate: &Tensor, tokens: &Tokens) -> Result<Tensor> {
        let gate = match &tokens.padding {
            Some(padding) => self.f.mul(gate, &padding.mask)?,
            None => gate.clone(),
        };
        let gate = self.f.transpose(&gate, &[0, 2, 1])?;
        Ok(self.f.reshape(&gate, &[1, self.config.linear_num_value_heads, tokens.count, 1])?)
    }

    /// One step of the delta rule: q, k [1, v, 1, d], v [1, v, 1, e], S [1, v, d, e] to the output [1, v, 1, e] and the
    /// next S.
    fn delta_step(
        &mut self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        gates: &Gates,
        state: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let decay = self.f.exp(&gates.decay)?;
        let state = self.f.mul(state, &decay)?;
        let prediction = self.f.matmul(k, &state)?;
        let delta = self.f.sub(v, &prediction)?;
        let delta = self.f.mul(&delta, &gates.beta)?;
        let update = self.f.transposed_matmul(k, &delta)?;
        let state = self.f.add(&state, &update)?;
        Ok((self.f.matmul(q, &state)?, state))
    }

    /// T steps of the delta rule by matrix products (the chunked form of DeltaNet): q, k [1, v, T, d], v [1, v, T, e],
    /// S [1, v, d, e] to the outputs [1, v, T, e] and S after the last step.
    ///
    /// With c_t the sum of the log decays up to t, the update n_i that step i adds to the state is
    /// n_i = beta_i (v_i - e^(c_i) S^T k_i - sum over j < i of (k_i . k_j) e^(c_i - c_j) n_j), that is (1 + A) n = rhs.
    fn delta_chunk(
        &mut self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        gates: &Gates,
        state: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let count = q.shape()[2];
        let causal = self.square("lower", count, |row, column| column <= row)?;
        let before = self.square("strictly_lower", count, |row, column| column < row)?;
        // c_i - c_j is computed as the sum of the log decays of the steps j < m <= i: a difference of prefix sums would
        // cancel.
        let after = self.f.mul(&gates.decay, &before)?;
        let between = self.f.matmul(&causal, &after)?;
        let between = self.f.exp(&between)?;
        let sum = self.f.matmul(&causal, &gates.decay)?;
        let from_start = self.f.exp(&sum)?;
        let rest = self.f.transposed_matmul(&before, &gates.decay)?;
        let to_end = self.f.exp(&rest)?;
        let total = self.f.reduce_sum(&gates.decay, 2)?;
        let total = self.f.exp(&total)?;

        let similarity = self.f.matmul_transposed(k, k)?;
        let similarity = self.f.mul(&similarity, &between)?;
        let similarity = self.f.mul(&similarity, &before)?;
        let a = self.f.mul(&similarity, &gates.beta)?;
        let k_decayed = self.f.mul(k, &from_start)?;
        let prediction = self.f.matmul(&k_decayed, state)?;
        let rhs = self.f.sub(v, &prediction)?;
        let rhs = self.f.mul(&rhs, &gates.beta)?;
        let inverse = self.unit_lower_inverse(&a)?;
        let delta = self.f.matmul(&inverse, &rhs)?;

        let q_decayed = self.f.mul(q, &from_start)?;
        let from_state = self.f.matmul(&q_decayed, state)?;
        let scores = self.f.matmul_transposed(q, k)?;
        let scores = self.f.mul(&scores, &between)?;
        let scores = self.f.mul(&scores, &causal)?;
        let update = self.f.matmul(&scores, &delta)?;
        let out = self.f.add(&from_state, &update)?;

        let decayed = self.f.mul(state, &total)?;
        let k_remaining = self.f.mul(k, &to_end)?;
        let added = self.f.transposed_matmul(&k_remaining, &delta)?;
        Ok((out, self.f.add(&decayed, &added)?))
    }

    /// (1 + A)^-1 for strictly lower triangular A [1, v, T, T], by diagonal blocks of 1, 2, 4, ...: with X the inverse of
    /// the diagonal blocks of one size and B the part of A between pairs of them, the inverse of the next size is
    /// X - X B X.
    ///
    /// The product (1 - A)(1 + A^2)(1 + A^4)... is the same matrix, but with repeated keys its factors grow like
    /// binomials and cancel only at the end, which fp16 does not survive. Here every factor is part of an inverse.
    fn unit_lower_inverse(&mut self, a: &Tensor) -> Result<Tensor> {
        let count = a.shape()[2];
        let identity = self.square("identity", count, |row, column| row == column)?;
        let mut inverse: Option<Tensor> = None;
        let mut size = 1;
        while size < count {
            let joins = |row: usize, column: usize| {
                row / (2 * size) == column / (2 * size) && row / size > column / size
            };
            let mask = self.square(&format!("joins_{size}"), count, joins)?;
            let joining = self.f.mul(a, &mask)?;
            inverse = Some(match inverse {
                None => self.f.sub(&identity, &joining)?,
                Some(inverse) => {
                    let product = self.f.matmul(&inverse, &joining)?;
                    let product = self.f.matmul(&product, &inverse)?;
                    self.f.sub(&inverse, &product)?
                }
            });
            size *= 2;
        }
        Ok(inverse.unwrap_or(identity))
    }

    /// A constant [size, size]: 1 where `is_one(row, column)`, else 0.
    fn square(&mut self, name: &str, size: usize, is_one: impl Fn(usize, usize) -> bool) -> Result<Tensor> {
        let places = (0..size).flat_map(|row| (0..size).map(move |column| (row, column)));
        let values: Vec<f32> = places.map(|(row, column)| f32::from(u8::from(is_one(row, column)))).collect();
        Ok(self.f.shared_constant(name, self.dtype, &[size, size], &values)?)
    }
}

/// Gates of one linear layer, [1, v, T, 1] each.
struct Gates {
    /// Learning rate of the delta rule, 0 to 1.
    beta: Tensor,
    /// Logarithm of the factor that decays the state, never positive.
    decay: Tensor,
}
