//! The plan of a conversion: the treatment of every tensor, decided from its role before anything is written. Weight
//! store, graph, reader and manifest all follow it.

use q35_architecture::{Role, TensorSpec};
use q35_checkpoint::{Checkpoint, TensorView};
use q35_output_dir::TensorRecord;
use serde_json::{Map, Value, json};

use crate::WriteError;
use crate::options::{Embedding, Layout, Options};

/// Treatment of one tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// INT8 codes and scales.
    Quantize,
    /// The norm weight `w` is stored as `1 + w`.
    Shift,
    /// `A_log` is stored as the decay rate `-exp(A_log)`.
    Exponentiate,
    /// Stored in the type of activations.
    Keep,
}

impl Action {
    /// The treatment of the tensor `spec`. The small projections of the linear layers' gates stay in float: they decide
    /// how much of the state is forgotten.
    pub(crate) fn of(spec: &TensorSpec) -> Self {
        let is_gate = spec.name.ends_with(".in_proj_a.weight") || spec.name.ends_with(".in_proj_b.weight");
        match spec.role {
            role if role.is_quantized() && !is_gate => Self::Quantize,
            Role::CenteredNorm => Self::Shift,
            Role::DecayLog => Self::Exponentiate,
            _ => Self::Keep,
        }
    }

    /// The stored value of the weight `w`, of tensors that are not quantized.
    pub(crate) fn apply(self, w: f32) -> f32 {
        match self {
            Self::Shift => 1.0 + w,
            Self::Exponentiate => -w.exp(),
            Self::Quantize | Self::Keep => w,
        }
    }

    /// The weight whose stored value is `stored`.
    pub(crate) fn undo(self, stored: f32) -> f32 {
        match self {
            Self::Shift => stored - 1.0,
            Self::Exponentiate => (-stored).ln(),
            Self::Quantize | Self::Keep => stored,
        }
    }

    /// Name in the manifest.
    fn label(self) -> &'static str {
        match self {
            Self::Quantize => "quantized",
            Self::Shift => "shifted",
            Self::Exponentiate => "exponentiated",
            Self::Keep => "kept",
        }
    }
}

/// The plan of one conversion.
pub struct Plan<'a> {
    pub(crate) checkpoint: &'a Checkpoint,
    pub(crate) options: Options,
}

impl<'a> Plan<'a> {
    /// Plans the conversion of `checkpoint`. Reads no weights.
    ///
    /// # Errors
    /// Settings that do not fit each other or the model.
    pub fn new(checkpoint: &'a Checkpoint, options: &Options) -> Result<Self, WriteError> {
        options.check(checkpoint.config())?;
        Ok(Self { checkpoint, options: *options })
    }

    fn quantized(&self) -> impl Iterator<Item = TensorView<'a>> {
        self.checkpoint.tensors().filter(|tensor| Action::of(tensor.spec) == Action::Quantize)
    }

    /// Bytes of the source matrices to quantize, each counted once per copy that is written: the total of the progress
    /// reports of [`Self::write`].
    pub fn source_bytes(&self) -> u64 {
        self.quantized().map(|tensor| tensor.data.len() as u64 * self.copies(&tensor)).sum()
    }

    /// Number of copies of a quantized matrix in the output.
    fn copies(&self, tensor: &TensorView<'_>) -> u64 {
        let options = &self.options;
        let tied = self.checkpoint.config().tie_word_embeddings;
        let is_embedding = tensor.role() == Role::Embedding;
        match options.layout {
            Layout::Multifunction | Layout::Split => {
                let packages = options.layout.packages().len() as u64;
                let on_host = is_embedding && options.embedding == Embedding::Host;
                let in_packages = if on_host && !tied { 0 } else { packages };
                in_packages + u64::from(on_host)
            }
            Layout::SpeechSwift => 1 + u64::from(is_embedding && tied),
        }
    }

    /// Settings for the manifest.
    pub fn settings(&self) -> Map<String, Value> {
        let mut settings = self.options.settings();
        settings.insert("head_splits".to_owned(), self.options.splits(self.checkpoint.config()).into());
        settings
    }

    /// A record per tensor of the text model, for the manifest.
    pub fn tensor_records(&self) -> Vec<TensorRecord> {
        let float = self.options.compute.dtype().name();
        let record = |tensor: TensorView<'_>| {
            let action = Action::of(tensor.spec);
            let stored = if action == Action::Quantize { "int8" } else { float };
            let details = json!({
                "dtype": tensor.dtype.torch_name(), "shape": tensor.shape(), "stored": stored,
            });
            TensorRecord {
                name: tensor.source_name.to_owned(),
                decision: action.label().to_owned(),
                details: details.as_object().cloned().unwrap_or_default(),
            }
        };
        self.checkpoint.tensors().map(record).collect()
    }

    /// Counts and sizes.
    pub fn summary(&self) -> Summary {
        let weights = |tensor: &TensorView<'_>| tensor.shape().iter().map(|&dim| dim as u64).product::<u64>();
        Summary {
            packages: self.options.layout.packages().iter().map(|&name| name.to_owned()).collect(),
            parameters: self.checkpoint.tensors().map(|tensor| weights(&tensor)).sum(),
            quantized_weights: self.quantized().map(|tensor| weights(&tensor)).sum(),
            quantized_matrices: self.quantized().count(),
            head_splits: self.options.splits(self.checkpoint.config()),
            source_bytes: self.checkpoint.inventory().kept_bytes,
        }
    }
}

/// Counts and sizes of a conversion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Names of the packages.
    pub packages: Vec<String>,
    /// Number of weights of the text model.
    pub parameters: u64,
    /// Number of weights that are quantized to INT8.
    pub quantized_weights: u64,
    /// Number of matrices that are quantized to INT8.
    pub quantized_matrices: usize,
    /// Number of parts of the language-model head.
    pub head_splits: usize,
    /// Bytes of the source's text model.
    pub source_bytes: u64,
}
