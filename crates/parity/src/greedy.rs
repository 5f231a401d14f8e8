//! Greedy continuation, and whether another model would have said the same.

use q35_metrics::argmax;
use q35_model::{CancelToken, Model, Rows};

use crate::rows::{Catch, Running, Who};
use crate::{ParityError, Prompt};

/// The likeliest `count` tokens after the prompt, each given all before it.
pub(crate) fn continue_greedily(
    who: Who,
    model: &dyn Model,
    prompt: &Prompt,
    count: usize,
    cancel: &CancelToken,
) -> Result<Vec<u32>, ParityError> {
    let room = prompt.ids.len() + count;
    let mut running = Running::start(who, model, &prompt.name, room, Catch::new(cancel))?;
    running.feed(&prompt.ids, Rows::Last)?;
    let mut tokens = Vec::with_capacity(count);
    while tokens.len() < count {
        let Some(token) = argmax(&running.catch.rows) else { break };
        tokens.push(token as u32);
        if tokens.len() < count {
            running.feed(&[token as u32], Rows::Last)?;
        }
    }
    Ok(tokens)
}

/// How many of `tokens` from the first on the model would have chosen too, in one pass over all of them. An exact
/// tie counts as the same choice, and so does a token that the model finds at most `undecided` logits less likely.
pub(crate) fn same_choices(
    who: Who,
    model: &dyn Model,
    prompt: &Prompt,
    tokens: &[u32],
    undecided: f64,
    cancel: &CancelToken,
) -> Result<usize, ParityError> {
    let Some((last, before)) = prompt.ids.split_last() else { return Ok(0) };
    let room = prompt.ids.len() + tokens.len();
    let mut running = Running::start(who, model, &prompt.name, room, Catch::new(cancel))?;
    if !before.is_empty() {
        running.feed(before, Rows::None)?;
    }
    let vocab = model.config().vocab_size;
    let mut fed = *last;
    let mut index = 0;
    // Pieces of a few tokens: most of them agree, and rows of logits are large.
    while index < tokens.len() {
        let piece = &tokens[index..(index + 16).min(tokens.len())];
        let mut ids = vec![fed];
        ids.extend_from_slice(&piece[..piece.len() - 1]);
        running.feed(&ids, Rows::All)?;
        for (offset, (row, &token)) in running.catch.rows.chunks_exact(vocab).zip(piece).enumerate() {
            let Some(best) = argmax(row) else { return Ok(index + offset) };
            let chosen = row.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY);
            if f64::from(row[best]) - f64::from(chosen) > undecided {
                return Ok(index + offset);
            }
        }
        fed = piece[piece.len() - 1];
        index += piece.len();
    }
    Ok(tokens.len())
}
