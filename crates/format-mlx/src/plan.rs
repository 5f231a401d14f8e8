//! What becomes of every tensor, decided before the first byte is written.

use q35_architecture::{Role, mlx_lm_name};
use q35_checkpoint::{Checkpoint, TensorView};
use q35_quant::FloatType;
use q35_quant::affine::AffineSpec;

use crate::layout::Part;
use crate::{Form, Recipe, Treatment, WriteError};

/// What is done with a tensor on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Rows are packed; weight, scales and biases come out.
    Quantize(AffineSpec),
    /// One is added: from `w` to the `1 + w` that MLX multiplies with.
    Shift,
    /// [channels, 1, taps] becomes [channels, taps, 1]: the same numbers in the same order.
    Transpose,
    /// Copied.
    Keep,
}

impl Action {
    /// As the manifest calls it.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Quantize(_) => "quantized",
            Self::Shift => "shifted",
            Self::Transpose => "transposed",
            Self::Keep => "kept",
        }
    }
}

/// One tensor's way into the output.
#[derive(Clone, Debug)]
pub(crate) struct Step<'a> {
    pub(crate) tensor: TensorView<'a>,
    pub(crate) action: Action,
    /// The module's name in the output, for quantized matrices; else the tensor's.
    pub(crate) output: String,
}

impl Step<'_> {
    /// The tensors that come out, in the order in which they are produced.
    pub(crate) fn parts(&self) -> Vec<Part> {
        let shape = self.tensor.shape();
        let float = self.tensor.dtype;
        let part = |name: String, dtype: &'static str, size: usize, shape: Vec<usize>| {
            Part::new(name, dtype, size, shape)
        };
        let in_float = |shape: Vec<usize>| {
            vec![part(self.output.clone(), float.safetensors_name(), float.size(), shape)]
        };
        match self.action {
            Action::Quantize(spec) => {
                let groups = vec![shape[0], spec.groups_per_row(shape[1])];
                let name = |ending: &str| format!("{}.{ending}", self.output);
                vec![
                    part(name("weight"), "U32", 4, vec![shape[0], spec.words_per_row(shape[1])]),
                    part(name("scales"), float.safetensors_name(), float.size(), groups.clone()),
                    part(name("biases"), float.safetensors_name(), float.size(), groups),
                ]
            }
            Action::Transpose => in_float(vec![shape[0], shape[2], shape[1]]),
            Action::Shift | Action::Keep => in_float(shape.to_vec()),
        }
    }

    /// Bytes of the source.
    pub(crate) fn source_bytes(&self) -> u64 {
        self.tensor.data.len() as u64
    }

    /// The source's rows of one piece: some 4 MiB, so that pieces in flight stay small beside the model and still
    /// feed every thread.
    pub(crate) fn rows_per_piece(&self) -> usize {
        const PIECE_BYTES: usize = 4 << 20;
        (PIECE_BYTES / (self.tensor.row_len() * self.tensor.dtype.size()).max(1)).max(1)
    }
}

pub(crate) fn plan<'a>(
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
                "it takes one number of bits for all matrices, and `{}` differs",
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

/// `w + 1` for every element, in the arithmetic of the type: computed in f32 and rounded once.
pub(crate) fn shifted(float: FloatType, bytes: &[u8]) -> Vec<u8> {
    let mut values = vec![0.0; bytes.len() / float.size()];
    float.widen(bytes, &mut values);
    values.iter_mut().for_each(|value| *value += 1.0);
    let mut out = Vec::with_capacity(bytes.len());
    float.narrow(&values, &mut out);
    out
}
