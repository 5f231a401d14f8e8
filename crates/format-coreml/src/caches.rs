//! Where a function's caches come from and go to. The graph asks for a layer's share and hands the new one back.

use q35_architecture::{LayerKind, TextConfig};
use q35_format_mil::build::Tensor;
use q35_format_mil::{DType, TensorType};

use crate::ConvertError;
use crate::qwen3_5::Tokens;
use crate::store::Function;

type Result<T, E = ConvertError> = std::result::Result<T, E>;

/// The caches of one function. Letters as in the graph.
pub(crate) struct Caches {
    sizes: Sizes,
    form: Form,
    /// Of activations.
    dtype: DType,
}

enum Form {
    /// Each an input and an output.
    Io { layers: Vec<Given>, done: Vec<Done> },
    /// Keys and values in one state, the rest packed by kind.
    Packed { key_value: Option<Tensor>, linear: Option<Packed>, slabs: Vec<Tensor> },
    /// Each a state, shaped as speech-swift has them.
    States { layers: Vec<Given> },
}

/// A layer's caches as they come in: one or two tensors or states.
struct Given {
    layer: usize,
    /// `conv_state` [1, W - 1, N], or `kv_cache` [2, K, C, D]; speech-swift: [1, N, W - 1], or keys [1, K, C, D].
    first: Tensor,
    /// `recurrent_state` [1, v, d, e]; speech-swift: also the values [1, K, C, D].
    second: Option<Tensor>,
}

/// What becomes of a cache, and its name.
struct Done {
    name: String,
    tensor: Tensor,
}

/// The linear layers' states, [layers, ...] each.
struct Packed {
    convolution: Tensor,
    recurrent: Tensor,
    new_convolution: Vec<Tensor>,
    new_recurrent: Vec<Tensor>,
}

struct Sizes {
    /// Linear and full layers, ascending.
    linear: Vec<usize>,
    full: Vec<usize>,
    /// [W - 1, N].
    convolution: [usize; 2],
    /// [v, d, e].
    recurrent: [usize; 3],
    /// [K, C, D].
    key_value: [usize; 3],
}

impl Sizes {
    fn new(config: &TextConfig, context: usize) -> Self {
        Self {
            linear: config.layers_of(LayerKind::LinearAttention).collect(),
            full: config.layers_of(LayerKind::FullAttention).collect(),
            convolution: [config.linear_conv_kernel_dim - 1, config.linear_conv_dim()],
            recurrent: [
                config.linear_num_value_heads,
                config.linear_key_head_dim,
                config.linear_value_head_dim,
            ],
            key_value: [config.num_key_value_heads, context, config.head_dim],
        }
    }

    /// The place of a layer among those of its kind.
    fn place(&self, layer: usize) -> usize {
        self.linear
            .iter()
            .chain(&self.full)
            .position(|&other| other == layer)
            .map_or(0, |index| if index < self.linear.len() { index } else { index - self.linear.len() })
    }
}

fn shaped(first: usize, rest: &[usize]) -> Vec<usize> {
    std::iter::once(first).chain(rest.iter().copied()).collect()
}

impl Caches {
    /// `conv_state_{i}`, `recurrent_state_{i}` and `kv_cache_{i}` come in, `conv_state_out_{i}` and so on go out.
    pub(crate) fn io(
        f: &mut Function<'_>,
        config: &TextConfig,
        context: usize,
        dtype: DType,
    ) -> Result<Self> {
        let sizes = Sizes::new(config, context);
        let mut layers = Vec::new();
        let mut input = |name: String, shape: Vec<usize>| f.input(&name, TensorType::new(dtype, &shape));
        for (layer, kind) in config.layer_types.iter().enumerate() {
            layers.push(match kind {
                LayerKind::LinearAttention => Given {
                    layer,
                    first: input(format!("conv_state_{layer}"), shaped(1, &sizes.convolution))?,
                    second: Some(input(format!("recurrent_state_{layer}"), shaped(1, &sizes.recurrent))?),
                },
                LayerKind::FullAttention => Given {
                    layer,
                    first: input(format!("kv_cache_{layer}"), shaped(2, &sizes.key_value))?,
                    second: None,
                },
            });
        }
        Ok(Self { sizes, form: Form::Io { layers, done: Vec::new() }, dtype })
    }

    /// The state `kv_cache` of all full layers, keys before values, and `conv_state` and `recurrent_state` of all
    /// linear layers.
    pub(crate) fn packed(
        f: &mut Function<'_>,
        config: &TextConfig,
        context: usize,
        dtype: DType,
    ) -> Result<Self> {
        let sizes = Sizes::new(config, context);
        let (linear, full) = (sizes.linear.len(), sizes.full.len());
        let packed = if linear > 0 {
            Some(Packed {
                convolution: f
                    .input("conv_state", TensorType::new(dtype, &shaped(linear, &sizes.convolution)))?,
                recurrent: f
                    .input("recurrent_state", TensorType::new(dtype, &shaped(linear, &sizes.recurrent)))?,
                new_convolution: Vec::new(),
                new_recurrent: Vec::new(),
            })
        } else {
            None
        };
        // Core ML's states are fp16, whatever activations are.
        let shape = shaped(2 * full, &sizes.key_value);
        let key_value =
            if full > 0 { Some(f.state("kv_cache", TensorType::new(DType::F16, &shape))?) } else { None };
        Ok(Self { sizes, form: Form::Packed { key_value, linear: packed, slabs: Vec::new() }, dtype })
    }

    /// The states `conv_state_{i}`, `recurrent_state_{i}`, `k_cache_{i}` and `v_cache_{i}`.
    pub(crate) fn states(
        f: &mut Function<'_>,
        config: &TextConfig,
        context: usize,
        dtype: DType,
    ) -> Result<Self> {
        let sizes = Sizes::new(config, context);
        let mut layers = Vec::new();
        let mut state = |name: String, shape: Vec<usize>| f.state(&name, TensorType::new(DType::F16, &shape));
        let [before, channels] = sizes.convolution;
        // The linear layers' states first, as speech-swift's own packages have them.
        for &layer in &sizes.linear {
            layers.push(Given {
                layer,
                first: state(format!("conv_state_{layer}"), vec![1, channels, before])?,
                second: Some(state(format!("recurrent_state_{layer}"), shaped(1, &sizes.recurrent))?),
            });
        }
        for &layer in &sizes.full {
            layers.push(Given {
                layer,
                first: state(format!("k_cache_{layer}"), shaped(1, &sizes.key_value))?,
                second: Some(state(format!("v_cache_{layer}"), shaped(1, &sizes.key_value))?),
            });
        }
        Ok(Self { sizes, form: Form::States { layers }, dtype })
    }

    fn given(layers: &[Given], layer: usize) -> Result<&Given> {
        layers.iter().find(|given| given.layer == layer).ok_or(ConvertError::Cache { layer })
    }

    /// [1, W - 1, N], oldest first.
    pub(crate) fn convolution(&self, f: &mut Function<'_>, layer: usize) -> Result<Tensor> {
        Ok(match &self.form {
            Form::Io { layers, .. } => Self::given(layers, layer)?.first.clone(),
            Form::Packed { linear, .. } => {
                let packed = linear.as_ref().ok_or(ConvertError::Cache { layer })?;
                slice_first(f, &packed.convolution, self.sizes.place(layer), 1)?
            }
            Form::States { layers } => {
                let state = f.read_state(&Self::given(layers, layer)?.first)?;
                let state = f.transpose(&state, &[0, 2, 1])?;
                f.cast(&state, self.dtype)?
            }
        })
    }

    pub(crate) fn set_convolution(&mut self, f: &mut Function<'_>, layer: usize, new: &Tensor) -> Result<()> {
        match &mut self.form {
            Form::Io { done, .. } => {
                done.push(Done { name: format!("conv_state_out_{layer}"), tensor: new.clone() })
            }
            Form::Packed { linear, .. } => {
                linear.as_mut().ok_or(ConvertError::Cache { layer })?.new_convolution.push(new.clone());
            }
            Form::States { layers } => {
                let new = f.transpose(new, &[0, 2, 1])?;
                let new = f.cast(&new, DType::F16)?;
                f.write_state(&Self::given(layers, layer)?.first, &new)?;
            }
        }
        Ok(())
    }

    fn second(layers: &[Given], layer: usize) -> Result<&Tensor> {
        Self::given(layers, layer)?.second.as_ref().ok_or(ConvertError::Cache { layer })
    }

    /// [1, v, d, e].
    pub(crate) fn recurrent(&self, f: &mut Function<'_>, layer: usize) -> Result<Tensor> {
        Ok(match &self.form {
            Form::Io { layers, .. } => Self::second(layers, layer)?.clone(),
            Form::Packed { linear, .. } => {
                let packed = linear.as_ref().ok_or(ConvertError::Cache { layer })?;
                slice_first(f, &packed.recurrent, self.sizes.place(layer), 1)?
            }
            Form::States { layers } => {
                let state = f.read_state(Self::second(layers, layer)?)?;
                f.cast(&state, self.dtype)?
            }
        })
    }

    pub(crate) fn set_recurrent(&mut self, f: &mut Function<'_>, layer: usize, new: &Tensor) -> Result<()> {
        match &mut self.form {
            Form::Io { done, .. } => {
                done.push(Done { name: format!("recurrent_state_out_{layer}"), tensor: new.clone() });
            }
            Form::Packed { linear, .. } => {
                linear.as_mut().ok_or(ConvertError::Cache { layer })?.new_recurrent.push(new.clone());
            }
            Form::States { layers } => {
                let new = f.cast(new, DType::F16)?;
                f.write_state(Self::second(layers, layer)?, &new)?;
            }
        }
        Ok(())
    }

    /// Takes in the keys and values of this call, [1, K, T, D] each, and gives back all of them, [1, K, C, D] each.
    pub(crate) fn extend(
        &mut self,
        f: &mut Function<'_>,
        layer: usize,
        k: &Tensor,
        v: &Tensor,
        tokens: &Tokens,
    ) -> Result<(Tensor, Tensor)> {
        if let Form::States { layers } = &self.form {
            let given = Self::given(layers, layer)?;
            let values = given.second.as_ref().ok_or(ConvertError::Cache { layer })?;
            let k = extend_state(f, &given.first, k, 0, tokens)?;
            let v = extend_state(f, values, v, 0, tokens)?;
            return Ok((k, v));
        }
        let rows = f.concat(&[k, v], 0)?;
        let place = self.sizes.place(layer);
        let slab = match &mut self.form {
            Form::Io { layers, done } => {
                let rows = f.cast(&rows, self.dtype)?;
                let old = &Self::given(layers, layer)?.first;
                let slab = match tokens.place() {
                    Some(at) => scatter(f, old, &rows, at)?,
                    None => update(f, old, &rows, 0, tokens)?,
                };
                done.push(Done { name: format!("kv_cache_out_{layer}"), tensor: slab.clone() });
                slab
            }
            Form::Packed { key_value, slabs, .. } => {
                let state = key_value.as_ref().ok_or(ConvertError::Cache { layer })?;
                let rows = f.cast(&rows, DType::F16)?;
                match tokens.place() {
                    // Whole slabs are collected and written at once: no update of a state at a computed place.
                    Some(at) => {
                        let old = f.read_state(state)?;
                        let old = slice_first(f, &old, 2 * place, 2)?;
                        let slab = scatter(f, &old, &rows, at)?;
                        slabs.push(slab.clone());
                        slab
                    }
                    None => {
                        let whole = extend_state(f, state, &rows, 2 * place, tokens)?;
                        slice_first(f, &whole, 2 * place, 2)?
                    }
                }
            }
            Form::States { .. } => return Err(ConvertError::Cache { layer }),
        };
        Ok((slice_first(f, &slab, 0, 1)?, slice_first(f, &slab, 1, 1)?))
    }

    /// Adds the caches' outputs after those of the function, and writes what has been collected for a state.
    pub(crate) fn finish(self, f: &mut Function<'_>) -> Result<()> {
        f.set_scope("caches");
        match self.form {
            Form::Io { done, .. } => {
                for done in done {
                    f.output(&done.tensor, &done.name)?;
                }
            }
            Form::Packed { key_value, linear, slabs } => {
                if let (Some(state), false) = (key_value, slabs.is_empty()) {
                    let whole = f.concat(&slabs.iter().collect::<Vec<_>>(), 0)?;
                    f.write_state(&state, &whole)?;
                }
                if let Some(packed) = linear {
                    for (tensors, name) in [
                        (packed.new_convolution, "conv_state_out"),
                        (packed.new_recurrent, "recurrent_state_out"),
                    ] {
                        let whole = f.concat(&tensors.iter().collect::<Vec<_>>(), 0)?;
                        f.output(&whole, name)?;
                    }
                }
            }
            Form::States { .. } => {}
        }
        Ok(())
    }
}

/// `count` entries of the first axis.
fn slice_first(f: &mut Function<'_>, x: &Tensor, start: usize, count: usize) -> Result<Tensor> {
    if x.shape()[0] == count {
        return Ok(x.clone());
    }
    let begin = shaped(start, &vec![0; x.shape().len() - 1]);
    let end = shaped(start + count, &x.shape()[1..]);
    Ok(f.slice(x, &begin, &end)?)
}

/// `old` [n, K, C, D] with `rows` [n, K, T, D] at the positions that `place` [T, C] gives them. A product with a
/// matrix of zeros and ones moves numbers without changing them; positions that nothing is put at keep what they had.
fn scatter(f: &mut Function<'_>, old: &Tensor, rows: &Tensor, place: &Tensor) -> Result<Tensor> {
    let place = f.cast(place, rows.dtype())?;
    let moved = f.transposed_matmul(&place, rows)?;
    let written = f.reduce_sum(&place, 0)?;
    let written = f.reshape(&written, &[place.shape()[1], 1])?;
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
    let end = bound(first + rows.shape()[0], shape[1], &tokens.after, shape[3])?;
    Ok(f.slice_update(old, rows, &begin, &end)?)
}

/// Updates a state in place and gives its new content.
fn extend_state(
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
