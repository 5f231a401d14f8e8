//! An opened MLX directory.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use q35_architecture::{ConfigReading, Role, TensorSpec, TextConfig, tensor_table};
use q35_checkpoint::{SafetensorsFile, StoredTensor, StoredType, find_shards, read_json};
use q35_quant::FloatType;
use q35_quant::affine::{AffineSpec, PackedView};
use serde_json::Value;

use crate::names::text_model_name;
use crate::settings::{Module, Settings, Stated};
use crate::{MlxError, TensorProblem};

/// An MLX model on disk, mapped and checked. Shared between threads as it is, or in an `Arc`.
#[derive(Debug)]
pub struct MlxDirectory {
    dir: PathBuf,
    config_json: Value,
    config: TextConfig,
    files: Vec<SafetensorsFile>,
    /// In the order of [`tensor_table`].
    tensors: Vec<Located>,
    by_name: HashMap<String, usize>,
}

/// One tensor of the model.
#[derive(Clone, Copy, Debug)]
pub enum MlxTensor<'a> {
    /// A quantized matrix.
    Packed(PackedTensor<'a>),
    /// A tensor in float.
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
    /// Weights of a row.
    pub cols: usize,
    /// [rows, words per row].
    pub words: &'a [u32],
    /// [rows, groups per row], little-endian, aligned to its element.
    pub scales: &'a [u8],
    /// [rows, groups per row], little-endian, aligned to its element.
    pub biases: &'a [u8],
}

/// A tensor in float, mapped.
#[derive(Clone, Copy, Debug)]
pub struct FloatTensor<'a> {
    /// Element type.
    pub float: FloatType,
    /// Shape as [`tensor_table`] has it. MLX's order of a convolution's axes, [channels, taps, 1], is the same
    /// sequence of numbers.
    pub shape: &'a [usize],
    /// Little-endian elements, row-major, aligned to the element.
    pub bytes: &'a [u8],
}

impl<'a> PackedTensor<'a> {
    /// The matrix as the quantizer's functions take it.
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
    /// Bytes in the file.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Packed(packed) => packed.words.len() * 4 + packed.scales.len() + packed.biases.len(),
            Self::Float(float) => float.bytes.len(),
        }
    }
}

#[derive(Debug)]
struct Located {
    spec: TensorSpec,
    data: Data,
}

#[derive(Debug)]
enum Data {
    Packed { spec: AffineSpec, float: FloatType, words: Bytes, scales: Bytes, biases: Bytes },
    Float { float: FloatType, bytes: Bytes },
}

/// Where a tensor's bytes are.
#[derive(Debug)]
enum Bytes {
    /// In a mapped file, under this name.
    Mapped { file: usize, name: String },
    /// Copied, because the file holds them at an address that is no multiple of the element's size. Words of 8 bytes,
    /// so that the copy is aligned for every type.
    Copied { storage: Vec<u64>, length: usize },
}

impl MlxDirectory {
    /// Opens the model in `dir`.
    ///
    /// # Errors
    /// It is not a model of this architecture in one of the known forms, or its tensors are not what its config.json
    /// says.
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
        let tensors = Sorter::new(&files).sort(&dir, &config, &settings)?;
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

    /// The tensor of that name in [`tensor_table`]: of a quantized matrix too, `layers.0.mlp.up_proj.weight`.
    pub fn tensor(&self, name: &str) -> Option<MlxTensor<'_>> {
        self.by_name.get(name).map(|&index| self.view(&self.tensors[index]))
    }

    /// As [`Self::tensor`], with its description.
    pub fn described(&self, name: &str) -> Option<(&TensorSpec, MlxTensor<'_>)> {
        let located = &self.tensors[*self.by_name.get(name)?];
        Some((&located.spec, self.view(located)))
    }

    /// Every tensor with its description, in the order of [`tensor_table`].
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = (&TensorSpec, MlxTensor<'_>)> {
        self.tensors.iter().map(|located| (&located.spec, self.view(located)))
    }

    /// Reads every page of the text model's tensors once, so that the first use waits for no disk and the system counts
    /// them as this process's memory from now on.
    pub fn read_ahead(&self) {
        /// The smallest page of the systems that this runs on.
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

    /// Bytes of all tensors of the text model, as they are stored.
    pub fn weight_bytes(&self) -> u64 {
        self.tensors().map(|(_, tensor)| tensor.bytes() as u64).sum()
    }

    /// Bytes that had to be copied to memory for their alignment; zero for files that this project wrote.
    pub fn copied_bytes(&self) -> u64 {
        let copied = |bytes: &Bytes| match bytes {
            Bytes::Copied { length, .. } => *length as u64,
            Bytes::Mapped { .. } => 0,
        };
        let of = |data: &Data| match data {
            Data::Packed { words, scales, biases, .. } => copied(words) + copied(scales) + copied(biases),
            Data::Float { bytes, .. } => copied(bytes),
        };
        self.tensors.iter().map(|located| of(&located.data)).sum()
    }

    /// Bits of a matrix weight on average, scales and biases included. Matrices are those tensors that a converter
    /// may quantize, whether it did or not.
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

    fn bytes<'a>(&'a self, bytes: &'a Bytes) -> &'a [u8] {
        match bytes {
            Bytes::Mapped { file, name } => self.files[*file].tensor(name).map_or(&[], |tensor| tensor.data),
            Bytes::Copied { storage, length } => &bytemuck::cast_slice(storage)[..*length],
        }
    }

    fn view<'a>(&'a self, located: &'a Located) -> MlxTensor<'a> {
        let shape = &located.spec.shape;
        match &located.data {
            Data::Packed { spec, float, words, scales, biases } => MlxTensor::Packed(PackedTensor {
                spec: *spec,
                float: *float,
                rows: shape[0],
                cols: shape[1],
                words: bytemuck::cast_slice(self.bytes(words)),
                scales: self.bytes(scales),
                biases: self.bytes(biases),
            }),
            Data::Float { float, bytes } => {
                MlxTensor::Float(FloatTensor { float: *float, shape, bytes: self.bytes(bytes) })
            }
        }
    }
}

/// Gives every tensor of the files its place, collecting what does not fit.
struct Sorter<'a> {
    /// By the name below the tower.
    stored: HashMap<&'a str, (usize, StoredTensor<'a>)>,
    used: HashSet<&'a str>,
    problems: Vec<TensorProblem>,
}

impl<'a> Sorter<'a> {
    fn new(files: &'a [SafetensorsFile]) -> Self {
        let mut sorter = Self { stored: HashMap::new(), used: HashSet::new(), problems: Vec::new() };
        for (index, file) in files.iter().enumerate() {
            for tensor in file.tensors() {
                let Some(name) = text_model_name(tensor.name) else { continue };
                if sorter.stored.insert(name, (index, tensor)).is_some() {
                    sorter.problem(tensor.name, "occurs twice, or under two prefixes".to_owned());
                }
            }
        }
        sorter
    }

    fn problem(&mut self, name: &str, message: String) {
        self.problems.push(TensorProblem { name: name.to_owned(), message });
    }

    fn sort(
        mut self,
        dir: &Path,
        config: &TextConfig,
        settings: &Settings,
    ) -> Result<Vec<Located>, MlxError> {
        let mut tensors = Vec::new();
        for spec in tensor_table(config) {
            if let Some((_, tensor)) = self.stored.get(spec.name.as_str())
                && spec.role == Role::Convolution
                && tensor.shape == spec.shape
                && spec.shape[1] != spec.shape[2]
            {
                return Err(MlxError::NotConverted { path: dir.to_owned() });
            }
            if let Some(data) = self.data(&spec, settings) {
                tensors.push(Located { spec, data });
            }
        }
        let mut unknown: Vec<_> = self.stored.iter().filter(|(name, _)| !self.used.contains(*name)).collect();
        unknown.sort_by_key(|(name, _)| **name);
        let unknown: Vec<_> = unknown
            .into_iter()
            .map(|(_, (_, tensor))| (tensor.name, format!("unknown, {:?}", tensor.shape)))
            .collect();
        unknown.into_iter().for_each(|(name, message)| self.problem(name, message));
        if self.problems.is_empty() {
            Ok(tensors)
        } else {
            Err(MlxError::Misfit { path: dir.to_owned(), problems: self.problems })
        }
    }

    /// The stored tensor called `name` below the tower, marked as used.
    fn take(&mut self, name: &str) -> Option<(usize, StoredTensor<'a>)> {
        let (key, found) = self.stored.get_key_value(name)?;
        self.used.insert(key);
        Some(*found)
    }

    fn data(&mut self, spec: &TensorSpec, settings: &Settings) -> Option<Data> {
        let module = spec.name.strip_suffix(".weight").unwrap_or(&spec.name);
        let scales = spec.role.is_quantized().then(|| self.take(&format!("{module}.scales"))).flatten();
        match (scales, settings.of(module)) {
            (Some((_, scales)), Some(Module::Float)) => {
                self.problem(scales.name, "config.json says that this module is not quantized".to_owned());
                None
            }
            (Some(scales), Some(Module::Quantized(stated))) => self.packed(spec, module, scales, stated),
            (Some(scales), None) => self.packed(spec, module, scales, settings.default.unwrap_or_default()),
            (None, Some(Module::Quantized(_))) => {
                self.problem(
                    module,
                    "config.json says that this module is quantized, but it has no scales".to_owned(),
                );
                None
            }
            (None, _) => self.float(spec),
        }
    }

    fn float(&mut self, spec: &TensorSpec) -> Option<Data> {
        let Some((file, tensor)) = self.take(&spec.name) else {
            self.problem(&spec.name, format!("missing, expected {:?}", spec.shape));
            return None;
        };
        let expected = match (spec.role, spec.shape.as_slice()) {
            (Role::Convolution, &[channels, one, taps]) => vec![channels, taps, one],
            (_, shape) => shape.to_vec(),
        };
        if tensor.shape != expected {
            self.problem(tensor.name, format!("expected {expected:?}, found {:?}", tensor.shape));
            return None;
        }
        let Some(float) = tensor.dtype.float() else {
            self.problem(tensor.name, format!("expected BF16, F16 or F32, found {}", tensor.dtype));
            return None;
        };
        Some(Data::Float { float, bytes: bytes_of(file, tensor) })
    }

    fn packed(
        &mut self,
        spec: &TensorSpec,
        module: &str,
        (scales_file, scales): (usize, StoredTensor<'a>),
        stated: Stated,
    ) -> Option<Data> {
        let biases = self.take(&format!("{module}.biases"));
        let words = self.take(&spec.name);
        let (Some((biases_file, biases)), Some((words_file, words))) = (biases, words) else {
            self.problem(scales.name, "its weight or biases are missing".to_owned());
            return None;
        };
        let affine = match self.shapes(spec, words, scales, biases) {
            Ok(affine) => affine,
            Err(message) => {
                self.problem(words.name, message);
                return None;
            }
        };
        if !stated.admits(affine) {
            let show = |value: Option<u64>| value.map_or("any".to_owned(), |value| value.to_string());
            let message = format!(
                "config.json states {} bits in groups of {}, its shape is that of {} bits in groups of {}",
                show(stated.bits),
                show(stated.group_size),
                affine.bits(),
                affine.group_size()
            );
            self.problem(words.name, message);
            return None;
        }
        let Some(float) = scales.dtype.float().filter(|_| biases.dtype == scales.dtype) else {
            self.problem(
                scales.name,
                format!(
                    "scales and biases must be of one float type, found {} and {}",
                    scales.dtype, biases.dtype
                ),
            );
            return None;
        };
        Some(Data::Packed {
            spec: affine,
            float,
            words: bytes_of(words_file, words),
            scales: bytes_of(scales_file, scales),
            biases: bytes_of(biases_file, biases),
        })
    }

    /// Bits and group size from the shapes alone: the sizes in config.json leave only one possibility.
    fn shapes(
        &self,
        spec: &TensorSpec,
        words: StoredTensor<'_>,
        scales: StoredTensor<'_>,
        biases: StoredTensor<'_>,
    ) -> Result<AffineSpec, String> {
        let (&[rows, cols], &[word_rows, word_cols], &[group_rows, groups]) =
            (spec.shape.as_slice(), words.shape, scales.shape)
        else {
            return Err(format!("expected matrices, found {:?} and {:?}", words.shape, scales.shape));
        };
        if words.dtype != StoredType::U32 {
            return Err(format!("expected U32 words, found {}", words.dtype));
        }
        if (word_rows, group_rows) != (rows, rows) || biases.shape != scales.shape {
            return Err(format!(
                "expected {rows} rows, found words {:?}, scales {:?}, biases {:?}",
                words.shape, scales.shape, biases.shape
            ));
        }
        let whole =
            |total: usize, parts: usize| (parts > 0 && total.is_multiple_of(parts)).then(|| total / parts);
        whole(word_cols * 32, cols)
            .zip(whole(cols, groups))
            .and_then(|(bits, group_size)| AffineSpec::new(u32::try_from(bits).ok()?, group_size).ok())
            .filter(|affine| affine.fits(cols))
            .ok_or_else(|| {
                format!("{word_cols} words and {groups} groups a row fit no bits and group size for {cols} weights")
            })
    }
}

fn bytes_of(file: usize, tensor: StoredTensor<'_>) -> Bytes {
    if tensor.data.as_ptr().addr().is_multiple_of(tensor.dtype.size()) {
        return Bytes::Mapped { file, name: tensor.name.to_owned() };
    }
    let mut storage = vec![0u64; tensor.data.len().div_ceil(8)];
    bytemuck::cast_slice_mut(&mut storage)[..tensor.data.len()].copy_from_slice(tensor.data);
    Bytes::Copied { storage, length: tensor.data.len() }
}
