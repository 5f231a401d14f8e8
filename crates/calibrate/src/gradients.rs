//! Forward and backward passes through a model, with one layer in memory at a time.

use candle_core::{Result as CandleResult, Tensor, Var, backprop::GradStore};
use q35_reference::{RotaryEmbedding, no_taps, ops::rms_norm};

use crate::CalibrateError;
use crate::partially_quantized_model::{PartiallyQuantizedModel, embed};

/// Limit of logits in memory.
const MAX_LOGITS: usize = 1 << 23;

/// Rows of logits per chunk.
pub(crate) fn logit_rows(vocab: usize) -> usize {
    (MAX_LOGITS / vocab).max(1)
}

/// Returns the states after the final norm of every batch of windows, [tokens, hidden] each. Every layer is read once.
pub(crate) fn final_states(
    model: &PartiallyQuantizedModel<'_>,
    batches: &[Vec<&[u32]>],
    done: &mut dyn FnMut(usize) -> Result<(), CalibrateError>,
) -> Result<Vec<Tensor>, CalibrateError> {
    let table = model.tensor("embed_tokens.weight")?;
    let mut states =
        batches.iter().map(|windows| embed(&table, windows)).collect::<CandleResult<Vec<_>>>()?;
    drop(table);
    for index in 0..model.config.num_hidden_layers {
        let layer = model.layer(index)?;
        for x in &mut states {
            let rotation = RotaryEmbedding::new(&model.config, 0, x.dim(1)?, &model.device)?;
            *x = layer.forward(x, &model.config, &rotation, &mut no_taps)?;
        }
        done(index)?;
    }
    let factor = model.norm_factor()?;
    let finish = |x: &Tensor| rms_norm(x, &factor, model.config.rms_norm_eps)?.flatten_to(1);
    Ok(states.iter().map(finish).collect::<CandleResult<_>>()?)
}

/// Replaces rows of logits by the gradient of the loss with respect to them. The arguments are the index of the first
/// row in the batch, the states [rows, hidden] after the final norm, and the logits [rows, vocab].
pub(crate) type LogitGradient<'a> = dyn FnMut(usize, &Tensor, &mut [f32]) -> Result<(), CalibrateError> + 'a;

/// Receives the gradient of the tensor of that name.
pub(crate) type GradientSink<'a> = dyn FnMut(&str, &Tensor) -> Result<(), CalibrateError> + 'a;

/// Receives the gradient with respect to the residual stream [windows, length, hidden] after the layer of that index, or
/// after the embedding for `None`.
pub(crate) type StreamSink<'a> = dyn FnMut(Option<usize>, &Tensor) -> Result<(), CalibrateError> + 'a;

/// The tensors whose gradients are computed, besides the residual stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GradientsFor {
    /// None.
    ResidualStream,
    /// Tensors of the layers and the final norm.
    Layers,
    /// Embedding and head as well; their gradients are as large as the tables.
    All,
}

/// Computes the gradients of a loss over `windows` with respect to the `wanted` tensors, in the checkpoint's convention,
/// and to the residual stream, from the last layer to the first. Activations are recomputed, so that the variables of only
/// one layer exist at a time.
///
/// `table` is the model's embedding; passing it lets several calls share one copy.
pub(crate) fn gradients(
    model: &PartiallyQuantizedModel<'_>,
    table: &Tensor,
    windows: &[&[u32]],
    wanted: GradientsFor,
    logit_gradient: &mut LogitGradient<'_>,
    sink: &mut GradientSink<'_>,
    stream: &mut StreamSink<'_>,
) -> Result<(), CalibrateError> {
    let (by_layers, tables) = (wanted != GradientsFor::ResidualStream, wanted == GradientsFor::All);
    let config = &model.config;
    let (length, vocab) = (windows[0].len(), config.vocab_size);
    let tokens = windows.len() * length;
    let rotation = RotaryEmbedding::new(config, 0, length, &model.device)?;
    let mut inputs = Vec::with_capacity(config.num_hidden_layers);
    let mut x = embed(table, windows)?;
    for index in 0..config.num_hidden_layers {
        let after = model.layer(index)?.forward(&x, config, &rotation, &mut no_taps)?;
        inputs.push(std::mem::replace(&mut x, after));
    }

    let head = if config.tie_word_embeddings { table.clone() } else { model.tensor(model.head_name())? };
    let x = Var::from_tensor(&x)?;
    let norm = Var::from_tensor(&model.tensor("norm.weight")?)?;
    let normed = rms_norm(x.as_tensor(), &(norm.as_tensor() + 1.0)?, config.rms_norm_eps)?;
    let rows = normed.detach().flatten_to(1)?;
    let chunk = logit_rows(vocab);
    let (mut by_rows, mut by_head): (Vec<Tensor>, Option<Tensor>) = (Vec::new(), None);
    for start in (0..tokens).step_by(chunk) {
        let count = chunk.min(tokens - start);
        let rows = rows.narrow(0, start, count)?.contiguous()?;
        let mut logits = rows.matmul(&head.t()?)?.flatten_all()?.to_vec1::<f32>()?;
        logit_gradient(start, &rows, &mut logits)?;
        let by_logits = Tensor::from_vec(logits, (count, vocab), &model.device)?;
        by_rows.push(by_logits.matmul(&head)?);
        if tables {
            let part = by_logits.t()?.matmul(&rows)?;
            by_head = Some(match by_head {
                Some(sum) => (sum + part)?,
                None => part,
            });
        }
    }
    drop(head);
    let by_rows = Tensor::cat(&by_rows, 0)?.reshape(normed.shape())?;
    let gradient = vector_jacobian_product(&normed, &by_rows)?;
    if by_layers {
        sink("norm.weight", gradient_of(&gradient, &norm)?)?;
    }
    let mut upstream = gradient_of(&gradient, &x)?.clone();

    for index in (0..config.num_hidden_layers).rev() {
        stream(Some(index), &upstream)?;
        let (layer, variables) =
            if by_layers { model.variable_layer(index)? } else { (model.layer(index)?, Vec::new()) };
        let x = Var::from_tensor(&inputs.pop().expect("one input per layer"))?;
        let output = layer.forward(x.as_tensor(), config, &rotation, &mut no_taps)?;
        let gradient = vector_jacobian_product(&output, &upstream)?;
        for (name, variable) in &variables {
            sink(name, gradient_of(&gradient, variable)?)?;
        }
        upstream = gradient_of(&gradient, &x)?.clone();
    }

    stream(None, &upstream)?;
    let Some(by_head) = by_head else { return Ok(()) };
    let ids = Tensor::from_vec(windows.concat(), tokens, &model.device)?;
    if !config.tie_word_embeddings {
        sink(model.head_name(), &by_head)?;
    }
    let start = if config.tie_word_embeddings { by_head } else { by_head.zeros_like()? };
    sink("embed_tokens.weight", &start.index_add(&ids, &upstream.flatten_to(1)?.contiguous()?, 0)?)
}

/// The gradients of the inner product of `output` and `upstream`: the vector-Jacobian product.
fn vector_jacobian_product(output: &Tensor, upstream: &Tensor) -> CandleResult<GradStore> {
    (output * upstream)?.sum_all()?.backward()
}

fn gradient_of<'a>(gradient: &'a GradStore, variable: &Var) -> Result<&'a Tensor, CalibrateError> {
    gradient.get(variable.as_tensor()).ok_or(CalibrateError::NoGradient)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::partially_quantized_model::Replacement;
    use candle_core::Device;
    use q35_testkit::{Random, TinyCheckpoint, tiny_more_value_heads};

    /// A loss that is linear in the logits with the coefficients `by_logits`.
    fn loss(model: &PartiallyQuantizedModel<'_>, windows: &[&[u32]], by_logits: &[f32]) -> f64 {
        let states = final_states(model, &[windows.to_vec()], &mut |_| Ok(())).unwrap();
        let head = model.tensor(model.head_name()).unwrap();
        let logits = states[0].matmul(&head.t().unwrap()).unwrap().flatten_all().unwrap();
        let logits = logits.to_vec1::<f32>().unwrap();
        logits.iter().zip(by_logits).map(|(l, d)| f64::from(*l) * f64::from(*d)).sum()
    }

    #[test]
    fn gradients_are_the_slopes_of_the_loss() {
        let weights = TinyCheckpoint::new().with_config(tiny_more_value_heads()).weights();
        let mut model = PartiallyQuantizedModel::new(&weights, q35_quant::FloatType::Bf16, Device::Cpu);
        let vocab = model.config.vocab_size;
        let mut random = Random::new(3);
        let ids = random.tokens(2 * 70, vocab);
        let windows: Vec<&[u32]> = ids.chunks(70).collect();
        let by_logits: Vec<f32> = (0..140 * vocab).map(|_| 0.01 * random.normal()).collect();
        let mut found = Vec::new();
        let mut fill = |start: usize, _: &Tensor, logits: &mut [f32]| {
            let from = start * vocab;
            logits.copy_from_slice(&by_logits[from..from + logits.len()]);
            Ok(())
        };
        let mut keep = |name: &str, gradient: &Tensor| {
            found.push((name.to_owned(), gradient.flatten_all()?.to_vec1::<f32>()?));
            Ok(())
        };
        let table = model.tensor("embed_tokens.weight").unwrap();
        gradients(&model, &table, &windows, GradientsFor::All, &mut fill, &mut keep, &mut |_, _| Ok(()))
            .unwrap();
        assert_eq!(found.len(), model.table.len());
        for (name, gradient) in found {
            // Along a random direction, by central differences.
            let values = model.values(&name).unwrap();
            let direction: Vec<f32> = values.iter().map(|_| random.normal()).collect();
            let slope: f64 = gradient.iter().zip(&direction).map(|(g, d)| f64::from(g * d)).sum();
            let length = 1e-3 / (values.len() as f32).sqrt();
            let mut at = |sign: f32| {
                let moved = values.iter().zip(&direction).map(|(v, d)| v + sign * length * d).collect();
                model.replaced.insert(name.clone(), Replacement::Float(moved));
                loss(&model, &windows, &by_logits)
            };
            let measured = (at(1.0) - at(-1.0)) / (2.0 * f64::from(length));
            model.replaced.remove(&name);
            let size = gradient.iter().map(|g| f64::from(g * g)).sum::<f64>().sqrt();
            assert!(
                (measured - slope).abs() < 0.05 * size,
                "{name}: slope {slope}, measured {measured}, {size}"
            );
        }
    }
}
