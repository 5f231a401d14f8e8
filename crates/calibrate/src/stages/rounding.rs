//! Rounding of all matrices: the tables first, then layer after layer on inputs that carry the earlier layers' errors.

use std::collections::BTreeMap;

use candle_core::Tensor;
use q35_architecture::Role;
use q35_quant::affine::AffineSpec;
use q35_reference::{Layer, RotaryEmbedding, Tap, no_taps};

use super::{Run, parallel_batches};
use crate::gptq::{Feedback, round_with_feedback};
use crate::parallel::in_order;
use crate::partially_quantized_model::{PartiallyQuantizedModel, Replacement, embed};
use crate::progress::Stage;
use crate::second_moments::SecondMoments;
use crate::sensitivity::ErrorWeights;
use crate::{BitAllocation, CalibrateError, QuantizedMatrix};

/// Replaces every matrix of `model` by a quantized one.
pub(crate) fn round_all(
    run: &mut Run<'_, '_>,
    model: &mut PartiallyQuantizedModel<'_>,
    batches: &[Vec<&[u32]>],
    error_weights: &ErrorWeights,
    allocations: &BTreeMap<String, BitAllocation>,
) -> Result<(), CalibrateError> {
    let layers = model.config.num_hidden_layers;
    let parallel = parallel_batches(model);
    round_tables(run, model, error_weights, allocations)?;
    run.report(Stage::Rounding, 1, layers + 1, None)?;
    let table = model.tensor("embed_tokens.weight")?;
    let mut states = batches.iter().map(|windows| embed(&table, windows)).collect::<Result<Vec<_>, _>>()?;
    drop(table);
    for index in 0..layers {
        let rotation = RotaryEmbedding::new(&model.config, 0, run.settings.window, &model.device)?;
        let token_weights = run.settings.weighted_tokens.then(|| error_weights.tokens[index].as_slice());
        let float_layer = model.layer(index)?;
        let mut inputs =
            LayerInputs { layer: &float_layer, rotation: &rotation, states: &states, token_weights };
        round_layer(run, model, index, &mut inputs, parallel, allocations)?;
        drop(float_layer);
        states = advance(model, &model.layer(index)?, &rotation, &states, parallel)?;
        run.report(Stage::Rounding, index + 2, layers + 1, None)?;
    }
    Ok(())
}

/// Rounds embedding and head.
fn round_tables(
    run: &Run<'_, '_>,
    model: &mut PartiallyQuantizedModel<'_>,
    error_weights: &ErrorWeights,
    allocations: &BTreeMap<String, BitAllocation>,
) -> Result<(), CalibrateError> {
    let tables = model.table.values().filter(|spec| matches!(spec.role, Role::Embedding | Role::Head));
    let tables: Vec<String> = tables.map(|spec| spec.name.clone()).collect();
    let (tied, head_name) = (model.config.tie_word_embeddings, model.head_name());
    round_part(run, model, "tables", tables, allocations, &mut |_, name| {
        let ErrorWeights { lookup, head, .. } = error_weights;
        Ok(match (name == head_name, tied) {
            // A tied table has two uses, whose errors add up.
            (true, true) => head.iter().zip(lookup).map(|(head, lookup)| head + lookup).collect(),
            (true, false) => head.clone(),
            (false, _) => lookup.clone(),
        })
    })
}

/// Rounds the linear projections of one layer. The second moments of their inputs are measured once, before the first
/// of them, and only if the layer is not read from the resume directory.
fn round_layer(
    run: &Run<'_, '_>,
    model: &mut PartiallyQuantizedModel<'_>,
    index: usize,
    inputs: &mut LayerInputs<'_>,
    parallel: usize,
    allocations: &BTreeMap<String, BitAllocation>,
) -> Result<(), CalibrateError> {
    let linear = model.table.values().filter(|spec| spec.layer == Some(index) && spec.role == Role::Linear);
    let names: Vec<String> = linear.map(|spec| spec.name.clone()).collect();
    let mut by_tap: Option<BTreeMap<Tap, SecondMoments>> = None;
    round_part(run, model, &format!("layer-{index}"), names, allocations, &mut |model, name| {
        let by_tap = match &mut by_tap {
            Some(by_tap) => by_tap,
            None => by_tap.insert(inputs.second_moments(model, parallel)?),
        };
        by_tap[&tap_of(name)].mean()
    })
}

/// The inputs of a layer and how to weight them.
struct LayerInputs<'a> {
    layer: &'a Layer,
    rotation: &'a RotaryEmbedding,
    /// Residual stream before the layer, [windows, length, hidden] per batch.
    states: &'a [Tensor],
    /// Weight of every token, over all batches.
    token_weights: Option<&'a [f32]>,
}

impl LayerInputs<'_> {
    /// Second moments of the inputs of the layer's projections.
    fn second_moments(
        &self,
        model: &PartiallyQuantizedModel<'_>,
        parallel: usize,
    ) -> Result<BTreeMap<Tap, SecondMoments>, CalibrateError> {
        let hidden = model.config.hidden_size;
        let first_tokens: Vec<usize> = self
            .states
            .iter()
            .scan(0, |next, x| {
                let first = *next;
                *next += x.elem_count() / hidden;
                Some(first)
            })
            .collect();
        let mut sums: BTreeMap<Tap, SecondMoments> = BTreeMap::new();
        in_order(
            self.states,
            parallel,
            |index, x| {
                let mut by_tap: BTreeMap<Tap, SecondMoments> = BTreeMap::new();
                self.layer.forward(x, &model.config, self.rotation, &mut |tap, x| {
                    let (moments, rows) = (by_tap.entry(tap).or_default(), x.flatten_to(1)?);
                    match self.token_weights {
                        Some(weights) => {
                            moments.add_weighted(&rows, &weights[first_tokens[index]..][..rows.dim(0)?])
                        }
                        None => moments.add(&rows),
                    }
                })?;
                Ok(by_tap)
            },
            |_, by_tap| {
                for (tap, moments) in by_tap {
                    sums.entry(tap).or_default().merge(moments)?;
                }
                Ok(())
            },
        )?;
        Ok(sums)
    }
}

/// Returns the states after `layer`.
fn advance(
    model: &PartiallyQuantizedModel<'_>,
    layer: &Layer,
    rotation: &RotaryEmbedding,
    states: &[Tensor],
    parallel: usize,
) -> Result<Vec<Tensor>, CalibrateError> {
    let mut after = Vec::with_capacity(states.len());
    in_order(
        states,
        parallel,
        |_, x| Ok(layer.forward(x, &model.config, rotation, &mut no_taps)?),
        |_, x| {
            after.push(x);
            Ok(())
        },
    )?;
    Ok(after)
}

/// Second moments [cols, cols] of the inputs of the matrix of that name.
type MomentsOf<'a> = dyn FnMut(&PartiallyQuantizedModel<'_>, &str) -> Result<Vec<f32>, CalibrateError> + 'a;

/// Rounds the matrices `names`, or reads them from the resume directory, where `part` is the file.
fn round_part(
    run: &Run<'_, '_>,
    model: &mut PartiallyQuantizedModel<'_>,
    part: &str,
    names: Vec<String>,
    allocations: &BTreeMap<String, BitAllocation>,
    moments_of: &mut MomentsOf<'_>,
) -> Result<(), CalibrateError> {
    let resumed = run.resume.and_then(|resume| resume.matrices(part));
    let matrices = match resumed {
        Some(matrices) => matrices,
        None => {
            let mut matrices = BTreeMap::new();
            for name in names {
                let moments = moments_of(model, &name)?;
                let matrix = round_matrix(run, model, &name, allocations[&name], &moments)?;
                matrices.insert(name, matrix);
            }
            if let Some(resume) = run.resume {
                resume.put_matrices(part, &matrices)?;
            }
            matrices
        }
    };
    model.replaced.extend(matrices.into_iter().map(|(name, matrix)| (name, Replacement::Quantized(matrix))));
    Ok(())
}

fn round_matrix(
    run: &Run<'_, '_>,
    model: &PartiallyQuantizedModel<'_>,
    name: &str,
    allocation: BitAllocation,
    moments: &[f32],
) -> Result<QuantizedMatrix, CalibrateError> {
    let cols = model.table[name].shape[1];
    let spec = AffineSpec::new(allocation.bits, allocation.group_size)
        .map_err(|_| CalibrateError::Shape { name: name.to_owned(), cols })?;
    let values = model.float_values(name)?;
    if run.settings.feedback {
        let feedback = Feedback::new(moments, cols, run.settings.damping)?;
        Ok(round_with_feedback(spec, model.float, &values, &feedback, run.settings.passes)?)
    } else {
        let importance: Vec<f32> = (0..cols).map(|k| moments[k * cols + k]).collect();
        Ok(QuantizedMatrix::round(spec, model.float, &values, &importance))
    }
}

/// Returns the tap that sees the input of a projection.
fn tap_of(name: &str) -> Tap {
    if name.ends_with("down_proj.weight") {
        Tap::MlpOutput
    } else if name.contains(".mlp.") {
        Tap::MlpInput
    } else if name.ends_with("out_proj.weight") || name.ends_with("o_proj.weight") {
        Tap::MixerOutput
    } else {
        Tap::MixerInput
    }
}
