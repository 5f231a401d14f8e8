//! The plan of a conversion: the treatment of every tensor and the layout of every file, decided before the first byte
//! is written.

use q35_architecture::{Role, mlx_lm_name};
use q35_checkpoint::{Checkpoint, TensorView};
use q35_output_dir::TensorRecord;
use q35_quant::FloatType;
use serde_json::{Map, Value};

use crate::layout::{Shard, split_into_shards};
use crate::step::{Action, Step};
use crate::{Form, Recipe, Treatment, WriteError, WriteOptions, config_json, manifest};

/// The plan of one conversion.
pub struct Plan<'a> {
    pub(crate) recipe: &'a dyn Recipe,
    pub(crate) form: Form,
    pub(crate) config: Map<String, Value>,
    pub(crate) steps: Vec<Step<'a>>,
    pub(crate) shards: Vec<Shard>,
}

impl<'a> Plan<'a> {
    /// Plans the conversion of `checkpoint`. Reads no weights.
    ///
    /// # Errors
    /// The recipe quantizes no matrix, or the directory form cannot express the model.
    pub fn new(
        checkpoint: &'a Checkpoint,
        recipe: &'a dyn Recipe,
        options: &WriteOptions,
    ) -> Result<Self, WriteError> {
        let form = options.form;
        let steps = steps(checkpoint, recipe, form)?;
        let config = match form {
            Form::MlxLm => config_json::mlx_lm(checkpoint, recipe.default_spec(), &steps)?,
            Form::SpeechSwift => config_json::speech_swift(checkpoint, recipe.default_spec())?,
        };
        let tensors = steps.iter().flat_map(Step::output_tensors).collect();
        let shards = split_into_shards(tensors, options.shard_bytes);
        Ok(Self { recipe, form, config, steps, shards })
    }

    /// Bytes of the source tensors to convert, the total of the progress reports of [`Self::write`].
    pub fn source_bytes(&self) -> u64 {
        self.steps.iter().map(Step::source_bytes).sum()
    }

    /// Settings for the manifest.
    pub fn settings(&self) -> Map<String, Value> {
        manifest::settings(self.recipe, self.form)
    }

    /// A record per tensor of the text model, for the manifest.
    pub fn tensor_records(&self) -> Vec<TensorRecord> {
        self.steps.iter().map(|step| manifest::record(step, self.recipe)).collect()
    }

    /// Counts and sizes.
    pub fn summary(&self) -> Summary {
        let weights = |step: &Step<'_>| step.tensor.shape().iter().map(|&dim| dim as u64).product::<u64>();
        let bytes = |step: &Step<'_>| step.output_tensors().iter().map(|tensor| tensor.bytes).sum::<u64>();
        let matrices: Vec<&Step<'_>> =
            self.steps.iter().filter(|step| step.tensor.role().is_quantized()).collect();
        let matrix_weights: u64 = matrices.iter().map(|step| weights(step)).sum();
        let matrix_bytes: u64 = matrices.iter().map(|step| bytes(step)).sum();
        let kept = matrices.iter().filter(|step| step.action == Action::Keep);
        let kept_matrices: Vec<String> = kept.map(|step| step.tensor.name().to_owned()).collect();
        Summary {
            quantized: matrices.len() - kept_matrices.len(),
            kept_matrices,
            parameters: self.steps.iter().map(weights).sum(),
            source_bytes: self.source_bytes(),
            tensor_bytes: self.steps.iter().map(bytes).sum(),
            bits_per_weight: 8.0 * matrix_bytes as f64 / matrix_weights as f64,
        }
    }
}

/// Counts and sizes of a conversion.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Number of matrices that are quantized.
    pub quantized: usize,
    /// Names of the matrices that stay in float.
    pub kept_matrices: Vec<String>,
    /// Number of weights of the text model.
    pub parameters: u64,
    /// Bytes of the source's text model.
    pub source_bytes: u64,
    /// Bytes of all output tensors.
    pub tensor_bytes: u64,
    /// Average bits of a matrix weight, scales and biases included.
    pub bits_per_weight: f64,
}

fn steps<'a>(
    checkpoint: &'a Checkpoint,
    recipe: &dyn Recipe,
    form: Form,
) -> Result<Vec<Step<'a>>, WriteError> {
    let steps: Vec<Step<'a>> = checkpoint.tensors().map(|tensor| step(tensor, recipe, form)).collect();
    let matrices = || steps.iter().filter(|step| step.tensor.role().is_quantized());
    if !matrices().any(|step| matches!(step.action, Action::Quantize(_))) {
        let mut widths: Vec<usize> = matrices().map(|step| step.tensor.shape()[1]).collect();
        widths.sort_unstable();
        widths.dedup();
        return Err(WriteError::NothingFits { group_size: recipe.default_spec().group_size(), widths });
    }
    if form == Form::SpeechSwift
        && let Some(odd) = matrices().find(|step| step.action != Action::Quantize(recipe.default_spec()))
    {
        return Err(WriteError::Inexpressible {
            form: "speech-swift",
            reason: format!(
                "it reads one number of bits for all matrices, and `{}` differs",
                odd.tensor.name()
            ),
            hint: "hint: use a group size that divides the rows of every matrix, and the recipe `rtn`",
        });
    }
    Ok(steps)
}

fn step<'a>(tensor: TensorView<'a>, recipe: &dyn Recipe, form: Form) -> Step<'a> {
    let action = match tensor.role() {
        role if role.is_quantized() => match recipe.treatment(tensor.spec) {
            Treatment::Quantize(spec) => Action::Quantize(spec),
            Treatment::Keep => Action::Keep,
        },
        Role::CenteredNorm => Action::Shift,
        Role::Convolution => Action::Transpose,
        _ => Action::Keep,
    };
    let name = match action {
        Action::Quantize(_) => tensor.name().strip_suffix(".weight").unwrap_or(tensor.name()),
        _ => tensor.name(),
    };
    let output = match form {
        Form::MlxLm => mlx_lm_name(name),
        Form::SpeechSwift => name.to_owned(),
    };
    Step { tensor, action, output }
}

/// `w + 1` for every element, computed in f32 and rounded once to the type.
pub(crate) fn add_one(float: FloatType, bytes: &[u8]) -> Vec<u8> {
    let mut values = vec![0.0; bytes.len() / float.size()];
    float.widen(bytes, &mut values);
    values.iter_mut().for_each(|value| *value += 1.0);
    let mut out = Vec::with_capacity(bytes.len());
    float.narrow(&values, &mut out);
    out
}
