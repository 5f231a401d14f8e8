//! Text that the float model itself goes on with.
//!
//! Given text is rarely what a model knows best; its own continuations are, and rounding that serves them serves the
//! model's predictions everywhere. Beginnings come from the given text, so that every kind of it has its share.

use candle_core::{D, Tensor};
use q35_reference::{LayerState, Rotation, ops::rms_norm};
use rayon::prelude::*;

use crate::CalibrateError;
use crate::passes::logit_rows;
use crate::random::Random;
use crate::softmax::softmax_in_place;
use crate::tower::{Tower, embed};

/// Tokens of the given text that a window begins with.
pub(crate) const BEGINNING: usize = 8;

/// Continues every beginning, all being of one length, to windows of `length` tokens, each drawn from the model's
/// distribution. All layers are held in memory. `done` hears of every token.
pub(crate) fn continue_text(
    tower: &Tower<'_>,
    beginnings: &[&[u32]],
    length: usize,
    seed: u64,
    done: &mut dyn FnMut(usize) -> Result<(), CalibrateError>,
) -> Result<Vec<Vec<u32>>, CalibrateError> {
    let config = &tower.config;
    let table = tower.tensor("embed_tokens.weight")?;
    let head = if config.tie_word_embeddings { table.clone() } else { tower.tensor(tower.head_name())? };
    let head = head.t()?;
    let factor = tower.norm_factor()?;
    let mut layers = Vec::with_capacity(config.num_hidden_layers);
    for index in 0..config.num_hidden_layers {
        let state = LayerState::for_batch(config, index, beginnings.len(), length, &tower.device)?;
        layers.push((tower.layer(index)?, state));
    }
    let mut random = Random::new(seed);
    let mut windows: Vec<Vec<u32>> = beginnings.iter().map(|b| b.to_vec()).collect();
    let mut seen = 0;
    loop {
        let fresh: Vec<&[u32]> = windows.iter().map(|window| &window[seen..]).collect();
        let rotation = Rotation::new(config, seen, fresh[0].len(), &tower.device)?;
        let mut x = embed(&table, &fresh)?;
        for (layer, state) in &mut layers {
            x = layer.advance(&x, config, &rotation, seen, state)?;
        }
        seen += fresh[0].len();
        let last = x.narrow(1, x.dim(1)? - 1, 1)?.squeeze(1)?.contiguous()?;
        let next = draw(&rms_norm(&last, &factor, config.rms_norm_eps)?, &head, &mut random)?;
        windows.iter_mut().zip(next).for_each(|(window, id)| window.push(id));
        done(seen)?;
        if windows[0].len() == length {
            return Ok(windows);
        }
    }
}

/// A token for every row of `states` [sequences, hidden], by `head` [hidden, vocab].
fn draw(states: &Tensor, head: &Tensor, random: &mut Random) -> Result<Vec<u32>, CalibrateError> {
    let vocab = head.dim(D::Minus1)?;
    let mut next = Vec::new();
    let count = states.dim(0)?;
    for start in (0..count).step_by(logit_rows(vocab)) {
        let states = states.narrow(0, start, logit_rows(vocab).min(count - start))?;
        let mut logits = states.matmul(head)?.flatten_all()?.to_vec1::<f32>()?;
        let draws: Vec<f32> = logits.chunks(vocab).map(|_| random.uniform()).collect();
        next.par_extend(logits.par_chunks_mut(vocab).zip(draws).map(|(row, draw)| {
            softmax_in_place(row);
            let mut left = draw;
            let at = row.iter().position(|p| {
                left -= p;
                left < 0.0
            });
            at.unwrap_or(vocab - 1) as u32
        }));
    }
    Ok(next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use q35_testkit::TinyCheckpoint;

    #[test]
    fn windows_begin_as_given_and_repeat_for_a_seed() {
        let weights = TinyCheckpoint::new().weights();
        let tower = Tower::new(&weights, q35_quant::FloatType::Bf16, Device::Cpu);
        let (a, b) = ([1u32, 2, 3], [4u32, 5, 6]);
        let at = |seed| continue_text(&tower, &[&a, &b], 20, seed, &mut |_| Ok(())).unwrap();
        let windows = at(1);
        assert!(windows.iter().all(|window| window.len() == 20));
        assert_eq!((&windows[0][..3], &windows[1][..3]), (&a[..], &b[..]));
        assert_eq!(windows, at(1));
        assert_ne!(windows, at(2));
    }

    #[test]
    fn the_state_is_carried_from_token_to_token() {
        let weights = TinyCheckpoint::new().weights();
        let tower = Tower::new(&weights, q35_quant::FloatType::Bf16, Device::Cpu);
        let config = &tower.config;
        let ids: Vec<u32> = (0..12).collect();
        let rotation = Rotation::new(config, 0, 12, &tower.device).unwrap();
        let table = tower.tensor("embed_tokens.weight").unwrap();
        let mut whole = embed(&table, &[&ids, &ids]).unwrap();
        let mut last = None;
        let mut states: Vec<LayerState> = (0..config.num_hidden_layers)
            .map(|index| LayerState::for_batch(config, index, 2, 12, &tower.device).unwrap())
            .collect();
        for (at, id) in ids.iter().enumerate() {
            let rotation = Rotation::new(config, at, 1, &tower.device).unwrap();
            let mut x = embed(&table, &[&[*id], &[*id]]).unwrap();
            for (index, state) in states.iter_mut().enumerate() {
                x = tower.layer(index).unwrap().advance(&x, config, &rotation, at, state).unwrap();
            }
            last = Some(x);
        }
        for index in 0..config.num_hidden_layers {
            let layer = tower.layer(index).unwrap();
            whole = layer.forward(&whole, config, &rotation, &mut q35_reference::no_taps).unwrap();
        }
        let difference = (whole.narrow(1, 11, 1).unwrap() - last.unwrap()).unwrap().abs().unwrap();
        let largest = difference.max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(largest < 1e-3, "{largest}");
    }
}
