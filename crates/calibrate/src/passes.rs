//! Runs through the model: forward over all windows layer by layer, and backward over a few.

use candle_core::{Result as CandleResult, Tensor, Var, backprop::GradStore};
use q35_reference::{Rotation, no_taps, ops::rms_norm};

use crate::CalibrateError;
use crate::tower::{Tower, embed};

/// Numbers of logits that are held at a time.
const LOGITS_AT_A_TIME: usize = 1 << 23;

/// Rows of logits per block.
pub(crate) fn logit_rows(vocab: usize) -> usize {
    (LOGITS_AT_A_TIME / vocab).max(1)
}

/// The states after the final norm of every batch of windows, [tokens, hidden] each: the layers are read once each.
pub(crate) fn final_states(
    tower: &Tower<'_>,
    batches: &[Vec<&[u32]>],
    done: &mut dyn FnMut(usize) -> Result<(), CalibrateError>,
) -> Result<Vec<Tensor>, CalibrateError> {
    let table = tower.tensor("embed_tokens.weight")?;
    let mut states =
        batches.iter().map(|windows| embed(&table, windows)).collect::<CandleResult<Vec<_>>>()?;
    drop(table);
    for index in 0..tower.config.num_hidden_layers {
        let layer = tower.layer(index)?;
        for x in &mut states {
            let rotation = Rotation::new(&tower.config, 0, x.dim(1)?, &tower.device)?;
            *x = layer.forward(x, &tower.config, &rotation, &mut no_taps)?;
        }
        done(index)?;
    }
    let factor = tower.norm_factor()?;
    let finish = |x: &Tensor| rms_norm(x, &factor, tower.config.rms_norm_eps)?.flatten_to(1);
    Ok(states.iter().map(finish).collect::<CandleResult<_>>()?)
}

/// Turns rows of logits into the loss's derivative by them, in place. Before them come the number of the first row in
/// the batch and the states [rows, hidden] after the final norm that they belong to.
pub(crate) type LogitGradient<'a> = dyn FnMut(usize, &Tensor, &mut [f32]) -> Result<(), CalibrateError> + 'a;

/// Receives a tensor's gradient by the tensor's name.
pub(crate) type GradientSink<'a> = dyn FnMut(&str, &Tensor) -> Result<(), CalibrateError> + 'a;

/// Receives the gradient by the residual stream [windows, length, hidden] after the layer of that index, or, without an
/// index, after the embedding.
pub(crate) type StreamSink<'a> = dyn FnMut(Option<usize>, &Tensor) -> Result<(), CalibrateError> + 'a;

/// By which tensors gradients are computed; those by the stream always are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// By none.
    Stream,
    /// By those of the layers and the final norm.
    Layers,
    /// By the embedding and the head as well, which takes as much memory as these tables themselves.
    All,
}

/// The gradients of a loss over `windows` by the tensors that are `wanted`, in the checkpoint's convention, and by the
/// residual stream, the last layer's first. Only one layer's variables exist at a time.
///
/// `table` is the tower's embedding, given so that several passes can share it.
pub(crate) fn gradients(
    tower: &Tower<'_>,
    table: &Tensor,
    windows: &[&[u32]],
    wanted: Wanted,
    logit_gradient: &mut LogitGradient<'_>,
    sink: &mut GradientSink<'_>,
    stream: &mut StreamSink<'_>,
) -> Result<(), CalibrateError> {
    let (by_layers, tables) = (wanted != Wanted::Stream, wanted == Wanted::All);
    let config = &tower.config;
    let (length, vocab) = (windows[0].len(), config.vocab_size);
    let tokens = windows.len() * length;
    let rotation = Rotation::new(config, 0, length, &tower.device)?;
    let mut inputs = Vec::with_capacity(config.num_hidden_layers);
    let mut x = embed(table, windows)?;
    for index in 0..config.num_hidden_layers {
        let after = tower.layer(index)?.forward(&x, config, &rotation, &mut no_taps)?;
        inputs.push(std::mem::replace(&mut x, after));
    }

    let head = if config.tie_word_embeddings { table.clone() } else { tower.tensor(tower.head_name())? };
    let x = Var::from_tensor(&x)?;
    let norm = Var::from_tensor(&tower.tensor("norm.weight")?)?;
    let normed = rms_norm(x.as_tensor(), &(norm.as_tensor() + 1.0)?, config.rms_norm_eps)?;
    let rows = normed.detach().flatten_to(1)?;
    let block = logit_rows(vocab);
    let (mut by_rows, mut by_head): (Vec<Tensor>, Option<Tensor>) = (Vec::new(), None);
    for start in (0..tokens).step_by(block) {
        let count = block.min(tokens - start);
        let rows = rows.narrow(0, start, count)?.contiguous()?;
        let mut logits = rows.matmul(&head.t()?)?.flatten_all()?.to_vec1::<f32>()?;
        logit_gradient(start, &rows, &mut logits)?;
        let by_logits = Tensor::from_vec(logits, (count, vocab), &tower.device)?;
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
    let gradient = pull_back(&normed, &by_rows)?;
    if by_layers {
        sink("norm.weight", of(&gradient, &norm)?)?;
    }
    let mut upstream = of(&gradient, &x)?.clone();

    for index in (0..config.num_hidden_layers).rev() {
        stream(Some(index), &upstream)?;
        let (layer, variables) =
            if by_layers { tower.variable_layer(index)? } else { (tower.layer(index)?, Vec::new()) };
        let x = Var::from_tensor(&inputs.pop().expect("one input per layer"))?;
        let output = layer.forward(x.as_tensor(), config, &rotation, &mut no_taps)?;
        let gradient = pull_back(&output, &upstream)?;
        for (name, variable) in &variables {
            sink(name, of(&gradient, variable)?)?;
        }
        upstream = of(&gradient, &x)?.clone();
    }

    stream(None, &upstream)?;
    let Some(by_head) = by_head else { return Ok(()) };
    let ids = Tensor::from_vec(windows.concat(), tokens, &tower.device)?;
    if !config.tie_word_embeddings {
        sink(tower.head_name(), &by_head)?;
    }
    let start = if config.tie_word_embeddings { by_head } else { by_head.zeros_like()? };
    sink("embed_tokens.weight", &start.index_add(&ids, &upstream.flatten_to(1)?.contiguous()?, 0)?)
}

/// The gradients of `<output, upstream>`.
fn pull_back(output: &Tensor, upstream: &Tensor) -> CandleResult<GradStore> {
    (output * upstream)?.sum_all()?.backward()
}

fn of<'a>(gradient: &'a GradStore, variable: &Var) -> Result<&'a Tensor, CalibrateError> {
    gradient.get(variable.as_tensor()).ok_or(CalibrateError::NoGradient)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tower::Replacement;
    use candle_core::Device;
    use q35_testkit::{Random, TinyCheckpoint, tiny_more_value_heads};

    /// A loss that is linear in the logits: its gradient by them is known, and its value a sum.
    fn loss(tower: &Tower<'_>, windows: &[&[u32]], by_logits: &[f32]) -> f64 {
        let states = final_states(tower, &[windows.to_vec()], &mut |_| Ok(())).unwrap();
        let head = tower.tensor(tower.head_name()).unwrap();
        let logits = states[0].matmul(&head.t().unwrap()).unwrap().flatten_all().unwrap();
        let logits = logits.to_vec1::<f32>().unwrap();
        logits.iter().zip(by_logits).map(|(l, d)| f64::from(*l) * f64::from(*d)).sum()
    }

    #[test]
    fn gradients_are_the_slopes_of_the_loss() {
        let weights = TinyCheckpoint::new().with_config(tiny_more_value_heads()).weights();
        let mut tower = Tower::new(&weights, q35_quant::FloatType::Bf16, Device::Cpu);
        let vocab = tower.config.vocab_size;
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
        let table = tower.tensor("embed_tokens.weight").unwrap();
        gradients(&tower, &table, &windows, Wanted::All, &mut fill, &mut keep, &mut |_, _| Ok(())).unwrap();
        assert_eq!(found.len(), tower.table.len());
        for (name, gradient) in found {
            // Along a random direction, by central differences.
            let values = tower.values(&name).unwrap();
            let direction: Vec<f32> = values.iter().map(|_| random.normal()).collect();
            let slope: f64 = gradient.iter().zip(&direction).map(|(g, d)| f64::from(g * d)).sum();
            let length = 1e-3 / (values.len() as f32).sqrt();
            let mut at = |sign: f32| {
                let moved = values.iter().zip(&direction).map(|(v, d)| v + sign * length * d).collect();
                tower.replaced.insert(name.clone(), Replacement::Float(moved));
                loss(&tower, &windows, &by_logits)
            };
            let measured = (at(1.0) - at(-1.0)) / (2.0 * f64::from(length));
            tower.replaced.remove(&name);
            let size = gradient.iter().map(|g| f64::from(g * g)).sum::<f64>().sqrt();
            assert!(
                (measured - slope).abs() < 0.05 * size,
                "{name}: slope {slope}, measured {measured}, {size}"
            );
        }
    }
}
