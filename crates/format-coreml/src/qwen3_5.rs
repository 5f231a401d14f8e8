//! The model: Qwen3.5's text tower as MIL, for one chunk of `T` tokens.
//!
//! Letters used for shapes: T tokens of this call; H hidden width; D head width; Q query heads, K key/value heads,
//! G = Q / K; C context; for linear layers k key heads, v value heads, d key width, e value width, N = 2kd + ve
//! channels, W taps of the convolution.
//!
//! Everything is made for fp16: norms scale by the largest magnitude before they square, exponents are taken of
//! numbers that are never positive, and sums that decide an exponent are added up before they are rounded. There is
//! no loop and no operator whose size depends on a value. Tokens whose mask is 0 get the embedding of token 0 and
//! then leave no trace: no key or value row, no step of the recurrence, no place in the convolution's window.

use q35_architecture::{LayerKind, TextConfig};
use q35_format_mil::DType;
use q35_format_mil::build::Tensor;

use crate::ConvertError;
use crate::caches::Caches;
use crate::store::{Function, Store};

type Result<T, E = ConvertError> = std::result::Result<T, E>;

/// Epsilon of the L2 norms of queries and keys in linear layers.
const L2_EPSILON: f64 = 1e-6;
/// What is added to a forbidden attention score: far below any other, and within fp16.
const FORBIDDEN: f32 = -10_000.0;

/// One function of the model while it is being written.
pub(crate) struct Graph<'g, 'w, 'a> {
    pub(crate) f: &'g mut Function<'w>,
    pub(crate) weights: &'g mut Store<'a>,
    pub(crate) config: &'a TextConfig,
    /// Of activations.
    pub(crate) dtype: DType,
    /// C.
    pub(crate) context: usize,
}

/// What the layers need to know of the tokens of a call.
pub(crate) struct Tokens {
    /// T.
    pub(crate) count: usize,
    /// int32 [1]: tokens already seen.
    pub(crate) position: Tensor,
    /// int32 [1]: tokens seen after a call of one token.
    pub(crate) after: Tensor,
    /// [T, C]: 0 where token t may look at position c, else [`FORBIDDEN`]; or what the caller gives in this place.
    attention_mask: Tensor,
    /// [1, T, 1, R / 2]: of the rotary angles, R components being rotated.
    cos: Tensor,
    sin: Tensor,
    /// Absent where every token is a real one.
    padding: Option<Padding>,
}

/// Where padding may follow the real tokens.
struct Padding {
    /// [1, T, 1]: 1 for a real token, else 0.
    mask: Tensor,
    /// [W - 1, T + W - 1]: row r is 1 at place r + the number of real tokens.
    window: Tensor,
    /// [1, 1, T]: 1 at the last real token; [`None`] when there is only one.
    last: Option<Tensor>,
    /// [T, C]: 1 where token t is real and stands at position c.
    place: Tensor,
}

impl Tokens {
    /// [T, C]: 1 where token t is real and stands at position c; [`None`] for a single token, whose place is
    /// `position`.
    pub(crate) fn place(&self) -> Option<&Tensor> {
        self.padding.as_ref().filter(|_| self.count > 1).map(|padding| &padding.place)
    }
}

impl Graph<'_, '_, '_> {
    /// A scalar of the activations' type.
    fn scalar(&mut self, value: f32) -> Result<Tensor> {
        Ok(self.f.shared_constant("scalar", self.dtype, &[], &[value])?)
    }

    /// Looks at `attention_mask` int32 [1, T] and `position` int32 [1].
    pub(crate) fn tokens(&mut self, attention_mask: &Tensor, position: &Tensor) -> Result<Tokens> {
        self.f.set_scope("tokens");
        let (count, context, taps) =
            (attention_mask.shape()[1], self.context, self.config.linear_conv_kernel_dim);
        let mask = self.f.cast(attention_mask, self.dtype)?;
        let mask = self.f.reshape(&mask, &[1, count, 1])?;
        let real = self.f.reduce_sum(attention_mask, 1)?;

        let at = self.absolute_positions(count, position)?;
        let columns: Vec<i32> = (0..context as i32).collect();
        let columns = self.f.int_constant("positions", &[1, context], &columns)?;
        let here = self.f.equal(&at, &columns)?;
        let here = self.f.cast(&here, self.dtype)?;
        let by_row = self.f.reshape(&mask, &[count, 1])?;
        let place = self.f.mul(&here, &by_row)?;
        let allowed = self.f.less_equal(&columns, &at)?;
        let forbidden = self.forbidden(&allowed)?;

        let from: Vec<i32> = (0..taps as i32 - 1)
            .flat_map(|row| (0..(count + taps) as i32 - 1).map(move |column| column - row))
            .collect();
        let from = self.f.int_constant("window_offsets", &[taps - 1, count + taps - 1], &from)?;
        let window = self.f.equal(&from, &real)?;
        let window = self.f.cast(&window, self.dtype)?;
        let last = if count > 1 {
            let ordinals: Vec<i32> = (1..=count as i32).collect();
            let ordinals = self.f.int_constant("ordinals", &[1, count], &ordinals)?;
            let last = self.f.equal(&ordinals, &real)?;
            let last = self.f.cast(&last, self.dtype)?;
            Some(self.f.reshape(&last, &[1, 1, count])?)
        } else {
            None
        };
        let after = self.after(position)?;
        let (cos, sin) = self.rotary(&place, count)?;
        let padding = Some(Padding { mask, window, last, place });
        let position = position.clone();
        Ok(Tokens { count, position, after, attention_mask: forbidden, cos, sin, padding })
    }

    /// A single token that is known to be real, with the scores' mask [1, C] given by the caller.
    pub(crate) fn single_token(&mut self, attention_mask: &Tensor, position: &Tensor) -> Result<Tokens> {
        self.f.set_scope("tokens");
        let at = self.absolute_positions(1, position)?;
        let columns: Vec<i32> = (0..self.context as i32).collect();
        let columns = self.f.int_constant("positions", &[1, self.context], &columns)?;
        let here = self.f.equal(&at, &columns)?;
        let place = self.f.cast(&here, self.dtype)?;
        let (cos, sin) = self.rotary(&place, 1)?;
        let attention_mask = self.f.cast(attention_mask, self.dtype)?;
        let attention_mask = self.f.reshape(&attention_mask, &[1, self.context])?;
        let (position, after) = (position.clone(), self.after(position)?);
        Ok(Tokens { count: 1, position, after, attention_mask, cos, sin, padding: None })
    }

    /// int32 [T, 1].
    fn absolute_positions(&mut self, count: usize, position: &Tensor) -> Result<Tensor> {
        let steps: Vec<i32> = (0..count as i32).collect();
        let steps = self.f.int_constant("steps", &[count, 1], &steps)?;
        Ok(self.f.add(&steps, position)?)
    }

    /// int32 [1].
    fn after(&mut self, position: &Tensor) -> Result<Tensor> {
        let one = self.f.int_constant("one", &[1], &[1])?;
        Ok(self.f.add(position, &one)?)
    }

    /// 0 where `allowed` holds, else [`FORBIDDEN`].
    fn forbidden(&mut self, allowed: &Tensor) -> Result<Tensor> {
        let (one, most) = (self.scalar(1.0)?, self.scalar(-FORBIDDEN)?);
        let allowed = self.f.cast(allowed, self.dtype)?;
        let allowed = self.f.sub(&allowed, &one)?;
        Ok(self.f.mul(&allowed, &most)?)
    }

    /// Cosines and sines of the tokens' rotary angles, picked from tables: fp16 could not hold the angles themselves.
    fn rotary(&mut self, place: &Tensor, count: usize) -> Result<(Tensor, Tensor)> {
        let rotated = self.config.rotary_dim();
        let angle = |position: usize, i: usize| {
            position as f64 * self.config.rope_theta.powf(-2.0 * i as f64 / rotated as f64)
        };
        let table = |wave: fn(f64) -> f64| -> Vec<f32> {
            let rows = (0..self.context).flat_map(|at| (0..rotated / 2).map(move |i| (at, i)));
            rows.map(|(at, i)| wave(angle(at, i)) as f32).collect()
        };
        let (cos, sin) = (table(f64::cos), table(f64::sin));
        let mut pick = |name, table: &[f32]| -> Result<Tensor> {
            let table = self.f.shared_constant(name, self.dtype, &[self.context, rotated / 2], table)?;
            let picked = self.f.matmul(place, &table)?;
            Ok(self.f.reshape(&picked, &[1, count, 1, rotated / 2])?)
        };
        Ok((pick("rotary_cos", &cos)?, pick("rotary_sin", &sin)?))
    }

    /// Rows [1, T, H] of the embedding for `input_ids` int32 [1, T]. The table is cut into `splits` parts, those of
    /// the head that shares it: each part is asked for the row that the token would have in it, and one is right.
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
                let right = self.f.equal(&numbers, &part_of_id)?;
                let right = self.f.cast(&right, self.dtype)?;
                let right = self.f.reshape(&right, &[count, tokens, 1])?;
                let chosen = self.f.mul(&candidates, &right)?;
                self.f.reduce_sum(&chosen, 0)?
            }
        };
        self.f.rename(&rows, "embedded")?;
        Ok(rows)
    }

    fn int(&mut self, value: usize) -> Result<Tensor> {
        Ok(self.f.int_constant("int", &[], &[i32::try_from(value).unwrap_or(i32::MAX)])?)
    }

    /// All layers and the final norm: [1, T, H] to [1, 1, H] of the last real token.
    pub(crate) fn layers(
        &mut self,
        embedded: &Tensor,
        tokens: &Tokens,
        caches: &mut Caches,
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

    /// Logits fp16 [1, 1, vocabulary] of [1, 1, H], computed in `splits` parts.
    pub(crate) fn head(&mut self, x: &Tensor, splits: usize) -> Result<Tensor> {
        self.f.set_scope("head");
        let name = if self.config.tie_word_embeddings { "embed_tokens.weight" } else { "lm_head.weight" };
        let parts = self.weights.matrix_parts(self.f, name, splits)?;
        let logits = parts.iter().map(|part| self.f.linear(x, part, None)).collect::<Result<Vec<_>, _>>()?;
        let logits = self.f.concat(&logits.iter().collect::<Vec<_>>(), -1)?;
        Ok(self.f.cast(&logits, DType::F16)?)
    }

    /// `x W^T` with a quantized weight.
    fn linear(&mut self, x: &Tensor, weight: &str) -> Result<Tensor> {
        let weight = self.weights.matrix(self.f, weight)?;
        Ok(self.f.linear(x, &weight, None)?)
    }

    /// `x / max(|x|, floor)` along the last axis and that divisor. Nothing that is squared afterwards leaves fp16.
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

    /// RMSNorm whose weight the checkpoint stores less 1.
    fn centered_norm(&mut self, x: &Tensor, weight: &str) -> Result<Tensor> {
        let normed = self.normalize(x, self.config.rms_norm_eps, true)?;
        let weight = self.weights.floats(self.f, weight, |w| 1.0 + w)?;
        Ok(self.f.mul(&normed, &weight)?)
    }

    fn full_attention(
        &mut self,
        layer: usize,
        x: &Tensor,
        tokens: &Tokens,
        caches: &mut Caches,
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
        let (k, v) = caches.extend(self.f, layer, &k, &v, tokens)?;

        // Caches may be fp16 in an fp32 model.
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

    /// RoPE on the first components of each head of `x` [1, T, heads, D]: component i pairs with i + R / 2.
    fn rotate(&mut self, x: &Tensor, tokens: &Tokens) -> Result<Tensor> {
        let (half, rest) = (self.config.rotary_dim() / 2, self.config.head_dim - self.config.rotary_dim());
        let sizes = if rest == 0 { vec![half, half] } else { vec![half, half, rest] };
        let parts = self.f.split(x, &sizes, -1)?;
        let (first, second) = (&parts[0], &parts[1]);
        let a = self.f.mul(first, &tokens.cos)?;
        let b = self.f.mul(second, &tokens.sin)?;
        let turned_first = self.f.sub(&a, &b)?;
        let a = self.f.mul(second, &tokens.cos)?;
        let b = self.f.mul(first, &tokens.sin)?;
        let turned_second = self.f.add(&a, &b)?;
        let mut joined = vec![&turned_first, &turned_second];
        joined.extend(parts.get(2));
        Ok(self.f.concat(&joined, -1)?)
    }

    fn linear_attention(
        &mut self,
        layer: usize,
        x: &Tensor,
        tokens: &Tokens,
        caches: &mut Caches,
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

        // Gates are small and decide much, so their projections stay in floats: [1, T, v] each.
        let b = self.weights.floats(self.f, &name("in_proj_b.weight"), |w| w)?;
        let beta = self.f.linear(x, &b, None)?;
        let beta = self.f.sigmoid(&beta)?;
        let a = self.weights.floats(self.f, &name("in_proj_a.weight"), |w| w)?;
        let step_bias = self.weights.floats(self.f, &name("dt_bias"), |w| w)?;
        let step = self.f.linear(x, &a, Some(&step_bias))?;
        let step = self.f.softplus(&step)?;
        let rate = self.weights.floats(self.f, &name("A_log"), |w| -w.exp())?;
        let decay = self.f.mul(&step, &rate)?;
        let beta = self.of_heads(&beta, tokens)?;
        let decay = self.of_heads(&decay, tokens)?;

        let state = caches.recurrent(self.f, layer)?;
        let gates = Gates { beta, decay };
        let (mixed, state) = if count == 1 {
            self.delta_step(&q, &k, &v, &gates, &state)?
        } else {
            self.delta_chunk(&q, &k, &v, &gates, &state)?
        };
        caches.set_recurrent(self.f, layer, &state)?;

        let mixed = self.f.transpose(&mixed, &[0, 2, 1, 3])?;
        let mixed = self.normalize(&mixed, config.rms_norm_eps, true)?;
        let weight = self.weights.floats(self.f, &name("norm.weight"), |w| w)?;
        let mixed = self.f.mul(&mixed, &weight)?;
        let z = self.linear(x, &name("in_proj_z.weight"))?;
        let z = self.f.silu(&z)?;
        let z = self.f.reshape(&z, &[1, count, value_heads, value_width])?;
        let mixed = self.f.mul(&mixed, &z)?;
        let mixed = self.f.reshape(&mixed, &[1, count, value_dim])?;
        self.linear(&mixed, &name("out_proj.weight"))
    }

    /// The causal convolution of `x` [1, T, N] with what came before it.
    fn convolve(&mut self, layer: usize, x: &Tensor, tokens: &Tokens, caches: &mut Caches) -> Result<Tensor> {
        let (count, channels, before) =
            (tokens.count, self.config.linear_conv_dim(), self.config.linear_conv_kernel_dim - 1);
        let state = caches.convolution(self.f, layer)?;
        let window = self.f.concat(&[&state, x], 1)?;
        let next = match &tokens.padding {
            // The rows before the first padded one, wherever that is.
            Some(padding) => self.f.matmul(&padding.window, &window)?,
            None => self.f.slice(&window, &[0, count, 0], &[1, count + before, channels])?,
        };
        caches.set_convolution(self.f, layer, &next)?;
        let taps =
            self.weights.floats(self.f, &format!("layers.{layer}.linear_attn.conv1d.weight"), |w| w)?;
        let window = self.f.transpose(&window, &[0, 2, 1])?;
        let out = self.f.depthwise_conv(&window, &taps)?;
        Ok(self.f.transpose(&out, &[0, 2, 1])?)
    }

    /// [1, T, v] to [1, v, T, 1], 0 for padding: a step of the recurrence with both gates 0 changes nothing.
    fn of_heads(&mut self, gate: &Tensor, tokens: &Tokens) -> Result<Tensor> {
        let gate = match &tokens.padding {
            Some(padding) => self.f.mul(gate, &padding.mask)?,
            None => gate.clone(),
        };
        let gate = self.f.transpose(&gate, &[0, 2, 1])?;
        Ok(self.f.reshape(&gate, &[1, self.config.linear_num_value_heads, tokens.count, 1])?)
    }

    /// One step: q, k [1, v, 1, d], v [1, v, 1, e], S [1, v, d, e] to o [1, v, 1, e] and the next S.
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
        let known = self.f.matmul(k, &state)?;
        let news = self.f.sub(v, &known)?;
        let news = self.f.mul(&news, &gates.beta)?;
        let learnt = self.f.transposed_matmul(k, &news)?;
        let state = self.f.add(&state, &learnt)?;
        Ok((self.f.matmul(q, &state)?, state))
    }

    /// A chunk of T steps by matrix products: q, k [1, v, T, d], v [1, v, T, e], S [1, v, d, e] to o [1, v, T, e] and
    /// S after the last step.
    ///
    /// With c_t the sum of the decays up to t, what step i adds to the state, n_i, obeys
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
        let upto = self.square("lower", count, |row, column| column <= row)?;
        let before = self.square("strictly_lower", count, |row, column| column < row)?;
        // c_i - c_j = the decays of the steps j < m <= i, added up as such: a difference of the sums would have lost
        // its digits to rounding.
        let after = self.f.mul(&gates.decay, &before)?;
        let between = self.f.matmul(&upto, &after)?;
        let between = self.f.exp(&between)?;
        let sum = self.f.matmul(&upto, &gates.decay)?;
        let from_start = self.f.exp(&sum)?;
        let rest = self.f.transposed_matmul(&before, &gates.decay)?;
        let to_end = self.f.exp(&rest)?;
        let whole = self.f.reduce_sum(&gates.decay, 2)?;
        let whole = self.f.exp(&whole)?;

        let alike = self.f.matmul_transposed(k, k)?;
        let alike = self.f.mul(&alike, &between)?;
        let alike = self.f.mul(&alike, &before)?;
        let a = self.f.mul(&alike, &gates.beta)?;
        let k_decayed = self.f.mul(k, &from_start)?;
        let known = self.f.matmul(&k_decayed, state)?;
        let rhs = self.f.sub(v, &known)?;
        let rhs = self.f.mul(&rhs, &gates.beta)?;
        let inverse = self.unit_lower_inverse(&a)?;
        let news = self.f.matmul(&inverse, &rhs)?;

        let q_decayed = self.f.mul(q, &from_start)?;
        let remembered = self.f.matmul(&q_decayed, state)?;
        let asked = self.f.matmul_transposed(q, k)?;
        let asked = self.f.mul(&asked, &between)?;
        let asked = self.f.mul(&asked, &upto)?;
        let learnt = self.f.matmul(&asked, &news)?;
        let out = self.f.add(&remembered, &learnt)?;

        let kept = self.f.mul(state, &whole)?;
        let k_remaining = self.f.mul(k, &to_end)?;
        let added = self.f.transposed_matmul(&k_remaining, &news)?;
        Ok((out, self.f.add(&kept, &added)?))
    }

    /// (1 + A)^-1 for strictly lower triangular A [1, v, T, T]: blocks of 1, 2, 4, ... along the diagonal are inverted,
    /// each from the two before it. With X the inverse of the blocks so far and B the part of A that joins them in
    /// pairs, the next is X - X B X.
    ///
    /// The product (1 - A)(1 + A^2)(1 + A^4)... is the same matrix, but its factors grow like binomials when keys
    /// repeat, and cancel only at the end: in fp16 nothing would be left. Here every factor is part of an inverse.
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

    /// A matrix [size, size] of ones where `is_one` holds, else zeros.
    fn square(&mut self, name: &str, size: usize, is_one: impl Fn(usize, usize) -> bool) -> Result<Tensor> {
        let places = (0..size).flat_map(|row| (0..size).map(move |column| (row, column)));
        let values: Vec<f32> = places.map(|(row, column)| f32::from(u8::from(is_one(row, column)))).collect();
        Ok(self.f.shared_constant(name, self.dtype, &[size, size], &values)?)
    }
}

/// Of one linear layer: [1, v, T, 1] each.
struct Gates {
    /// How much of the news is taken in.
    beta: Tensor,
    /// The logarithm of what is kept of the state, never positive.
    decay: Tensor,
}
