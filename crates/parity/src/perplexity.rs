//! Perplexity of a text, several models side by side.
//!
//! The text is cut into windows of `window` tokens that begin every `stride` tokens; a window begins with an empty
//! context. Every token is predicted once: in a window, those that no earlier window has predicted, the very first
//! token of the text and, without overlap, the first of each window excepted, since nothing precedes them. This is
//! the recipe that transformers documents for models of fixed length, and with `stride == window` the plain mean over
//! windows that its own loss gives.

use std::ops::Range;

use q35_inference::{CancelToken, LogitsFor, Model};
use q35_metrics::{Perplexity, RowError, Summarizer, Summary, compare_rows, negative_log_likelihood};

use crate::ParityError;
use crate::rows::{Catch, Running, Who};

/// Tokens computed at a time.
const PIECE: usize = 32;

/// How a text is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Tokens in a window.
    pub window: usize,
    /// Tokens from the beginning of a window to that of the next; at most `window`.
    pub stride: usize,
    /// At most so many tokens of the text are used.
    pub most_tokens: usize,
}

impl Default for Windows {
    fn default() -> Self {
        Self { window: 512, stride: 512, most_tokens: usize::MAX }
    }
}

/// One window: its tokens, and which of them are predicted, counted from its beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Place in the text.
    pub tokens: Range<usize>,
    /// The tokens of this window that are predicted here.
    pub predicted: Range<usize>,
}

impl Windows {
    /// The windows of a text of `length` tokens.
    pub fn of(&self, length: usize) -> Vec<Window> {
        let length = length.min(self.most_tokens);
        let (window, stride) = (self.window.max(2), self.stride.clamp(1, self.window.max(2)));
        let mut list = Vec::new();
        let (mut start, mut done) = (0, 0);
        while start + 1 < length && done < length {
            let end = (start + window).min(length);
            let predicted = (done - start).max(1)..end - start;
            if !predicted.is_empty() {
                list.push(Window { tokens: start..end, predicted });
            }
            done = end;
            start += stride;
        }
        list
    }
}

/// What one model makes of a text.
#[derive(Clone, Debug, Default)]
pub struct TextScore {
    /// Tokens predicted.
    pub tokens: u64,
    /// Perplexity.
    pub perplexity: f64,
    /// Against the first model, at the positions that predict; absent for the first itself.
    pub against_first: Option<Summary>,
}

/// Runs every model over the text, in step, and compares all others with the first. At most a piece of rows of each
/// model is held at a time.
///
/// # Errors
/// A model fails, the models' vocabularies differ, or `cancel` was used.
pub fn score_text(
    models: &[&dyn Model],
    ids: &[u32],
    windows: Windows,
    cancel: &CancelToken,
    progress: &dyn Fn(u64, u64),
) -> Result<Vec<TextScore>, ParityError> {
    let list = windows.of(ids.len());
    let total: u64 = list.iter().map(|window| window.tokens.len() as u64).sum();
    let mut done = 0;
    let mut perplexities = vec![Perplexity::default(); models.len()];
    let mut summaries = vec![Summarizer::default(); models.len()];
    progress(0, total);
    for (index, window) in list.iter().enumerate() {
        let name = format!("window {index}");
        let tokens = &ids[window.tokens.clone()];
        let mut running = Vec::with_capacity(models.len());
        for model in models {
            running.push(Running::start(Who::Candidate, *model, &name, tokens.len(), Catch::new(cancel))?);
        }
        // The row of position p predicts token p + 1; the last token of a window needs no row.
        let rows = window.predicted.start - 1..window.predicted.end - 1;
        let mut at = 0;
        while at < rows.end {
            let end = if at < rows.start { (at + PIECE).min(rows.start) } else { (at + PIECE).min(rows.end) };
            let scored = at >= rows.start;
            for running in &mut running {
                running
                    .feed(&tokens[at..end], if scored { LogitsFor::AllTokens } else { LogitsFor::None })?;
            }
            if scored {
                for position in at..end {
                    let target = tokens[position + 1] as usize;
                    let row = |model: usize| {
                        let vocab = models[model].config().vocab_size;
                        running[model]
                            .catch
                            .rows
                            .get((position - at) * vocab..(position - at + 1) * vocab)
                            .unwrap_or(&[])
                    };
                    for model in 0..models.len() {
                        let fail = |source: RowError| ParityError::Row {
                            who: Who::Candidate.words(),
                            prompt: format!("{name} of model {model}"),
                            position,
                            source,
                        };
                        if model == 0 {
                            perplexities[0].push(negative_log_likelihood(row(0), target).map_err(fail)?);
                        } else {
                            let compared = compare_rows(row(0), row(model)).map_err(fail)?;
                            let logit = row(model).get(target).copied().unwrap_or(f32::NEG_INFINITY);
                            perplexities[model].push(compared.candidate_log_sum_exp - f64::from(logit));
                            summaries[model].push(&compared);
                        }
                    }
                }
            }
            done += (end - at) as u64;
            progress(done, total);
            at = end;
        }
        done += (tokens.len() - rows.end) as u64;
    }
    progress(total, total);
    let score = |(index, (perplexity, summary)): (usize, (Perplexity, Summarizer))| TextScore {
        tokens: perplexity.tokens(),
        perplexity: perplexity.value().unwrap_or(f64::NAN),
        against_first: (index > 0).then(|| summary.finish()),
    };
    Ok(perplexities.into_iter().zip(summaries).enumerate().map(score).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn predicted(windows: Windows, length: usize) -> Vec<usize> {
        windows
            .of(length)
            .into_iter()
            .flat_map(|w| w.predicted.map(move |offset| w.tokens.start + offset))
            .collect()
    }

    #[test]
    fn every_token_is_predicted_once() {
        let all = |length: usize| -> Vec<usize> { (1..length).collect() };
        for (window, stride, length) in [(8, 4, 29), (8, 1, 20), (8, 7, 50), (100, 50, 30)] {
            let windows = Windows { window, stride, most_tokens: usize::MAX };
            assert_eq!(predicted(windows, length), all(length), "{window} {stride} {length}");
        }
    }

    #[test]
    fn without_overlap_the_first_of_each_window_has_no_context() {
        let windows = Windows { window: 4, stride: 4, most_tokens: 10 };
        assert_eq!(predicted(windows, 99), [1, 2, 3, 5, 6, 7, 9]);
        assert_eq!(windows.of(9).len(), 2, "a last window of one token predicts nothing");
        assert!(windows.of(1).is_empty());
    }
}
