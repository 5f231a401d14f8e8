//! What stands in a directory, as a check needs it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use q35_architecture::{Role, TensorSpec, tensor_table};
use q35_backend::{Activations, Backend, BackendError, RunOptions, Running, open_coreml, open_mlx};
use q35_checkpoint::{Checkpoint, CheckpointError, FloatType};
use q35_format_coreml::{PackageWeights, PackageWeightsError};
use q35_format_mlx::{MlxDirectory, MlxError, MlxTensor};
use q35_inference::{Model, RunError, Weights};
use q35_output_dir::{MANIFEST, Manifest};
use q35_reference::{Device, Reference};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::{Execution, Float, Storage};

/// A directory that holds a model in one of the forms that can be judged.
#[derive(Debug)]
pub struct Artefact {
    dir: PathBuf,
    form: Form,
}

#[derive(Debug)]
enum Form {
    Checkpoint(Arc<Checkpoint>),
    Mlx { directory: Arc<MlxDirectory>, calibrated: bool },
    CoreMl { weights: Box<PackageWeights>, activations: Float },
}

/// Why a directory could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// As a float checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// As an MLX directory.
    #[error(transparent)]
    Mlx(#[from] MlxError),
    /// As Core ML packages.
    #[error(transparent)]
    CoreMl(#[from] PackageWeightsError),
}

impl Artefact {
    /// Opens `dir` as what it is.
    ///
    /// # Errors
    /// It holds no model, or a damaged one.
    pub fn open(dir: &Path) -> Result<Self, OpenError> {
        let manifest = std::fs::read(dir.join(MANIFEST)).ok().and_then(|text| Manifest::parse(&text).ok());
        // Without a manifest it cannot be known how it was made, and rounding to nearest is what other makers do.
        Self::open_as_made(dir, &manifest.map(|manifest| manifest.settings).unwrap_or_default())
    }

    /// Opens `dir`, which was made with `settings` as a manifest has them, whether or not it has one by now.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_as_made(dir: &Path, settings: &Map<String, Value>) -> Result<Self, OpenError> {
        let setting = |name: &str| settings.get(name).and_then(Value::as_str);
        let form = if holds_packages(dir) {
            // What executes f16 on the device is judged in f16 here.
            let f32 = setting("compute") == Some("f32");
            let activations = if f32 { Float::F32 } else { Float::F16 };
            Form::CoreMl { weights: Box::new(PackageWeights::open(dir)?), activations }
        } else if MlxDirectory::recognises(dir) {
            let directory = Arc::new(MlxDirectory::open(dir)?);
            let calibrated = setting("recipe").is_some_and(|recipe| recipe != "rtn");
            Form::Mlx { directory, calibrated }
        } else {
            Form::Checkpoint(Arc::new(Checkpoint::open(dir)?))
        };
        Ok(Self { dir: dir.to_owned(), form })
    }

    /// A float checkpoint that is open already.
    pub fn of_checkpoint(checkpoint: Arc<Checkpoint>) -> Self {
        Self { dir: checkpoint.dir().to_owned(), form: Form::Checkpoint(checkpoint) }
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its numbers, in the convention of float checkpoints.
    pub fn weights(&self) -> &dyn Weights {
        match &self.form {
            Form::Checkpoint(checkpoint) => &**checkpoint,
            Form::Mlx { directory, .. } => &**directory,
            Form::CoreMl { weights, .. } => &**weights,
        }
    }

    /// How it stores a tensor.
    pub fn storage(&self, spec: &TensorSpec) -> Storage {
        match &self.form {
            Form::Checkpoint(checkpoint) => {
                let float = checkpoint.tensor(&spec.name).map_or(FloatType::F32, |tensor| tensor.dtype);
                Storage::Float(float.into())
            }
            Form::Mlx { directory, calibrated } => match directory.tensor(&spec.name) {
                Some(MlxTensor::Packed(packed)) => Storage::Affine {
                    bits: packed.spec.bits(),
                    group_size: packed.spec.group_size(),
                    parameters: packed.float.into(),
                    calibrated: *calibrated,
                },
                Some(MlxTensor::Float(tensor)) => Storage::Float(tensor.float.into()),
                None => Storage::Float(Float::F32),
            },
            Form::CoreMl { weights, activations } => match weights.block_size(&spec.name) {
                Some(block) => {
                    let row = spec.shape[1..].iter().product::<usize>();
                    let group_size = (block < row).then_some(block);
                    Storage::Symmetric { bits: 8, group_size, parameters: Float::F16 }
                }
                None => Storage::Float(*activations),
            },
        }
    }

    /// The key of its limits of conversion: "float", "coreml-8", "mlx-4" (by the bits that most of its weights have).
    pub fn kind(&self) -> String {
        match &self.form {
            Form::Checkpoint(_) => return "float".into(),
            Form::CoreMl { .. } => return "coreml-8".into(),
            Form::Mlx { .. } => {}
        }
        let mut weights_by_bits = std::collections::BTreeMap::new();
        for spec in tensor_table(self.weights().config()).iter().filter(|spec| spec.role.is_quantized()) {
            if let Storage::Affine { bits, .. } = self.storage(spec) {
                *weights_by_bits.entry(bits).or_insert(0) += spec.shape.iter().product::<usize>();
            }
        }
        let most = weights_by_bits.into_iter().max_by_key(|(_, weights)| *weights);
        most.map_or("mlx-float".into(), |(bits, _)| format!("mlx-{bits}"))
    }

    /// Bytes of the text model's weights as they are stored.
    pub fn weight_bytes(&self) -> u64 {
        match &self.form {
            Form::Checkpoint(checkpoint) => {
                checkpoint.tensors().map(|tensor| tensor.rows(0..tensor.shape()[0]).len() as u64).sum()
            }
            Form::Mlx { directory, .. } => directory.weight_bytes(),
            // Packages hold constants of their own beside weights; what counts is what lies on the disk.
            Form::CoreMl { .. } => package_files(&self.dir).iter().map(|(_, bytes)| bytes).sum(),
        }
    }

    /// Bits of a matrix weight, scales and biases included.
    pub fn bits_per_weight(&self) -> f64 {
        let (mut bits, mut weights) = (0.0, 0.0);
        let table = tensor_table(self.weights().config());
        let matrices =
            table.iter().filter(|spec| matches!(spec.role, Role::Embedding | Role::Head | Role::Linear));
        for spec in matrices {
            let count = spec.shape.iter().product::<usize>() as f64;
            bits += count * self.storage(spec).bits_per_weight(spec.shape[1]);
            weights += count;
        }
        bits / weights
    }

    /// It, ready to run: a float checkpoint by the float reference, anything converted by the backend chosen, in that
    /// arithmetic. Core ML packages that were written for f32 are always evaluated in f32.
    ///
    /// # Errors
    /// The backend refuses it.
    pub fn execute(&self, options: &RunOptions, arithmetic: Arithmetic) -> Result<Executed, RunError> {
        let failed = |error: BackendError| RunError::Backend {
            backend: match options.backend {
                Backend::Auto => "the backend",
                named => named.name(),
            },
            message: error.to_string(),
        };
        let exactly = |exact: bool| RunOptions { exact, ..options.clone() };
        let Running { model, activations } = match &self.form {
            Form::Checkpoint(checkpoint) => {
                let (Backend::Auto | Backend::Cpu) = options.backend else {
                    let (backend, form) = (options.backend.name(), "a float checkpoint");
                    return Err(failed(BackendError::Unsuitable { backend, form }));
                };
                return Ok(Executed { model: float_model(&**checkpoint)?, execution: Execution::F32 });
            }
            Form::Mlx { directory, .. } => {
                let exact = match arithmetic {
                    Arithmetic::Own => options.backend == Backend::Cpu,
                    Arithmetic::Exact => true,
                    Arithmetic::Fast => false,
                };
                open_mlx(Arc::clone(directory), &exactly(exact)).map_err(failed)?
            }
            Form::CoreMl { activations: Float::F16, .. } => {
                open_coreml(&self.dir, &exactly(arithmetic == Arithmetic::Exact)).map_err(failed)?
            }
            Form::CoreMl { .. } => {
                let mut running = open_coreml(&self.dir, &exactly(true)).map_err(failed)?;
                running.activations = Activations::F32;
                running
            }
        };
        let execution = match activations {
            Activations::F32 => Execution::F32,
            Activations::F16 => Execution::F16,
            Activations::Bf16 => Execution::Bf16,
            Activations::Integer => Execution::Fast,
        };
        Ok(Executed { model, execution })
    }

    /// SHA-256 over the names and contents of config.json and the weight files.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn hash(&self) -> std::io::Result<String> {
        let (dir, files) = match &self.form {
            Form::Checkpoint(checkpoint) => (checkpoint.dir(), checkpoint.weight_files()),
            Form::Mlx { directory, .. } => (directory.dir(), directory.weight_files()),
            Form::CoreMl { .. } => (&*self.dir, &[][..]),
        };
        let mut hash = Sha256::new();
        hash.update(std::fs::read(dir.join("config.json"))?);
        for file in files {
            let name = file.path().file_name().map(|name| name.to_string_lossy().into_owned());
            hash.update(name.unwrap_or_default());
            hash.update(file.bytes());
        }
        for (path, _) in package_files(dir) {
            hash.update(std::fs::read(path)?);
        }
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

/// The arithmetic that is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Arithmetic {
    /// What the artefact was written for: f16 where a package says so, what the GPU takes if one computes, else f32.
    #[default]
    Own,
    /// Activations in f32 whatever the artefact says.
    Exact,
    /// The backend's fast mode, where it has one.
    Fast,
}

/// A model and the arithmetic that it is computed with.
pub struct Executed {
    /// The model.
    pub model: Box<dyn Model>,
    /// Its arithmetic.
    pub execution: Execution,
}

/// The float reference over any weights, on the CPU.
///
/// # Errors
/// A weight cannot be read.
pub fn float_model(weights: &dyn Weights) -> Result<Box<dyn Model>, RunError> {
    match Reference::load(weights, Device::Cpu) {
        Ok(model) => Ok(Box::new(model)),
        Err(error) => Err(RunError::Backend { backend: "the float reference", message: error.to_string() }),
    }
}

impl From<FloatType> for Float {
    fn from(float: FloatType) -> Self {
        match float {
            FloatType::Bf16 => Self::Bf16,
            FloatType::F16 => Self::F16,
            FloatType::F32 => Self::F32,
        }
    }
}

/// Whether `dir` holds Core ML packages.
fn holds_packages(dir: &Path) -> bool {
    let is_package = |path: &Path| path.extension().is_some_and(|extension| extension == "mlpackage");
    std::fs::read_dir(dir).is_ok_and(|entries| entries.flatten().any(|entry| is_package(&entry.path())))
}

/// The files in the packages of `dir` and their sizes, by path. What cannot be listed is left out.
fn package_files(dir: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = std::fs::read_dir(dir)
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect::<Vec<_>>())
        .unwrap_or_default();
    folders.retain(|path| path.extension().is_some_and(|extension| extension == "mlpackage"));
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => folders.push(entry.path()),
                Ok(metadata) => found.push((entry.path(), metadata.len())),
                Err(_) => {}
            }
        }
    }
    found.sort();
    found
}
