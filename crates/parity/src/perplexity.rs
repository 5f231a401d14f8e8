//! Perplexity of a text under several models.
//!
//! The text is split into windows of `window` tokens that begin every `stride` tokens; a window begins with an empty
//! context. A window predicts the tokens that no earlier window has predicted, so that every token is predicted once,
//! except the first of the text and, without overlap, the first of each window, which have no context. This is the
//! strided evaluation that transformers documents for models of fixed length; with `stride == window` it equals the
//! mean loss over independent windows.

use std::ops::Range;

use q35_inference::{CancelToken, LogitsFor, Model};
use q35_metrics::{Perplexity, RowError, Summarizer, Summary, compare_rows, negative_log_likelihood};

use crate::ParityError;
use crate::runner::{LogitRecorder, Participant, RunningSequence};

/// Tokens of one prefill pass.
const CHUNK: usize = 32;

/// Division of a text into windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Tokens in a window.
    pub window: usize,
    /// Tokens between the beginnings of consecutive windows; at most `window`.
    pub stride: usize,
    /// Largest number of tokens of the text that are used.
    pub most_tokens: usize,
}

impl Default for Windows {
    fn default() -> Self {
        Self { window: 512, stride: 512, most_tokens: usize::MAX }
    }
}

/// One window of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Range in the text.
    pub tokens: Range<usize>,
    /// Tokens that this window predicts, counted from its beginning.
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

/// Result of one model on a text.
#[derive(Clone, Debug, Default)]
pub struct TextScore {
    /// Predicted tokens.
    pub tokens: u64,
    /// Perplexity.
    pub perplexity: f64,
    /// Comparison with the first model at the predicted positions; absent for the first itself.
    pub against_first: Option<Summary>,
}

/// Runs every model over the text, in step, and compares all others with the first. Each model's logits are held for
/// one chunk at a time.
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
            let recorder = LogitRecorder::new(cancel);
            running.push(RunningSequence::start(
                Participant::Candidate,
                *model,
                &name,
                tokens.len(),
                recorder,
            )?);
        }
        // The logits of position p predict token p + 1; those of a window's last token are not needed.
        let scored_positions = window.predicted.start - 1..window.predicted.end - 1;
        let mut at = 0;
        while at < scored_positions.end {
            let end = if at < scored_positions.start {
                (at + CHUNK).min(scored_positions.start)
            } else {
                (at + CHUNK).min(scored_positions.end)
            };
            let scored = at >= scored_positions.start;
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
                            .recorder
                            .logits
                            .get((position - at) * vocab..(position - at + 1) * vocab)
                            .unwrap_or(&[])
                    };
                    for model in 0..models.len() {
                        let fail = |source: RowError| ParityError::Row {
                            participant: Participant::Candidate.name(),
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
        done += (tokens.len() - scored_positions.end) as u64;
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
