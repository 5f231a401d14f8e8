//! The target of a conversion: a format, with the settings of its writer.

use std::cell::Cell;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use q35_checkpoint::Checkpoint;
use q35_inference::CancelToken;
use q35_output_dir::{FileRecord, TensorRecord};
use q35_quant::affine::AffineSpec;
use serde_json::{Map, Value, json};

use crate::progress::{Progress, ProgressCallback, Stage};
use crate::{ConvertError, Provenance};

/// A format that checkpoints are converted to.
pub trait Target {
    /// Kind of the output in the manifest: `mlx` or `coreml`.
    fn kind(&self) -> &'static str;

    /// True if the writer releases the source's pages as it goes, so that hashing should do the same.
    fn releases_source(&self) -> bool {
        false
    }

    /// Plans the conversion and writes weights and configuration into the staging directory.
    ///
    /// # Errors
    /// A model or settings that the format cannot express, weights that are not finite, cancellation, or a file that
    /// cannot be written.
    fn write(&self, job: &Job<'_>) -> Result<Written, ConvertError>;
}

/// One conversion, as a target sees it.
pub struct Job<'a> {
    /// The source.
    pub checkpoint: &'a Checkpoint,
    /// Origin of the source.
    pub provenance: &'a Provenance,
    /// The staging directory.
    pub staging: &'a Path,
    /// The directory that the staging directory becomes. Calibration saves finished stages beside it.
    pub out: &'a Path,
    /// Receiver of progress.
    pub progress: ProgressCallback<'a>,
    /// Cancels the conversion.
    pub cancel: &'a CancelToken,
}

impl Job<'_> {
    /// Runs `write`, a format's writer of `total` bytes of the source, with a progress callback that reports
    /// [`Stage::Quantization`] and cancels.
    pub fn quantize<T>(&self, total: u64, write: impl FnOnce(&dyn Fn(u64) -> ControlFlow<()>) -> T) -> T {
        let done = Cell::new(0);
        let report = || (self.progress)(Progress { stage: Stage::Quantization, done: done.get(), total });
        report();
        write(&|bytes| {
            done.set(done.get() + bytes);
            report();
            if self.cancel.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
    }
}

/// The output of a target, for manifest, model card and report.
#[derive(Debug)]
pub struct Written {
    /// Records of files that were hashed while they were written.
    pub files: Vec<FileRecord>,
    /// Source files that were copied unchanged.
    pub copied: Vec<String>,
    /// Settings for the manifest.
    pub settings: Map<String, Value>,
    /// A record per tensor of the text model.
    pub tensors: Vec<TensorRecord>,
    /// The target's part of the model card.
    pub card: CardSection,
    /// Counts and sizes.
    pub summary: Summary,
    /// Directory of finished stages of a calibration, to be removed after publication.
    pub resume_dir: Option<PathBuf>,
}

/// A target's part of the model card.
#[derive(Clone, Debug)]
pub struct CardSection {
    /// `library_name` and tag on the hub.
    pub library: &'static str,
    /// Title.
    pub title: String,
    /// Description of the files and of their use, as Markdown paragraphs.
    pub body: String,
}

/// Counts and sizes of a conversion.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Number of weights of the text model.
    pub parameters: u64,
    /// Bytes of the source's text model.
    pub source_bytes: u64,
    /// Facts of the format.
    pub details: Details,
    /// Remarks for people, such as matrices that stay in float.
    pub notes: Vec<String>,
}

/// Facts of a format.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Details {
    /// Facts of an MLX directory.
    Mlx {
        /// Bits and group size, of most matrices where they differ.
        spec: AffineSpec,
        /// Name of the recipe in the manifest.
        recipe: String,
        /// Average bits of a matrix weight, scales and biases included.
        bits_per_weight: f64,
        /// Bytes of all tensors.
        tensor_bytes: u64,
        /// Number of matrices that were quantized.
        quantized_matrices: usize,
        /// Names of the matrices that stay in float.
        kept_matrices: Vec<String>,
    },
    /// Facts of Core ML packages.
    CoreMl {
        /// Settings of the conversion.
        options: q35_format_coreml::Options,
        /// Names of the packages.
        packages: Vec<String>,
        /// Number of weights that were quantized to INT8.
        quantized_weights: u64,
        /// Number of parts of the language-model head.
        head_splits: usize,
    },
}

impl Details {
    /// The facts by name.
    pub fn to_json(&self) -> Map<String, Value> {
        let json = match self {
            Self::Mlx { spec, recipe, bits_per_weight, tensor_bytes, quantized_matrices, kept_matrices } => {
                json!({
                    "bits": spec.bits(),
                    "group_size": spec.group_size(),
                    "recipe": recipe,
                    "bits_per_weight": bits_per_weight,
                    "tensor_bytes": tensor_bytes,
                    "quantized_tensors": quantized_matrices,
                    "kept_matrices": kept_matrices,
                })
            }
            Self::CoreMl { options, packages, quantized_weights, head_splits } => json!({
                "packages": packages,
                "layout": options.layout.name(),
                "cache": options.cache.name(),
                "encoding": options.encoding.name(),
                "embedding": options.embedding.name(),
                "compute": options.compute.name(),
                "context": options.context,
                "prefill_chunk": options.prefill_chunk,
                "head_splits": head_splits,
                "quantized_weights": quantized_weights,
            }),
        };
        json.as_object().cloned().unwrap_or_default()
    }
}
