//! [`Weights`] of a directory of packages.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use half::f16;
use q35_architecture::{ConfigError, Role, TensorSpec, TextConfig, tensor_table};
use q35_checkpoint::{CheckpointError, SafetensorsError, SafetensorsFile, StoredType, read_json};
use q35_format_mil::proto::{self, BindingKind, Elements};
use q35_format_mil::{Bytes, Content, DType, Package, ReadError, Value};
use q35_inference::{WeightError, Weights};

use crate::host_table::{HOST_TABLE, HOST_TABLE_SCALES, HOST_TABLE_WEIGHT};
use crate::plan::Action;
use crate::weight_store::{LUT_OFFSET, identifier, part_identifier};

/// The weights in a directory that [`crate::write`] wrote: dequantized, the conversion's transforms undone.
#[derive(Debug)]
pub struct PackageWeights {
    config: TextConfig,
    tensors: BTreeMap<String, Stored>,
}

/// Error of reading the weights of a directory of packages.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackageWeightsError {
    /// The configuration cannot be read.
    #[error(transparent)]
    Files(#[from] CheckpointError),
    /// The configuration is not that of a Qwen3.5 text model.
    #[error("{}: {source}", path.display())]
    Config {
        /// The config.json.
        path: PathBuf,
        /// The field that does not fit.
        source: ConfigError,
    },
    /// The directory has no package.
    #[error("{} holds no .mlpackage", dir.display())]
    NoPackage {
        /// The directory.
        dir: PathBuf,
    },
    /// A package cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// embedding.safetensors cannot be read.
    #[error(transparent)]
    HostTable(#[from] SafetensorsError),
    /// A tensor is missing, has another shape, or is stored in an unknown encoding.
    #[error("`{name}` in {}: {message}", dir.display())]
    Tensor {
        /// The tensor.
        name: String,
        /// The directory.
        dir: PathBuf,
        /// The defect.
        message: String,
    },
}

#[derive(Debug)]
struct Stored {
    spec: TensorSpec,
    /// Consecutive rows.
    parts: Vec<Part>,
}

#[derive(Debug)]
enum Part {
    Floats(Vec<f32>),
    Codes(Codes),
    Table(HostTable),
}

/// Quantized weights `scale * (code - offset)`; each block of `block` consecutive weights has a scale.
#[derive(Debug)]
struct Codes {
    codes: Bytes,
    signed: bool,
    offset: i32,
    scales: Vec<f32>,
    block: usize,
}

/// A memory-mapped embedding.safetensors.
#[derive(Debug)]
struct HostTable {
    file: SafetensorsFile,
    elements: usize,
    scales: Vec<f32>,
    /// Weights that share a scale.
    block: usize,
}

impl HostTable {
    fn open(path: &Path) -> Result<Self, PackageWeightsError> {
        let file = SafetensorsFile::open(path)?;
        let wrong = |name: &str, message: &str| PackageWeightsError::Tensor {
            name: name.to_owned(),
            dir: path.to_owned(),
            message: message.to_owned(),
        };
        let codes = file.tensor(HOST_TABLE_WEIGHT).filter(|table| table.dtype == StoredType::Other("I8"));
        let elements = codes
            .map(|table| table.data.len())
            .ok_or_else(|| wrong(HOST_TABLE_WEIGHT, "there is no such tensor of int8"))?;
        let scales = file
            .tensor(HOST_TABLE_SCALES)
            .and_then(|scales| Some((scales.dtype.float()?, scales.data)))
            .map(|(float, data)| {
                let mut scales = vec![0.0; data.len() / float.size()];
                float.widen(data, &mut scales);
                scales
            })
            .filter(|scales| !scales.is_empty() && elements.is_multiple_of(scales.len()))
            .ok_or_else(|| {
                wrong(HOST_TABLE_SCALES, "there is no such tensor of floats that fits the codes")
            })?;
        let block = elements / scales.len();
        Ok(Self { file, elements, scales, block })
    }

    fn read(&self, range: Range<usize>, out: &mut Vec<f32>) {
        let data = self.file.tensor(HOST_TABLE_WEIGHT).map_or(&[][..], |table| table.data);
        let number = |index: usize| self.scales[index / self.block] * f32::from(data[index] as i8);
        out.extend(range.map(number));
    }
}

impl Part {
    fn len(&self) -> usize {
        match self {
            Self::Floats(values) => values.len(),
            Self::Codes(codes) => codes.codes.len(),
            Self::Table(table) => table.elements,
        }
    }

    fn read(&self, range: Range<usize>, out: &mut Vec<f32>) {
        match self {
            Self::Floats(values) => out.extend_from_slice(&values[range]),
            Self::Codes(codes) => {
                let number = |index: usize| {
                    let byte = codes.codes[index];
                    let code = if codes.signed { i32::from(byte as i8) } else { i32::from(byte) };
                    codes.scales[index / codes.block] * (code - codes.offset) as f32
                };
                out.extend(range.map(number));
            }
            Self::Table(table) => table.read(range, out),
        }
    }
}

impl PackageWeights {
    /// Opens the packages of `dir` and locates every tensor of the model.
    ///
    /// # Errors
    /// A package, config.json or a tensor is missing or malformed.
    pub fn open(dir: &Path) -> Result<Self, PackageWeightsError> {
        let path = dir.join("config.json");
        let config = TextConfig::from_json(&read_json(&path)?)
            .map_err(|source| PackageWeightsError::Config { path, source })?;
        let packages =
            packages(dir)?.iter().map(|path| Package::open(path)).collect::<Result<Vec<_>, _>>()?;
        let constants = Constants::of(&packages);
        let mut tensors = BTreeMap::new();
        for spec in tensor_table(&config) {
            let wrong = |message: String| PackageWeightsError::Tensor {
                name: spec.name.clone(),
                dir: dir.to_owned(),
                message,
            };
            let mut parts = constants.parts(&spec.name).map_err(wrong)?;
            if parts.is_empty() && spec.role == Role::Embedding && dir.join(HOST_TABLE).is_file() {
                parts.push(Part::Table(HostTable::open(&dir.join(HOST_TABLE))?));
            }
            let found: usize = parts.iter().map(Part::len).sum();
            let expected: usize = spec.shape.iter().product();
            if found != expected {
                return Err(wrong(format!("{found} elements, expected {:?}", spec.shape)));
            }
            tensors.insert(spec.name.clone(), Stored { spec, parts });
        }
        Ok(Self { config, tensors })
    }

    /// Number of weights that share a scale in the tensor `name`; [`None`] if it is not quantized.
    pub fn block_size(&self, name: &str) -> Option<usize> {
        match self.tensors.get(name)?.parts.first()? {
            Part::Floats(_) => None,
            Part::Table(table) => Some(table.block),
            Part::Codes(codes) => Some(codes.block),
        }
    }
}

/// The packages of a directory, sorted by name.
fn packages(dir: &Path) -> Result<Vec<PathBuf>, PackageWeightsError> {
    let io = |source| CheckpointError::Io { path: dir.to_owned(), source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io)? {
        let path = entry.map_err(io)?.path();
        // A hidden `._name.mlpackage` is a file that macOS writes on foreign file systems.
        if path.extension().is_some_and(|extension| extension == "mlpackage") && path.is_dir() {
            found.push(path);
        }
    }
    if found.is_empty() {
        return Err(PackageWeightsError::NoPackage { dir: dir.to_owned() });
    }
    found.sort();
    Ok(found)
}

/// The operations that define constants, by the name of their output.
struct Constants<'a> {
    by_name: BTreeMap<&'a str, (&'a Package, &'a proto::Operation)>,
}

impl<'a> Constants<'a> {
    fn of(packages: &'a [Package]) -> Self {
        let mut by_name = BTreeMap::new();
        for package in packages {
            let blocks = package.program().functions.values().flat_map(|f| f.block_specializations.values());
            for operation in blocks.flat_map(|block| &block.operations) {
                let defines_constant =
                    operation.r#type == "const" || operation.r#type.starts_with("constexpr_");
                if let (true, [output]) = (defines_constant, operation.outputs.as_slice()) {
                    by_name.entry(output.name.as_str()).or_insert((package, operation));
                }
            }
        }
        Self { by_name }
    }

    /// The parts of a tensor in order; none if the packages lack it.
    fn parts(&self, tensor: &str) -> Result<Vec<Part>, String> {
        let whole = identifier(tensor);
        if self.by_name.contains_key(whole.as_str()) {
            return Ok(vec![self.part(&whole)?]);
        }
        (0..)
            .map(|index| part_identifier(tensor, index))
            .take_while(|name| self.by_name.contains_key(name.as_str()))
            .map(|name| self.part(&name))
            .collect()
    }

    fn part(&self, name: &str) -> Result<Part, String> {
        let &(package, operation) = self.by_name.get(name).ok_or_else(|| format!("there is no `{name}`"))?;
        let parameter = |parameter: &str| argument(operation, parameter);
        match operation.r#type.as_str() {
            "const" => Ok(Part::Floats(floats(package, &parameter("val")?)?)),
            "constexpr_blockwise_shift_scale" => {
                let scales = floats(package, &parameter("scale")?)?;
                // The data may be the output of a look-up table of integers.
                let by_name = operation.inputs.get("data").and_then(|argument| argument.arguments.first());
                let (codes, signed, offset) = match by_name.and_then(|binding| binding.kind.as_ref()) {
                    Some(BindingKind::Name(table)) => (self.indices(table)?, false, LUT_OFFSET),
                    _ => (packed(package, &parameter("data")?)?, true, 0),
                };
                blocks(codes, signed, offset, scales)
            }
            "constexpr_affine_dequantize" => {
                let scales = floats(package, &parameter("scale")?)?;
                let zero_points = packed(package, &parameter("zero_point")?)?;
                let offset = zero_points.first().copied().unwrap_or(0);
                if zero_points.iter().any(|&other| other != offset) {
                    return Err("its zero points differ from row to row".into());
                }
                let codes = packed(package, &parameter("quantized_data")?)?;
                blocks(codes, false, offset.into(), scales)
            }
            other => Err(format!("it is made by `{other}`")),
        }
    }

    /// The indices into a look-up table, which must be the identity.
    fn indices(&self, name: &str) -> Result<Bytes, String> {
        let Some(&(package, operation)) =
            self.by_name.get(name).filter(|(_, operation)| operation.r#type == "constexpr_lut_to_dense")
        else {
            return Err(format!("`{name}` is no look-up table"));
        };
        let table = floats(package, &argument(operation, "lut")?)?;
        if !table.iter().enumerate().all(|(index, &entry)| entry == (index as i32 - LUT_OFFSET) as f32) {
            return Err(format!("the table of `{name}` is not the identity"));
        }
        packed(package, &argument(operation, "indices")?)
    }
}

fn blocks(codes: Bytes, signed: bool, offset: i32, scales: Vec<f32>) -> Result<Part, String> {
    if scales.is_empty() || !codes.len().is_multiple_of(scales.len()) {
        return Err(format!("{} scales for {} elements", scales.len(), codes.len()));
    }
    let block = codes.len() / scales.len();
    Ok(Part::Codes(Codes { codes, signed, offset, scales, block }))
}

/// A constant argument, from the inputs or the attributes of the operation.
fn argument(operation: &proto::Operation, name: &str) -> Result<Value, String> {
    let inline = operation.inputs.get(name).and_then(|argument| argument.arguments.first());
    let message = match inline.and_then(|binding| binding.kind.as_ref()) {
        Some(BindingKind::Value(value)) => Some(value),
        Some(BindingKind::Name(_)) => None,
        None => operation.attributes.get(name),
    };
    let message = message.ok_or_else(|| format!("its `{name}` is no constant"))?;
    Value::try_from(message).map_err(|error| format!("its `{name}`: {error}"))
}

fn packed(package: &Package, value: &Value) -> Result<Bytes, String> {
    match package.content(value).map_err(|error| error.to_string())? {
        Content::Packed(bytes) => Ok(bytes),
        Content::Elements(_) => Err(format!("{} where bytes are expected", value.ty)),
    }
}

fn floats(package: &Package, value: &Value) -> Result<Vec<f32>, String> {
    match package.content(value).map_err(|error| error.to_string())? {
        Content::Elements(Elements::Floats(floats)) => Ok(floats.values.clone()),
        Content::Packed(bytes) => float_bytes(value.ty.dtype, &bytes),
        Content::Elements(_) => Err(format!("{} where floats are expected", value.ty)),
    }
}

fn float_bytes(dtype: DType, bytes: &[u8]) -> Result<Vec<f32>, String> {
    match dtype {
        DType::F16 => Ok(bytes.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect()),
        DType::F32 => Ok(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
        other => Err(format!("{other} where floats are expected")),
    }
}

impl Weights for PackageWeights {
    fn config(&self) -> &TextConfig {
        &self.config
    }

    fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut Vec<f32>) -> Result<(), WeightError> {
        let error = |message: String| WeightError { name: name.to_owned(), message };
        let stored = self.tensors.get(name).ok_or_else(|| error("the model has no such tensor".into()))?;
        if rows.start > rows.end || rows.end > stored.spec.shape[0] {
            return Err(error(format!("rows {rows:?} of {:?}", stored.spec.shape)));
        }
        let row_len: usize = stored.spec.shape[1..].iter().product();
        let requested = rows.start * row_len..rows.end * row_len;
        out.clear();
        let mut start = 0;
        for part in &stored.parts {
            let end = start + part.len();
            let (from, to) = (requested.start.max(start), requested.end.min(end));
            if from < to {
                part.read(from - start..to - start, out);
            }
            start = end;
        }
        let action = Action::of(&stored.spec);
        if matches!(action, Action::Shift | Action::Exponentiate) {
            out.iter_mut().for_each(|value| *value = action.undo(*value));
        }
        Ok(())
    }
}
