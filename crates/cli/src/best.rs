//! The recipe `best`: calibration between a checkpoint and the MLX writer.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use q35_architecture::TensorSpec;
use q35_calibrate::{Calibrated, Job, Progress, Replacement, ResumeDir, Settings, Stage, calibrate};
use q35_checkpoint::{Checkpoint, TensorView, sha256_hex};
use q35_format_mlx::{Recipe, Treatment};
use q35_output_dir::hash_file;
use q35_quant::FloatType;
use q35_quant::affine::{AffineSpec, PackedMatrix};
use q35_reference::Device;
use q35_text::Tokenizer;
use serde_json::{Map, Value, json};

use crate::output::note;
use crate::progress::{Step, Watcher};

/// Bits per weight where neither `--bits-per-weight` nor `--max-bytes` is given: what with the tensors kept in float stays
/// within the 438,304,768 bytes of the origin's INT4 of Qwen3.5-0.8B.
pub const BITS_PER_WEIGHT: f64 = 4.65;

/// How large the result may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// Bits of a matrix weight on average, scales and biases included.
    BitsPerWeight(f64),
    /// Bytes of all tensors.
    Bytes(u64),
}

/// A calibrated model, ready to be written.
pub struct Best {
    calibrated: Calibrated,
    settings: Map<String, Value>,
    common: AffineSpec,
    saved_in: PathBuf,
}

impl Best {
    /// Calibrates `checkpoint` on the text in `calibration`, or on the tool's own, `device` computing the float model.
    /// Finished layers are kept beside `target` until [`Self::forget`], and used again after a kill.
    ///
    /// # Errors
    /// A device that cannot be used, no tokenizer, an unreadable text, a budget that is too small, or a failure of the
    /// calibration.
    pub fn calibrate(
        checkpoint: &Checkpoint,
        target: &Path,
        calibration: Option<&Path>,
        budget: Budget,
        device: Device,
        watcher: Watcher,
    ) -> anyhow::Result<Self> {
        let opened = q35_reference::open_device(device)?;
        let tokenizer = Tokenizer::from_dir(checkpoint.dir())
            .context("the recipe `best` calibrates on text and needs the checkpoint's tokenizer")?;
        let text = match calibration {
            Some(path) => std::fs::read_to_string(path).with_context(|| path.display().to_string())?,
            None => q35_calibrate::DEFAULT_TEXT.to_owned(),
        };
        let ids = tokenizer.encode(&text)?;
        let float = float_of(checkpoint)?;
        let settings = Settings::rounding(checkpoint.config(), ids.len(), budget_bytes(checkpoint, budget)?);
        let mut record = json!({
            "calibration": {
                "text": calibration.map_or("the tool's own".into(), |path| path.display().to_string()),
                "text_sha256": sha256_hex(text.as_bytes()),
                "tokens": ids.len(),
                "threads": rayon::current_num_threads(),
                "settings": settings,
            },
        });
        // Devices round differently, so that one does not go on with another's work. The CPU's record stays what it was
        // before there was a choice, and with it the key of what was saved then.
        if device != Device::Cpu {
            record["calibration"]["device"] = device.name().into();
        }
        let saved_in = saved_in(target);
        let saved = ResumeDir::open(&saved_in, key(checkpoint, &record)?)?;
        let step: RefCell<Option<(Stage, Step)>> = RefCell::new(None);
        let mut listener = |progress: Progress| {
            let mut step = step.borrow_mut();
            if step.as_ref().is_none_or(|(stage, _)| *stage != progress.stage) {
                *step = None;
                *step =
                    Some((progress.stage, watcher.long_step(title(progress.stage), progress.total as u64)));
            }
            if let Some((_, step)) = &*step {
                step.advance(1);
            }
            ControlFlow::Continue(())
        };
        let job = Job { weights: checkpoint, float, ids: &ids, device: &opened, resume: Some(&saved) };
        let calibrated = calibrate(job, &settings, &mut listener)?;
        let common = common_spec(&calibrated)?;
        let Value::Object(settings) = record else { bail!("the settings are no object") };
        Ok(Self { calibrated, settings, common, saved_in })
    }

    /// Removes the work kept beside the target, which is published now.
    pub fn forget(&self) {
        if let Err(error) = std::fs::remove_dir_all(&self.saved_in) {
            note(format!("note: {} could not be removed: {error}", self.saved_in.display()));
        }
    }
}

impl Recipe for Best {
    fn name(&self) -> &str {
        "best"
    }

    fn default_spec(&self) -> AffineSpec {
        self.common
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

fn title(stage: Stage) -> &'static str {
    match stage {
        Stage::SelfGeneration => "text in the model's own words",
        Stage::FloatPredictions => "float predictions",
        Stage::Sensitivity => "where errors matter",
        Stage::Rounding => "rounding, layer by layer",
        Stage::Distillation => "learning",
    }
}

/// The type of the first matrix, which is that of all others in every known checkpoint.
fn float_of(checkpoint: &Checkpoint) -> anyhow::Result<FloatType> {
    let mut matrices = checkpoint.tensors().filter(|tensor| tensor.role().is_quantized());
    let first = matrices.next().context("the checkpoint has no matrices")?;
    if let Some(other) = matrices.find(|tensor| tensor.dtype != first.dtype) {
        bail!(
            "the matrices are of different types\n  expected: {}\n  found:    {} in `{}`",
            first.dtype.torch_name(),
            other.dtype.torch_name(),
            other.name()
        );
    }
    Ok(first.dtype)
}

fn budget_bytes(checkpoint: &Checkpoint, budget: Budget) -> anyhow::Result<u64> {
    let weights = |quantized: bool| {
        checkpoint.tensors().filter(move |tensor| tensor.role().is_quantized() == quantized)
    };
    match budget {
        Budget::BitsPerWeight(bits) => {
            let count: usize = weights(true).map(|t| t.shape().iter().product::<usize>()).sum();
            Ok((bits * count as f64 / 8.0) as u64)
        }
        Budget::Bytes(bytes) => {
            let floats: u64 = weights(false).map(|tensor| tensor.data.len() as u64).sum();
            bytes
                .checked_sub(floats)
                .with_context(|| format!("the tensors that stay in float alone take {floats} bytes"))
        }
    }
}

/// The bits and group size of most weights, which config.json states for all that are not named.
fn common_spec(calibrated: &Calibrated) -> anyhow::Result<AffineSpec> {
    let mut weights: BTreeMap<(u32, usize), usize> = BTreeMap::new();
    for replacement in calibrated.tensors.values() {
        if let Replacement::Quantized(matrix) = replacement {
            *weights.entry((matrix.spec.bits(), matrix.spec.group_size())).or_default() += matrix.codes.len();
        }
    }
    let most = weights.into_iter().max_by_key(|(_, count)| *count).context("nothing was quantized")?;
    Ok(AffineSpec::new(most.0.0, most.0.1)?)
}

/// A hidden sibling of the target.
fn saved_in(target: &Path) -> PathBuf {
    let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
    target.with_file_name(format!(".{name}.calibration"))
}

/// What saved work is of: source, text and settings.
fn key(checkpoint: &Checkpoint, record: &Value) -> anyhow::Result<String> {
    let mut all = record.to_string();
    for file in checkpoint.weight_files() {
        all.push_str(&hash_file(file.path(), "weights")?.sha256);
    }
    Ok(sha256_hex(all.as_bytes()))
}
