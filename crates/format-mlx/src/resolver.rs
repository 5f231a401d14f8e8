//! Resolution of the tensors in weight files to the tensors of the architecture, and of their quantization.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use q35_architecture::{Role, TensorSpec, TextConfig, tensor_table};
use q35_checkpoint::{SafetensorsFile, StoredTensor, StoredType};
use q35_quant::FloatType;
use q35_quant::affine::AffineSpec;

use crate::names::text_model_name;
use crate::settings::{Module, Settings, Stated};
use crate::{MlxError, TensorProblem};

/// A tensor of the architecture and the location of its data.
#[derive(Debug)]
pub(crate) struct LocatedTensor {
    pub spec: TensorSpec,
    pub data: TensorData,
}

/// Encoding and location of a tensor's data.
#[derive(Debug)]
pub(crate) enum TensorData {
    Packed {
        spec: AffineSpec,
        float: FloatType,
        words: TensorBytes,
        scales: TensorBytes,
        biases: TensorBytes,
    },
    Float {
        float: FloatType,
        bytes: TensorBytes,
    },
}

/// Location of a stored tensor's bytes.
#[derive(Debug)]
pub(crate) enum TensorBytes {
    /// The mapped data of the tensor `name` in the file with index `file`.
    Mapped { file: usize, name: String },
    /// A copy of data whose address in the file is not a multiple of the element's size. The words of 8 bytes align the
    /// copy for every type.
    Copied { storage: Vec<u64>, length: usize },
}

/// Finds the data of every tensor of the architecture, collecting the tensors that do not fit.
pub(crate) struct TensorResolver<'a> {
    /// File index and tensor, by the name below the text tower's prefix.
    stored: HashMap<&'a str, (usize, StoredTensor<'a>)>,
    used: HashSet<&'a str>,
    problems: Vec<TensorProblem>,
}

impl<'a> TensorResolver<'a> {
    pub fn new(files: &'a [SafetensorsFile]) -> Self {
        let mut resolver = Self { stored: HashMap::new(), used: HashSet::new(), problems: Vec::new() };
        for (index, file) in files.iter().enumerate() {
            for tensor in file.tensors() {
                let Some(name) = text_model_name(tensor.name) else { continue };
                if resolver.stored.insert(name, (index, tensor)).is_some() {
                    resolver.problem(tensor.name, "occurs twice, or under two prefixes".to_owned());
                }
            }
        }
        resolver
    }

    fn problem(&mut self, name: &str, message: String) {
        self.problems.push(TensorProblem { name: name.to_owned(), message });
    }

    pub fn resolve(
        mut self,
        dir: &Path,
        config: &TextConfig,
        settings: &Settings,
    ) -> Result<Vec<LocatedTensor>, MlxError> {
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
                tensors.push(LocatedTensor { spec, data });
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

    /// The stored tensor with that name below the text tower's prefix; marks it as used.
    fn take(&mut self, name: &str) -> Option<(usize, StoredTensor<'a>)> {
        let (key, found) = self.stored.get_key_value(name)?;
        self.used.insert(key);
        Some(*found)
    }

    fn data(&mut self, spec: &TensorSpec, settings: &Settings) -> Option<TensorData> {
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

    fn float(&mut self, spec: &TensorSpec) -> Option<TensorData> {
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
        Some(TensorData::Float { float, bytes: bytes_of(file, tensor) })
    }

    fn packed(
        &mut self,
        spec: &TensorSpec,
        module: &str,
        (scales_file, scales): (usize, StoredTensor<'a>),
        stated: Stated,
    ) -> Option<TensorData> {
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
        Some(TensorData::Packed {
            spec: affine,
            float,
            words: bytes_of(words_file, words),
            scales: bytes_of(scales_file, scales),
            biases: bytes_of(biases_file, biases),
        })
    }

    /// Bits and group size, which follow from the shapes alone.
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

fn bytes_of(file: usize, tensor: StoredTensor<'_>) -> TensorBytes {
    if tensor.data.as_ptr().addr().is_multiple_of(tensor.dtype.size()) {
        return TensorBytes::Mapped { file, name: tensor.name.to_owned() };
    }
    let mut storage = vec![0u64; tensor.data.len().div_ceil(8)];
    bytemuck::cast_slice_mut(&mut storage)[..tensor.data.len()].copy_from_slice(tensor.data);
    TensorBytes::Copied { storage, length: tensor.data.len() }
}
