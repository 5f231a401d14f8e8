//! Self-generated calibration data: continuations that the float model samples.
//!
//! A calibration text is rarely close to the distribution that the model was trained on; samples of the model itself
//! are. Prompts come from the calibration text, so that each kind of text in it is represented.

use candle_core::{D, Tensor};
use q35_reference::{LayerState, RotaryEmbedding, ops::rms_norm};
use rayon::prelude::*;

use crate::CalibrateError;
use crate::gradients::logit_rows;
use crate::partially_quantized_model::{PartiallyQuantizedModel, embed};
use q35_metrics::softmax_in_place;
use q35_random::SplitMix64;

/// Tokens of the calibration text that begin each window.
pub(crate) const PROMPT_TOKENS: usize = 8;

/// Continues prompts of equal length to windows of `length` tokens, sampled from the model's distribution. Holds all
/// layers in memory. Calls `done` after every decoded position.
pub(crate) fn continue_prompts(
    model: &PartiallyQuantizedModel<'_>,
    prompts: &[&[u32]],
    length: usize,
    seed: u64,
    done: &mut dyn FnMut(usize) -> Result<(), CalibrateError>,
) -> Result<Vec<Vec<u32>>, CalibrateError> {
    let config = &model.config;
    let table = model.tensor("embed_tokens.weight")?;
    let head = if config.tie_word_embeddings { table.clone() } else { model.tensor(model.head_name())? };
    let head = head.t()?;
    let factor = model.norm_factor()?;
    let mut layers = Vec::with_capacity(config.num_hidden_layers);
    for index in 0..config.num_hidden_layers {
        let state = LayerState::for_batch(config, index, prompts.len(), length, &model.device)?;
        layers.push((model.layer(index)?, state));
    }
    let mut random = SplitMix64::new(seed);
    let mut windows: Vec<Vec<u32>> = prompts.iter().map(|b| b.to_vec()).collect();
    let mut position = 0;
    loop {
        let fresh: Vec<&[u32]> = windows.iter().map(|window| &window[position..]).collect();
        let rotation = RotaryEmbedding::new(config, position, fresh[0].len(), &model.device)?;
        let mut x = embed(&table, &fresh)?;
        for (layer, state) in &mut layers {
            x = layer.advance(&x, config, &rotation, position, state)?;
        }
        position += fresh[0].len();
        let last = x.narrow(1, x.dim(1)? - 1, 1)?.squeeze(1)?.contiguous()?;
        let next = sample_tokens(&rms_norm(&last, &factor, config.rms_norm_eps)?, &head, &mut random)?;
        windows.iter_mut().zip(next).for_each(|(window, id)| window.push(id));
        done(position)?;
        if windows[0].len() == length {
            return Ok(windows);
        }
    }
}

/// Samples a token for every row of `states` [sequences, hidden]; `head` is [hidden, vocab].
fn sample_tokens(
    states: &Tensor,
    head: &Tensor,
    random: &mut SplitMix64,
) -> Result<Vec<u32>, CalibrateError> {
    let vocab = head.dim(D::Minus1)?;
    let mut next = Vec::new();
    let count = states.dim(0)?;
    for start in (0..count).step_by(logit_rows(vocab)) {
        let states = states.narrow(0, start, logit_rows(vocab).min(count - start))?;
        let mut logits = states.matmul(head)?.flatten_all()?.to_vec1::<f32>()?;
        let draws: Vec<f32> = logits.chunks(vocab).map(|_| random.uniform_f32()).collect();
        next.par_extend(logits.par_chunks_mut(vocab).zip(draws).map(|(row, draw)| {
            softmax_in_place(row);
            sample(row, draw) as u32
        }));
    }
    Ok(next)
}

/// Returns the index at which the cumulative distribution of `probabilities` exceeds `draw`, a uniform number in
/// [0, 1); the last index if rounding leaves the sum below it.
pub(crate) fn sample(probabilities: &[f32], draw: f32) -> usize {
    let mut rest = draw;
    let index = probabilities.iter().position(|p| {
        rest -= p;
        rest < 0.0
    });
    index.unwrap_or(probabilities.len() - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use q35_testkit::TinyCheckpoint;

    #[test]
    fn windows_begin_as_given_and_repeat_for_a_seed() {
        let weights = TinyCheckpoint::new().weights();
        let model = PartiallyQuantizedModel::new(&weights, q35_quant::FloatType::Bf16, Device::Cpu);
        let (a, b) = ([1u32, 2, 3], [4u32, 5, 6]);
        let at = |seed| continue_prompts(&model, &[&a, &b], 20, seed, &mut |_| Ok(())).unwrap();
        let windows = at(1);
        assert!(windows.iter().all(|window| window.len() == 20));
        assert_eq!((&windows[0][..3], &windows[1][..3]), (&a[..], &b[..]));
        assert_eq!(windows, at(1));
        assert_ne!(windows, at(2));
    }

    #[test]
    fn the_state_is_carried_from_token_to_token() {
        let weights = TinyCheckpoint::new().weights();
        let model = PartiallyQuantizedModel::new(&weights, q35_quant::FloatType::Bf16, Device::Cpu);
        let config = &model.config;
        let ids: Vec<u32> = (0..12).collect();
        let rotation = RotaryEmbedding::new(config, 0, 12, &model.device).unwrap();
        let table = model.tensor("embed_tokens.weight").unwrap();
        let mut whole = embed(&table, &[&ids, &ids]).unwrap();
        let mut last = None;
        let mut states: Vec<LayerState> = (0..config.num_hidden_layers)
            .map(|index| LayerState::for_batch(config, index, 2, 12, &model.device).unwrap())
            .collect();
        for (at, id) in ids.iter().enumerate() {
            let rotation = RotaryEmbedding::new(config, at, 1, &model.device).unwrap();
            let mut x = embed(&table, &[&[*id], &[*id]]).unwrap();
            for (index, state) in states.iter_mut().enumerate() {
                x = model.layer(index).unwrap().advance(&x, config, &rotation, at, state).unwrap();
            }
            last = Some(x);
        }
        for index in 0..config.num_hidden_layers {
            let layer = model.layer(index).unwrap();
            whole = layer.forward(&whole, config, &rotation, &mut q35_reference::no_taps).unwrap();
        }
        let difference = (whole.narrow(1, 11, 1).unwrap() - last.unwrap()).unwrap().abs().unwrap();
        let largest = difference.max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(largest < 1e-3, "{largest}");
    }
}
