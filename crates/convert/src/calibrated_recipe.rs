//! The calibrated recipe: [`q35_calibrate`] between a checkpoint and the MLX writer.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};

use q35_architecture::TensorSpec;
use q35_calibrate::{CalibrateError, Calibrated, Replacement, ResumeDir, Settings, calibrate};
use q35_checkpoint::{Checkpoint, TensorView, sha256_hex};
use q35_format_mlx::{Recipe, Treatment};
use q35_output_dir::{OutputDirError, hash_file};
use q35_quant::FloatType;
use q35_quant::affine::{AffineSpec, PackedMatrix};
use q35_reference::{Device, DeviceError};
use q35_text::{Tokenizer, TokenizerError};
use serde_json::{Map, Value, json};

use crate::ConvertError;
use crate::progress::{Progress, Stage};
use crate::target::Job;

/// Default bits per weight. With the tensors that stay in float, Qwen3.5-0.8B is then within the 438,304,768 bytes of
/// speech-swift's INT4 model.
pub const DEFAULT_BITS_PER_WEIGHT: f64 = 4.65;

/// Upper bound of the size of the result.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// Average bits of a matrix weight, scales and biases included.
    BitsPerWeight(f64),
    /// Bytes of all tensors.
    Bytes(u64),
}

/// Settings of the calibrated recipe.
#[derive(Clone, Debug)]
pub struct Calibration {
    /// Upper bound of the size.
    pub budget: Budget,
    /// File with the calibration text; [`None`] is the built-in text.
    pub text: Option<PathBuf>,
    /// Device that computes the float model.
    pub device: Device,
}

impl Default for Calibration {
    /// 4.65 bits per weight, the built-in text, the CPU.
    fn default() -> Self {
        Self { budget: Budget::BitsPerWeight(DEFAULT_BITS_PER_WEIGHT), text: None, device: Device::Cpu }
    }
}

/// Error of the calibrated recipe.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecipeError {
    /// The device cannot be used.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The checkpoint has no usable tokenizer.
    #[error("the calibrated recipe needs the checkpoint's tokenizer to read the calibration text")]
    Tokenizer(#[from] TokenizerError),
    /// The calibration text cannot be read.
    #[error("{}", path.display())]
    Text {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The checkpoint has no matrices.
    #[error("the checkpoint has no matrices")]
    NoMatrices,
    /// The matrices have different float types.
    #[error("the matrices are of different types\n  expected: {expected}\n  found:    {found} in `{name}`")]
    MixedTypes {
        /// Type of the first matrix.
        expected: &'static str,
        /// Another type.
        found: &'static str,
        /// The matrix of that type.
        name: String,
    },
    /// The budget is smaller than the tensors that are not quantized.
    #[error("the tensors that stay in float alone take {float_bytes} bytes")]
    Budget {
        /// Bytes of those tensors.
        float_bytes: u64,
    },
    /// The calibration failed.
    #[error(transparent)]
    Calibrate(#[from] CalibrateError),
}

/// A calibrated model: the codes of every matrix, ready to be packed.
pub(crate) struct CalibratedRecipe {
    calibrated: Calibrated,
    settings: Map<String, Value>,
    default_spec: AffineSpec,
    /// Directory of finished stages, from which a killed calibration continues.
    pub(crate) resume_dir: PathBuf,
}

impl CalibratedRecipe {
    /// Calibrates the job's checkpoint. Finished layers are saved beside the output, and reused after a kill.
    pub(crate) fn calibrate(calibration: &Calibration, job: &Job<'_>) -> Result<Self, ConvertError> {
        let checkpoint = job.checkpoint;
        let device = q35_reference::open_device(calibration.device).map_err(RecipeError::from)?;
        let tokenizer = Tokenizer::from_dir(checkpoint.dir()).map_err(RecipeError::from)?;
        let text = match &calibration.text {
            Some(path) => std::fs::read_to_string(path)
                .map_err(|source| RecipeError::Text { path: path.clone(), source })?,
            None => q35_calibrate::DEFAULT_TEXT.to_owned(),
        };
        let ids = tokenizer.encode(&text).map_err(RecipeError::from)?;
        let float = matrix_type(checkpoint)?;
        let settings =
            Settings::rounding(checkpoint.config(), ids.len(), budget_bytes(checkpoint, calibration.budget)?);
        let mut record = json!({
            "text": calibration.text.as_ref()
                .map_or("the tool's own".into(), |path| path.display().to_string()),
            "text_sha256": sha256_hex(text.as_bytes()),
            "tokens": ids.len(),
            "threads": rayon::current_num_threads(),
            "settings": settings,
        });
        // Devices round differently, so a calibration may not continue on another one. The CPU is not recorded: its
        // manifests have no such key.
        if calibration.device != Device::Cpu {
            record["device"] = calibration.device.name().into();
        }
        let settings_record = Map::from_iter([("calibration".to_owned(), record)]);
        let resume_dir = resume_dir(job.out);
        let key = key(checkpoint, &Value::Object(settings_record.clone()))?;
        let resume = ResumeDir::open(&resume_dir, key).map_err(RecipeError::from)?;
        let calibrate_job = q35_calibrate::Job {
            weights: checkpoint,
            float,
            ids: &ids,
            device: &device,
            resume: Some(&resume),
        };
        let calibrated = calibrate(calibrate_job, &settings, &mut |progress| {
            (job.progress)(Progress {
                stage: Stage::Calibration(progress.stage),
                done: progress.done as u64,
                total: progress.total as u64,
            });
            if job.cancel.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .map_err(|error| {
            // An empty directory goes; one with finished stages stays.
            let _ = std::fs::remove_dir(&resume_dir);
            match error {
                CalibrateError::Cancelled => ConvertError::Cancelled {
                    resume_dir: has_resume_files(&resume_dir).then(|| resume_dir.clone()),
                },
                error => RecipeError::from(error).into(),
            }
        })?;
        let default_spec = most_common_spec(&calibrated).ok_or(RecipeError::NoMatrices)?;
        Ok(Self { calibrated, settings: settings_record, default_spec, resume_dir })
    }
}

impl Recipe for CalibratedRecipe {
    fn name(&self) -> &str {
        "best"
    }

    fn default_spec(&self) -> AffineSpec {
        self.default_spec
    }

    fn treatment(&self, tensor: &TensorSpec) -> Treatment {
        match self.calibrated.tensors.get(&tensor.name) {
            Some(Replacement::Quantized(matrix)) => Treatment::Quantize(matrix.spec),
            _ => Treatment::Keep,
        }
    }

    fn quantize(
        &self,
        tensor: &TensorView<'_>,
        _spec: AffineSpec,
        rows: Range<usize>,
    ) -> Result<PackedMatrix, String> {
        match self.calibrated.tensors.get(tensor.name()) {
            Some(Replacement::Quantized(matrix)) => Ok(matrix.pack_rows(rows)),
            _ => Err("it was not calibrated".to_owned()),
        }
    }

    fn float_values(&self, tensor: &TensorSpec) -> Option<&[f32]> {
        match self.calibrated.tensors.get(&tensor.name) {
            Some(Replacement::Float(values)) => Some(values),
            _ => None,
        }
    }

    fn settings(&self) -> Map<String, Value> {
        self.settings.clone()
    }
}

/// The float type of the matrices, which must be the same for all.
fn matrix_type(checkpoint: &Checkpoint) -> Result<FloatType, RecipeError> {
    let mut matrices = checkpoint.tensors().filter(|tensor| tensor.role().is_quantized());
    let first = matrices.next().ok_or(RecipeError::NoMatrices)?;
    match matrices.find(|tensor| tensor.dtype != first.dtype) {
        None => Ok(first.dtype),
        Some(other) => Err(RecipeError::MixedTypes {
            expected: first.dtype.torch_name(),
            found: other.dtype.torch_name(),
            name: other.name().to_owned(),
        }),
    }
}

/// The budget of the matrices in bytes.
fn budget_bytes(checkpoint: &Checkpoint, budget: Budget) -> Result<u64, RecipeError> {
    let tensors = |quantized: bool| {
        checkpoint.tensors().filter(move |tensor| tensor.role().is_quantized() == quantized)
    };
    match budget {
        Budget::BitsPerWeight(bits) => {
            let weights: usize = tensors(true).map(|tensor| tensor.shape().iter().product::<usize>()).sum();
            Ok((bits * weights as f64 / 8.0) as u64)
        }
        Budget::Bytes(bytes) => {
            let float_bytes: u64 = tensors(false).map(|tensor| tensor.data.len() as u64).sum();
            bytes.checked_sub(float_bytes).ok_or(RecipeError::Budget { float_bytes })
        }
    }
}

/// The bits and group size of most weights, the default in config.json.
fn most_common_spec(calibrated: &Calibrated) -> Option<AffineSpec> {
    let mut weights: BTreeMap<(u32, usize), usize> = BTreeMap::new();
    for replacement in calibrated.tensors.values() {
        if let Replacement::Quantized(matrix) = replacement {
            *weights.entry((matrix.spec.bits(), matrix.spec.group_size())).or_default() += matrix.codes.len();
        }
    }
    let ((bits, group_size), _) = weights.into_iter().max_by_key(|(_, count)| *count)?;
    AffineSpec::new(bits, group_size).ok()
}

/// The directory in which the calibration of the output `out` saves finished stages: a hidden sibling.
pub fn resume_dir(out: &Path) -> PathBuf {
    let name = out.file_name().unwrap_or_default().to_string_lossy().into_owned();
    out.with_file_name(format!(".{name}.calibration"))
}

/// True if a resume directory has a finished stage.
pub fn has_resume_files(dir: &Path) -> bool {
    std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some())
}

/// Key of saved work: hash of source, text and settings.
fn key(checkpoint: &Checkpoint, record: &Value) -> Result<String, OutputDirError> {
    let mut all = record.to_string();
    for file in checkpoint.weight_files() {
        all.push_str(&hash_file(file.path(), "weights")?.sha256);
    }
    Ok(sha256_hex(all.as_bytes()))
}
