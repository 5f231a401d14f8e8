//! An opened artefact: its weights in float, how it stores them, and its model.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use q35_architecture::{Role, TensorSpec, tensor_table};
use q35_artefact::{ArtefactDir, ArtefactError, ArtefactKind};
use q35_backend::{
    Activations, Backend, BackendError, Device, Precision, RunOptions, Running, open_coreml, open_mlx,
};
use q35_checkpoint::{Checkpoint, FloatType};
use q35_format_coreml::{PackageWeights, PackageWeightsError};
use q35_format_mlx::{MlxDirectory, MlxTensor};
use q35_inference::{Model, RunError, Weights};
use q35_output_dir::{MANIFEST, Manifest};
use q35_reference::Reference;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::Storage;

/// An opened model directory, of any kind that parity can compare.
#[derive(Debug)]
pub struct Artefact {
    dir: PathBuf,
    form: Form,
}

#[derive(Debug)]
enum Form {
    Checkpoint(Arc<Checkpoint>),
    Mlx { directory: Arc<MlxDirectory>, calibrated: bool },
    CoreMl { weights: Box<PackageWeights>, activations: FloatType },
}

/// A directory that could not be opened for comparison.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The directory holds no model, or one that cannot be read.
    #[error(transparent)]
    Artefact(#[from] ArtefactError),
    /// The weights in Core ML packages cannot be read.
    #[error(transparent)]
    CoreMl(#[from] PackageWeightsError),
}

impl Artefact {
    /// Opens the model in `dir` or, with `variant`, in its sub-directory of that name; see [`ArtefactDir::recognise`].
    ///
    /// # Errors
    /// The directory holds no model, a damaged one, or several and no variant is requested.
    pub fn open(dir: &Path, variant: Option<&str>) -> Result<Self, OpenError> {
        let found = ArtefactDir::recognise(dir, variant)?;
        let manifest =
            std::fs::read(found.dir.join(MANIFEST)).ok().and_then(|text| Manifest::parse(&text).ok());
        // Other programs write no manifest, and round to nearest.
        Self::open_recognised(&found, &manifest.map(|manifest| manifest.settings).unwrap_or_default())
    }

    /// Opens `dir`, which was written with `settings` as a manifest records them and may have no manifest yet.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with_settings(dir: &Path, settings: &Map<String, Value>) -> Result<Self, OpenError> {
        Self::open_recognised(&ArtefactDir::recognise(dir, None)?, settings)
    }

    fn open_recognised(found: &ArtefactDir, settings: &Map<String, Value>) -> Result<Self, OpenError> {
        let setting = |name: &str| settings.get(name).and_then(Value::as_str);
        let dir = &found.dir;
        let form = match found.kind {
            ArtefactKind::CoreMl => {
                let f32 = setting("compute") == Some("f32");
                let activations = if f32 { FloatType::F32 } else { FloatType::F16 };
                Form::CoreMl { weights: Box::new(PackageWeights::open(dir)?), activations }
            }
            ArtefactKind::Mlx => {
                let directory = Arc::new(MlxDirectory::open(dir).map_err(ArtefactError::from)?);
                let calibrated = setting("recipe").is_some_and(|recipe| recipe != "rtn");
                Form::Mlx { directory, calibrated }
            }
            ArtefactKind::Checkpoint => {
                Form::Checkpoint(Arc::new(Checkpoint::open(dir).map_err(ArtefactError::from)?))
            }
            _ => return Err(found.refuse_compiled().into()),
        };
        Ok(Self { dir: dir.clone(), form })
    }

    /// Wraps an opened float checkpoint.
    pub fn of_checkpoint(checkpoint: Arc<Checkpoint>) -> Self {
        Self { dir: checkpoint.dir().to_owned(), form: Form::Checkpoint(checkpoint) }
    }

    /// The directory with the model's files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The weights in f32, in the convention of float checkpoints.
    pub fn weights(&self) -> &dyn Weights {
        match &self.form {
            Form::Checkpoint(checkpoint) => &**checkpoint,
            Form::Mlx { directory, .. } => &**directory,
            Form::CoreMl { weights, .. } => &**weights,
        }
    }

    /// The storage of a tensor.
    pub fn storage(&self, spec: &TensorSpec) -> Storage {
        match &self.form {
            Form::Checkpoint(checkpoint) => {
                let float = checkpoint.tensor(&spec.name).map_or(FloatType::F32, |tensor| tensor.dtype);
                Storage::Float(float)
            }
            Form::Mlx { directory, calibrated } => match directory.tensor(&spec.name) {
                Some(MlxTensor::Packed(packed)) => Storage::Affine {
                    bits: packed.spec.bits(),
                    group_size: packed.spec.group_size(),
                    parameters: packed.float,
                    calibrated: *calibrated,
                },
                Some(MlxTensor::Float(tensor)) => Storage::Float(tensor.float),
                None => Storage::Float(FloatType::F32),
            },
            Form::CoreMl { weights, activations } => match weights.block_size(&spec.name) {
                Some(block) => {
                    let row = spec.shape[1..].iter().product::<usize>();
                    let group_size = (block < row).then_some(block);
                    Storage::Symmetric { bits: 8, group_size, parameters: FloatType::F16 }
                }
                None => Storage::Float(*activations),
            },
        }
    }

    /// The key of its conversion thresholds: "float", "coreml-8", "mlx-4" (the bits of most of its weights).
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
            // Packages hold constants besides weights, so the size on disk counts.
            Form::CoreMl { .. } => package_files(&self.dir).iter().map(|(_, bytes)| bytes).sum(),
        }
    }

    /// Average bits of a matrix weight, scales and biases included.
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

    /// Opens the model: a float checkpoint with the float reference, anything else with the requested backend. Core ML
    /// packages that were written for f32 are always evaluated in f32.
    ///
    /// # Errors
    /// The backend refuses the model.
    pub fn open_model(&self, options: &RunOptions) -> Result<Running, RunError> {
        let backend_error = |error: BackendError| RunError::Backend {
            backend: match options.backend {
                Backend::Auto => "the backend",
                named => named.name(),
            },
            message: error.to_string(),
        };
        match &self.form {
            Form::Checkpoint(checkpoint) => {
                let (Backend::Auto | Backend::Cpu) = options.backend else {
                    let (backend, form) = (options.backend.name(), ArtefactKind::Checkpoint.name());
                    return Err(backend_error(BackendError::Unsuitable { backend, form }));
                };
                Ok(Running { model: float_model(&**checkpoint)?, activations: Activations::F32 })
            }
            Form::Mlx { directory, .. } => open_mlx(Arc::clone(directory), options).map_err(backend_error),
            Form::CoreMl { activations: FloatType::F32, .. } => {
                let exact = options.clone().with_precision(Precision::Exact);
                let running = open_coreml(&self.dir, &exact).map_err(backend_error)?;
                Ok(Running { activations: Activations::F32, ..running })
            }
            Form::CoreMl { .. } => open_coreml(&self.dir, options).map_err(backend_error),
        }
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

/// The files in the packages of `dir` and their sizes, sorted by path. Entries that cannot be listed are skipped.
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
