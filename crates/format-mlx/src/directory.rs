//! An opened MLX directory and views of its tensors.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use q35_architecture::{ConfigReading, TensorSpec, TextConfig};
use q35_checkpoint::{SafetensorsFile, find_shards, read_json};
use q35_quant::FloatType;
use q35_quant::affine::{AffineSpec, PackedView};
use serde_json::Value;

use crate::MlxError;
use crate::names::text_model_name;
use crate::resolver::{LocatedTensor, TensorBytes, TensorData, TensorResolver};
use crate::settings::Settings;

/// An MLX model on disk, memory-mapped and checked. It can be shared between threads.
#[derive(Debug)]
pub struct MlxDirectory {
    dir: PathBuf,
    config_json: Value,
    config: TextConfig,
    files: Vec<SafetensorsFile>,
    /// In the order of [`tensor_table`](q35_architecture::tensor_table).
    tensors: Vec<LocatedTensor>,
    by_name: HashMap<String, usize>,
}

/// One tensor of the model.
#[derive(Clone, Copy, Debug)]
pub enum MlxTensor<'a> {
    /// A quantized matrix.
    Packed(PackedTensor<'a>),
    /// A float tensor.
    Float(FloatTensor<'a>),
}

/// A quantized matrix, mapped. Weight (r, c) is `scale * q + bias` of its group; see [`q35_quant::affine`].
#[derive(Clone, Copy, Debug)]
pub struct PackedTensor<'a> {
    /// Bits and group size.
    pub spec: AffineSpec,
    /// Type of scales and biases.
    pub float: FloatType,
    /// Number of rows.
    pub rows: usize,
    /// Number of weights in a row.
    pub cols: usize,
    /// Packed codes [rows, words per row].
    pub words: &'a [u32],
    /// [rows, groups per row], little-endian, aligned to its element.
    pub scales: &'a [u8],
    /// [rows, groups per row], little-endian, aligned to its element.
    pub biases: &'a [u8],
}

/// A float tensor, mapped.
#[derive(Clone, Copy, Debug)]
pub struct FloatTensor<'a> {
    /// Element type.
    pub float: FloatType,
    /// Shape in [`tensor_table`](q35_architecture::tensor_table). MLX's order of a convolution's axes, [channels, taps, 1], is the same sequence of
    /// numbers.
    pub shape: &'a [usize],
    /// Little-endian elements, row-major, aligned to the element.
    pub bytes: &'a [u8],
}

impl<'a> PackedTensor<'a> {
    /// The matrix as a view that the functions of [`q35_quant::affine`] accept.
    pub fn view(&self) -> PackedView<'a> {
        PackedView {
            spec: self.spec,
            float: self.float,
            rows: self.rows,
            cols: self.cols,
            words: bytemuck::cast_slice(self.words),
            scales: self.scales,
            biases: self.biases,
        }
    }
}

impl MlxTensor<'_> {
    /// Size in the file, in bytes.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Packed(packed) => packed.words.len() * 4 + packed.scales.len() + packed.biases.len(),
            Self::Float(float) => float.bytes.len(),
        }
    }
}

impl MlxDirectory {
    /// Opens the model in `dir`.
    ///
    /// # Errors
    /// The directory holds no model of this architecture in a known form, or its tensors do not fit its config.json.
    pub fn open(dir: &Path) -> Result<Self, MlxError> {
        let dir = dir.to_owned();
        let config_path = dir.join("config.json");
        let config_json = read_json(&config_path)?;
        let reading = ConfigReading::from_json(&config_json)
            .map_err(|source| MlxError::Config { path: config_path.clone(), source })?;
        let settings = Settings::from_config(&config_path, &config_json)?;
        let shards = find_shards(&dir)?;
        if shards.index_ignored && shards.unused.iter().any(|name| name.starts_with("model")) {
            return Err(MlxError::TwoModels { path: dir, shards: shards.unused });
        }
        let files = shards
            .files
            .iter()
            .map(|name| SafetensorsFile::open(&dir.join(name)))
            .collect::<Result<Vec<_>, _>>()?;
        // Without a flag the head's tensors decide.
        let has_head = files
            .iter()
            .flat_map(SafetensorsFile::tensors)
            .any(|tensor| text_model_name(tensor.name).is_some_and(|name| name.starts_with("lm_head.")));
        let tie_word_embeddings = reading.tie_word_embeddings.unwrap_or(!has_head);
        let config = TextConfig { tie_word_embeddings, ..reading.config };
        let tensors = TensorResolver::new(&files).resolve(&dir, &config, &settings)?;
        let by_name = tensors.iter().enumerate().map(|(i, t)| (t.spec.name.clone(), i)).collect();
        Ok(Self { dir, config_json, config, files, tensors, by_name })
    }

    /// True if the files in `dir` are an MLX model's rather than a float checkpoint's: config.json has a `quantization`,
    /// or the header of the weights names MLX as their writer. Opening the model may still fail.
    pub fn matches(dir: &Path) -> bool {
        let quantized =
            read_json(&dir.join("config.json")).is_ok_and(|json| json.get("quantization").is_some());
        let written_by_mlx = || {
            let files = find_shards(dir).map(|shards| shards.files).unwrap_or_default();
            files
                .first()
                .and_then(|name| SafetensorsFile::open(&dir.join(name)).ok())
                .is_some_and(|file| file.metadata().get("format").is_some_and(|format| format == "mlx"))
        };
        quantized || written_by_mlx()
    }

    /// The directory that holds the files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The whole config.json.
    pub fn config_json(&self) -> &Value {
        &self.config_json
    }

    /// The text model's sizes.
    pub fn config(&self) -> &TextConfig {
        &self.config
    }

    /// The tensor with that name in [`tensor_table`](q35_architecture::tensor_table); a quantized matrix has the name of its
    /// `.weight` too.
    pub fn tensor(&self, name: &str) -> Option<MlxTensor<'_>> {
        self.by_name.get(name).map(|&index| self.view(&self.tensors[index]))
    }

    /// The tensor with that name and its description.
    pub fn described(&self, name: &str) -> Option<(&TensorSpec, MlxTensor<'_>)> {
        let located = &self.tensors[*self.by_name.get(name)?];
        Some((&located.spec, self.view(located)))
    }

    /// Every tensor with its description, in the order of [`tensor_table`](q35_architecture::tensor_table).
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = (&TensorSpec, MlxTensor<'_>)> {
        self.tensors.iter().map(|located| (&located.spec, self.view(located)))
    }

    /// Reads every page of the text model's tensors once, so that the first use does not wait for the disk and the system
    /// counts the pages as this process's memory.
    pub fn read_ahead(&self) {
        /// Smallest page size of the supported systems.
        const PAGE: usize = 4096;
        let touch = |bytes: &[u8]| bytes.iter().step_by(PAGE).fold(0u8, |sum, byte| sum ^ byte);
        for (_, tensor) in self.tensors() {
            std::hint::black_box(match tensor {
                MlxTensor::Packed(packed) => {
                    touch(bytemuck::cast_slice(packed.words)) ^ touch(packed.scales) ^ touch(packed.biases)
                }
                MlxTensor::Float(float) => touch(float.bytes),
            });
        }
    }

    /// Stored size of all tensors of the text model, in bytes.
    pub fn weight_bytes(&self) -> u64 {
        self.tensors().map(|(_, tensor)| tensor.bytes() as u64).sum()
    }

    /// Bytes that were copied to memory because they are misaligned in the file; 0 for files that q35 wrote.
    pub fn copied_bytes(&self) -> u64 {
        let copied = |bytes: &TensorBytes| match bytes {
            TensorBytes::Copied { length, .. } => *length as u64,
            TensorBytes::Mapped { .. } => 0,
        };
        let of = |data: &TensorData| match data {
            TensorData::Packed { words, scales, biases, .. } => {
                copied(words) + copied(scales) + copied(biases)
            }
            TensorData::Float { bytes, .. } => copied(bytes),
        };
        self.tensors.iter().map(|located| of(&located.data)).sum()
    }

    /// Average bits of a matrix weight, scales and biases included. Matrices are the tensors that a converter may quantize,
    /// quantized or not.
    pub fn bits_per_weight(&self) -> f64 {
        let matrices = self.tensors().filter(|(spec, _)| spec.role.is_quantized());
        let (bytes, weights) = matrices.fold((0.0, 0.0), |(bytes, weights), (spec, tensor)| {
            (bytes + tensor.bytes() as f64, weights + spec.shape.iter().product::<usize>() as f64)
        });
        8.0 * bytes / weights
    }

    /// The mapped weight files.
    pub fn weight_files(&self) -> &[SafetensorsFile] {
        &self.files
    }

    fn bytes<'a>(&'a self, bytes: &'a TensorBytes) -> &'a [u8] {
        match bytes {
            TensorBytes::Mapped { file, name } => {
                self.files[*file].tensor(name).map_or(&[], |tensor| tensor.data)
            }
            TensorBytes::Copied { storage, length } => &bytemuck::cast_slice(storage)[..*length],
        }
    }

    fn view<'a>(&'a self, located: &'a LocatedTensor) -> MlxTensor<'a> {
        let shape = &located.spec.shape;
        match &located.data {
            TensorData::Packed { spec, float, words, scales, biases } => MlxTensor::Packed(PackedTensor {
                spec: *spec,
                float: *float,
                rows: shape[0],
                cols: shape[1],
                words: bytemuck::cast_slice(self.bytes(words)),
                scales: self.bytes(scales),
                biases: self.bytes(biases),
            }),
            TensorData::Float { float, bytes } => {
                MlxTensor::Float(FloatTensor { float: *float, shape, bytes: self.bytes(bytes) })
            }
        }
    }
}
