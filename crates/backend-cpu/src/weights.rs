//! Locations of the weights in the mapped files.
//!
//! Kernels read borrowed matrices, but a model must be `'static`. So file offsets are stored and turned into borrows of the
//! directory for every chunk, without a look-up by name.

use q35_architecture::{LayerKind, TextConfig};
use q35_format_mlx::{MlxDirectory, MlxTensor};
use q35_kernels::{DeltaShape, Floats, Matrix};
use q35_quant::FloatType;

use crate::CpuError;

/// Location of the bytes of a tensor.
#[derive(Clone, Debug)]
enum Location {
    Mapped {
        file: usize,
        start: usize,
        length: usize,
    },
    /// A copy, because the bytes in the file were not aligned.
    Owned(Box<[u8]>),
}

impl Location {
    fn of(directory: &MlxDirectory, bytes: &[u8]) -> Self {
        let start = bytes.as_ptr().addr();
        for (file, mapped) in directory.weight_files().iter().enumerate() {
            let base = mapped.bytes().as_ptr().addr();
            if start >= base && start + bytes.len() <= base + mapped.bytes().len() {
                return Self::Mapped { file, start: start - base, length: bytes.len() };
            }
        }
        Self::Owned(bytes.into())
    }

    fn bytes<'a>(&'a self, directory: &'a MlxDirectory) -> &'a [u8] {
        match self {
            Self::Mapped { file, start, length } => {
                &directory.weight_files()[*file].bytes()[*start..start + length]
            }
            Self::Owned(bytes) => bytes,
        }
    }

    fn owned_bytes(&self) -> usize {
        match self {
            Self::Mapped { .. } => 0,
            Self::Owned(bytes) => bytes.len(),
        }
    }
}

/// A weight matrix of the directory.
#[derive(Clone, Debug)]
pub(crate) struct StoredMatrix {
    name: String,
    rows: usize,
    columns: usize,
    float: FloatType,
    format: Format,
}

#[derive(Clone, Debug)]
enum Format {
    Affine { bits: usize, group: usize, words: Location, scales: Location, biases: Location },
    Float(Location),
}

impl StoredMatrix {
    fn find(directory: &MlxDirectory, name: &str) -> Result<Self, CpuError> {
        let tensor = directory.tensor(name).ok_or_else(|| CpuError::Missing { name: name.to_owned() })?;
        let location = |bytes| Location::of(directory, bytes);
        let stored = match tensor {
            MlxTensor::Packed(packed) => Self {
                name: name.to_owned(),
                rows: packed.rows,
                columns: packed.cols,
                float: packed.float,
                format: Format::Affine {
                    bits: packed.spec.bits() as usize,
                    group: packed.spec.group_size(),
                    words: location(bytemuck::cast_slice(packed.words)),
                    scales: location(packed.scales),
                    biases: location(packed.biases),
                },
            },
            MlxTensor::Float(float) => Self {
                name: name.to_owned(),
                rows: float.shape[0],
                columns: float.shape[1..].iter().product(),
                float: float.float,
                format: Format::Float(location(float.bytes)),
            },
        };
        stored.try_matrix(directory)?;
        Ok(stored)
    }

    fn try_matrix<'a>(&'a self, directory: &'a MlxDirectory) -> Result<Matrix<'a>, CpuError> {
        let floats = |location: &'a Location| Floats::new(self.float, location.bytes(directory));
        match &self.format {
            Format::Affine { bits, group, words, scales, biases } => Matrix::affine(
                self.rows,
                self.columns,
                *bits,
                *group,
                words.bytes(directory),
                floats(scales),
                floats(biases),
            ),
            Format::Float(values) => Matrix::float(self.rows, self.columns, floats(values)),
        }
        .map_err(|source| CpuError::Matrix { name: self.name.clone(), source })
    }

    /// The matrix, borrowed from the directory in which it was found.
    pub(crate) fn matrix<'a>(&'a self, directory: &'a MlxDirectory) -> Matrix<'a> {
        self.try_matrix(directory).expect("checked by `find`")
    }

    pub(crate) fn size_bytes(&self, directory: &MlxDirectory) -> usize {
        self.matrix(directory).size_bytes()
    }

    pub(crate) fn row_bytes(&self, directory: &MlxDirectory) -> usize {
        self.size_bytes(directory) / self.rows.max(1)
    }

    fn owned_bytes(&self) -> usize {
        match &self.format {
            Format::Affine { words, scales, biases, .. } => {
                words.owned_bytes() + scales.owned_bytes() + biases.owned_bytes()
            }
            Format::Float(values) => values.owned_bytes(),
        }
    }

    /// Bits and group size; None if it is unquantized.
    pub(crate) fn quantization(&self) -> Option<(usize, usize)> {
        match self.format {
            Format::Affine { bits, group, .. } => Some((bits, group)),
            Format::Float(_) => None,
        }
    }
}

/// Weights of one decoder layer.
#[derive(Debug)]
pub(crate) struct LayerWeights {
    pub input_norm: Vec<f32>,
    pub mixer: MixerWeights,
    pub post_norm: Vec<f32>,
    pub gate: StoredMatrix,
    pub up: StoredMatrix,
    pub down: StoredMatrix,
}

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "one per layer, created once and never moved")]
pub(crate) enum MixerWeights {
    Linear(LinearWeights),
    Full(FullWeights),
}

#[derive(Debug)]
pub(crate) struct LinearWeights {
    pub qkv: StoredMatrix,
    pub z: StoredMatrix,
    pub b: StoredMatrix,
    pub a: StoredMatrix,
    /// Convolution weights as [`DeltaShape::pack_taps`] returns them.
    pub taps: Vec<f32>,
    /// -exp(A_log)
    pub decay: Vec<f32>,
    pub step_bias: Vec<f32>,
    pub norm: Vec<f32>,
    pub out: StoredMatrix,
}

#[derive(Debug)]
pub(crate) struct FullWeights {
    pub q: StoredMatrix,
    pub k: StoredMatrix,
    pub v: StoredMatrix,
    pub q_norm: Vec<f32>,
    pub k_norm: Vec<f32>,
    pub out: StoredMatrix,
}

/// Weights of the whole model.
#[derive(Debug)]
pub(crate) struct ModelWeights {
    pub embedding: StoredMatrix,
    pub layers: Vec<LayerWeights>,
    pub norm: Vec<f32>,
    /// None if the head is tied to the embedding.
    pub head: Option<StoredMatrix>,
}

pub(crate) fn delta_shape(config: &TextConfig) -> DeltaShape {
    DeltaShape {
        key_heads: config.linear_num_key_heads,
        value_heads: config.linear_num_value_heads,
        key_width: config.linear_key_head_dim,
        value_width: config.linear_value_head_dim,
        taps: config.linear_conv_kernel_dim,
    }
}

impl ModelWeights {
    pub(crate) fn find(directory: &MlxDirectory) -> Result<Self, CpuError> {
        let config = directory.config();
        let layers = config.layer_types.iter().enumerate().map(|(layer, kind)| {
            let finder = Finder { directory, prefix: format!("layers.{layer}.") };
            let mixer = match kind {
                LayerKind::LinearAttention => MixerWeights::Linear(finder.linear(config)?),
                LayerKind::FullAttention => MixerWeights::Full(finder.full()?),
            };
            Ok(LayerWeights {
                input_norm: finder.floats("input_layernorm.weight")?,
                mixer,
                post_norm: finder.floats("post_attention_layernorm.weight")?,
                gate: finder.matrix("mlp.gate_proj.weight")?,
                up: finder.matrix("mlp.up_proj.weight")?,
                down: finder.matrix("mlp.down_proj.weight")?,
            })
        });
        let finder = Finder { directory, prefix: String::new() };
        Ok(Self {
            embedding: finder.matrix("embed_tokens.weight")?,
            layers: layers.collect::<Result<_, CpuError>>()?,
            norm: finder.floats("norm.weight")?,
            head: if config.tie_word_embeddings { None } else { Some(finder.matrix("lm_head.weight")?) },
        })
    }

    pub(crate) fn head(&self) -> &StoredMatrix {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    pub(crate) fn matrices(&self) -> impl Iterator<Item = &StoredMatrix> {
        let layers = self.layers.iter().flat_map(|layer| {
            let mixer = match &layer.mixer {
                MixerWeights::Linear(w) => vec![&w.qkv, &w.z, &w.b, &w.a, &w.out],
                MixerWeights::Full(w) => vec![&w.q, &w.k, &w.v, &w.out],
            };
            mixer.into_iter().chain([&layer.gate, &layer.up, &layer.down])
        });
        layers.chain(self.head.as_ref()).chain([&self.embedding])
    }

    fn tables(&self) -> impl Iterator<Item = &Vec<f32>> {
        let layers = self.layers.iter().flat_map(|layer| {
            let mixer = match &layer.mixer {
                MixerWeights::Linear(w) => vec![&w.taps, &w.decay, &w.step_bias, &w.norm],
                MixerWeights::Full(w) => vec![&w.q_norm, &w.k_norm],
            };
            mixer.into_iter().chain([&layer.input_norm, &layer.post_norm])
        });
        layers.chain([&self.norm])
    }

    /// Bytes that are not mapped from files.
    pub(crate) fn owned_bytes(&self) -> usize {
        self.tables().map(|table| 4 * table.len()).sum::<usize>()
            + self.matrices().map(StoredMatrix::owned_bytes).sum::<usize>()
    }

    /// Bytes that decoding one token reads: all weights, but only one row of an embedding that is not the head.
    pub(crate) fn bytes_per_token(&self, directory: &MlxDirectory) -> usize {
        let matrices: usize = self.matrices().map(|matrix| matrix.size_bytes(directory)).sum();
        let tables: usize = self.tables().map(|table| 4 * table.len()).sum();
        let unread = match self.head {
            Some(_) => {
                let embedding = &self.embedding;
                embedding.size_bytes(directory) - embedding.row_bytes(directory)
            }
            None => 0,
        };
        matrices + tables - unread
    }
}

struct Finder<'a> {
    directory: &'a MlxDirectory,
    prefix: String,
}

impl Finder<'_> {
    fn matrix(&self, name: &str) -> Result<StoredMatrix, CpuError> {
        StoredMatrix::find(self.directory, &format!("{}{name}", self.prefix))
    }

    fn floats(&self, name: &str) -> Result<Vec<f32>, CpuError> {
        let name = format!("{}{name}", self.prefix);
        match self.directory.tensor(&name) {
            Some(MlxTensor::Float(float)) => {
                let floats = Floats::new(float.float, float.bytes);
                let mut values = vec![0.0; floats.len()];
                floats.read(0, &mut values);
                Ok(values)
            }
            Some(MlxTensor::Packed(_)) => Err(CpuError::Quantized { name }),
            None => Err(CpuError::Missing { name }),
        }
    }

    fn linear(&self, config: &TextConfig) -> Result<LinearWeights, CpuError> {
        Ok(LinearWeights {
            qkv: self.matrix("linear_attn.in_proj_qkv.weight")?,
            z: self.matrix("linear_attn.in_proj_z.weight")?,
            b: self.matrix("linear_attn.in_proj_b.weight")?,
            a: self.matrix("linear_attn.in_proj_a.weight")?,
            taps: delta_shape(config).pack_taps(&self.floats("linear_attn.conv1d.weight")?),
            decay: self.floats("linear_attn.A_log")?.into_iter().map(|a| -a.exp()).collect(),
            step_bias: self.floats("linear_attn.dt_bias")?,
            norm: self.floats("linear_attn.norm.weight")?,
            out: self.matrix("linear_attn.out_proj.weight")?,
        })
    }

    fn full(&self) -> Result<FullWeights, CpuError> {
        Ok(FullWeights {
            q: self.matrix("self_attn.q_proj.weight")?,
            k: self.matrix("self_attn.k_proj.weight")?,
            v: self.matrix("self_attn.v_proj.weight")?,
            q_norm: self.floats("self_attn.q_norm.weight")?,
            k_norm: self.floats("self_attn.k_norm.weight")?,
            out: self.matrix("self_attn.o_proj.weight")?,
        })
    }
}
