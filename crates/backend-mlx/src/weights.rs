//! The weights as MLX arrays.

use mlx_rs::error::Result;
use mlx_rs::ops::{self, indexing::take_axis};
use mlx_rs::{Array, Dtype};
use q35_architecture::LayerKind;
use q35_format_mlx::{MlxDirectory, MlxTensor};
use q35_quant::FloatType;

use crate::device::MlxDevice;
use crate::error::MlxBackendError;

/// A matrix [rows, columns], applied as `x W^T`.
pub(crate) enum Matrix {
    /// Codes in MLX's affine groups.
    Packed { weight: Array, scales: Array, biases: Array, group_size: i32, bits: i32 },
    /// A matrix that is not quantized.
    Float(Array),
}

impl Matrix {
    /// x [T, columns] -> [T, rows].
    pub fn apply(&self, x: &Array) -> Result<Array> {
        match self {
            Self::Packed { weight, scales, biases, group_size, bits } => {
                ops::quantized_matmul(x, weight, scales, biases, true, *group_size, *bits)
            }
            Self::Float(weight) => x.matmul(weight.t()),
        }
    }

    /// The rows with the given indices ids [T], dequantized: [T, columns].
    pub fn rows(&self, ids: &Array, dtype: Dtype) -> Result<Array> {
        let rows = match self {
            Self::Packed { weight, scales, biases, group_size, bits } => {
                let at = |array: &Array| take_axis(array, ids, 0);
                ops::dequantize(&at(weight)?, &at(scales)?, &at(biases)?, *group_size, *bits)?
            }
            Self::Float(weight) => take_axis(weight, ids, 0)?,
        };
        rows.as_dtype(dtype)
    }

    fn size_bytes(&self) -> usize {
        match self {
            Self::Packed { weight, scales, biases, .. } => {
                weight.nbytes() + scales.nbytes() + biases.nbytes()
            }
            Self::Float(weight) => weight.nbytes(),
        }
    }
}

pub(crate) struct DeltaNet {
    pub in_proj_qkv: Matrix,
    pub in_proj_z: Matrix,
    pub in_proj_a: Matrix,
    pub in_proj_b: Matrix,
    pub out_proj: Matrix,
    /// [taps, channels]
    pub conv1d: Array,
    /// [value heads], f32
    pub dt_bias: Array,
    /// [value heads], f32
    pub a_log: Array,
    /// [value width], f32
    pub norm: Array,
}

pub(crate) struct Attention {
    pub q_proj: Matrix,
    pub k_proj: Matrix,
    pub v_proj: Matrix,
    pub o_proj: Matrix,
    /// `1 + w`, [head_dim]
    pub q_norm: Array,
    /// `1 + w`, [head_dim]
    pub k_norm: Array,
}

pub(crate) enum Mixer {
    Linear(Box<DeltaNet>),
    Full(Box<Attention>),
}

pub(crate) struct Layer {
    pub mixer: Mixer,
    /// Norms hold `1 + w`, as MLX directories do, [hidden].
    pub input_layernorm: Array,
    pub post_attention_layernorm: Array,
    pub gate_proj: Matrix,
    pub up_proj: Matrix,
    pub down_proj: Matrix,
}

pub(crate) struct ModelWeights {
    pub embedding: Matrix,
    head: Option<Matrix>,
    pub norm: Array,
    pub layers: Vec<Layer>,
}

impl ModelWeights {
    /// Copies a directory's weights into MLX; float weights, scales and biases become `dtype`, the activations' type.
    pub fn load(directory: &MlxDirectory, dtype: Dtype) -> std::result::Result<Self, MlxBackendError> {
        let load = Loader { directory, dtype };
        let config = directory.config();
        let layers = config.layer_types.iter().enumerate().map(|(index, kind)| load.layer(index, *kind));
        Ok(Self {
            embedding: load.matrix("embed_tokens.weight")?,
            head: (!config.tie_word_embeddings).then(|| load.matrix("lm_head.weight")).transpose()?,
            norm: load.vector("norm.weight", load.dtype)?,
            layers: layers.collect::<std::result::Result<_, _>>()?,
        })
    }

    /// The language-model head.
    pub fn head(&self) -> &Matrix {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// Size of all matrices in bytes.
    pub fn size_bytes(&self) -> u64 {
        let untied = self.head.as_ref().map_or(0, |_| self.embedding.size_bytes() as u64);
        untied + self.bytes_per_token()
    }

    /// Size in bytes of the matrices that every token is multiplied with.
    pub fn bytes_per_token(&self) -> u64 {
        let layers: usize = self.layers.iter().flat_map(Layer::matrices).map(Matrix::size_bytes).sum();
        (layers + self.head().size_bytes()) as u64
    }
}

impl Layer {
    fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        let mixer = match &self.mixer {
            Mixer::Linear(net) => {
                vec![&net.in_proj_qkv, &net.in_proj_z, &net.in_proj_a, &net.in_proj_b, &net.out_proj]
            }
            Mixer::Full(attention) => {
                vec![&attention.q_proj, &attention.k_proj, &attention.v_proj, &attention.o_proj]
            }
        };
        mixer.into_iter().chain([&self.gate_proj, &self.up_proj, &self.down_proj])
    }
}

/// Type of the activations: on a GPU that of the embedding's scales, as in mlx-lm; on the CPU f32.
pub(crate) fn activation_type(
    directory: &MlxDirectory,
    device: MlxDevice,
) -> std::result::Result<FloatType, MlxBackendError> {
    if device == MlxDevice::Cpu {
        return Ok(FloatType::F32);
    }
    Ok(match tensor(directory, "embed_tokens.weight")? {
        MlxTensor::Packed(packed) => packed.float,
        MlxTensor::Float(tensor) => tensor.float,
    })
}

fn tensor<'a>(
    directory: &'a MlxDirectory,
    name: &str,
) -> std::result::Result<MlxTensor<'a>, MlxBackendError> {
    let missing = || MlxBackendError::Tensor { name: name.to_owned(), expected: "to be there" };
    directory.tensor(name).ok_or_else(missing)
}

struct Loader<'a> {
    directory: &'a MlxDirectory,
    dtype: Dtype,
}

impl Loader<'_> {
    fn layer(&self, index: usize, kind: LayerKind) -> std::result::Result<Layer, MlxBackendError> {
        let channels = self.directory.config().linear_conv_dim() as i32;
        let matrix = |name: &str| self.matrix(&format!("layers.{index}.{name}.weight"));
        let vector = |name: &str, dtype: Dtype| self.vector(&format!("layers.{index}.{name}"), dtype);
        let mixer = match kind {
            LayerKind::LinearAttention => Mixer::Linear(Box::new(DeltaNet {
                in_proj_qkv: matrix("linear_attn.in_proj_qkv")?,
                in_proj_z: matrix("linear_attn.in_proj_z")?,
                in_proj_a: matrix("linear_attn.in_proj_a")?,
                in_proj_b: matrix("linear_attn.in_proj_b")?,
                out_proj: matrix("linear_attn.out_proj")?,
                // [taps, channels]: channels last, as in the activations.
                conv1d: evaluated(
                    vector("linear_attn.conv1d.weight", self.dtype)?
                        .reshape(&[channels, -1])?
                        .t()
                        .contiguous()?,
                )?,
                dt_bias: vector("linear_attn.dt_bias", Dtype::Float32)?,
                a_log: vector("linear_attn.A_log", Dtype::Float32)?,
                norm: vector("linear_attn.norm.weight", Dtype::Float32)?,
            })),
            LayerKind::FullAttention => Mixer::Full(Box::new(Attention {
                q_proj: matrix("self_attn.q_proj")?,
                k_proj: matrix("self_attn.k_proj")?,
                v_proj: matrix("self_attn.v_proj")?,
                o_proj: matrix("self_attn.o_proj")?,
                q_norm: vector("self_attn.q_norm.weight", self.dtype)?,
                k_norm: vector("self_attn.k_norm.weight", self.dtype)?,
            })),
        };
        Ok(Layer {
            mixer,
            input_layernorm: vector("input_layernorm.weight", self.dtype)?,
            post_attention_layernorm: vector("post_attention_layernorm.weight", self.dtype)?,
            gate_proj: matrix("mlp.gate_proj")?,
            up_proj: matrix("mlp.up_proj")?,
            down_proj: matrix("mlp.down_proj")?,
        })
    }

    fn matrix(&self, name: &str) -> std::result::Result<Matrix, MlxBackendError> {
        let packed = match tensor(self.directory, name)? {
            MlxTensor::Packed(packed) => packed,
            MlxTensor::Float(_) => return Ok(Matrix::Float(self.vector(name, self.dtype)?)),
        };
        let rows = packed.rows as i32;
        let floats = |bytes: &[u8]| -> Result<Array> {
            let values = widened(packed.float, bytes);
            evaluated(Array::from_slice(&values, &[rows, values.len() as i32 / rows]).as_dtype(self.dtype)?)
        };
        Ok(Matrix::Packed {
            weight: Array::from_slice(packed.words, &[rows, packed.words.len() as i32 / rows]),
            scales: floats(packed.scales)?,
            biases: floats(packed.biases)?,
            group_size: packed.spec.group_size() as i32,
            bits: packed.spec.bits() as i32,
        })
    }

    fn vector(&self, name: &str, dtype: Dtype) -> std::result::Result<Array, MlxBackendError> {
        let MlxTensor::Float(tensor) = tensor(self.directory, name)? else {
            return Err(MlxBackendError::Tensor { name: name.to_owned(), expected: "floats" });
        };
        let values = widened(tensor.float, tensor.bytes);
        let shape: Vec<i32> = tensor.shape.iter().map(|size| *size as i32).collect();
        Ok(evaluated(Array::from_slice(&values, &shape).as_dtype(dtype)?)?)
    }
}

/// Evaluates an array at once, so that a lack of device memory is reported while the model is loaded.
fn evaluated(array: Array) -> Result<Array> {
    array.eval()?;
    Ok(array)
}

fn widened(float: FloatType, bytes: &[u8]) -> Vec<f32> {
    let mut values = vec![0.0; bytes.len() / float.size()];
    float.widen(bytes, &mut values);
    values
}
