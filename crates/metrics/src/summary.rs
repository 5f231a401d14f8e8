//! Summaries over many positions.

use crate::{RowComparison, Top1};

/// Accumulates the comparisons of many positions, in order.
#[derive(Clone, Debug, Default)]
pub struct Summarizer {
    kl: Vec<f64>,
    same: usize,
    tied: usize,
    top5_sum: f64,
    cosine_sum: f64,
    cosine_min: f64,
    max_abs_difference: f64,
    /// Index and margin of every position with different top-1 tokens.
    different: Vec<(usize, f64)>,
}

/// Mean, quantiles and maximum of a list of numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spread {
    /// Arithmetic mean.
    pub mean: f64,
    /// 50th percentile, by nearest rank.
    pub median: f64,
    /// 99th percentile, by nearest rank.
    pub p99: f64,
    /// The largest.
    pub max: f64,
    /// Index of the first largest value.
    pub max_at: usize,
}

impl Spread {
    /// Statistics of `values`; all zero for an empty list.
    pub fn of(values: &[f64]) -> Self {
        if values.is_empty() {
            return Self::default();
        }
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        // Nearest rank: the smallest value such that at least `part` of all values are at or below it.
        let rank =
            |part: f64| sorted[((part * sorted.len() as f64).ceil() as usize).clamp(1, sorted.len()) - 1];
        let max = sorted[sorted.len() - 1];
        Self {
            mean: values.iter().sum::<f64>() / values.len() as f64,
            median: rank(0.5),
            p99: rank(0.99),
            max,
            max_at: values.iter().position(|value| *value == max).unwrap_or(0),
        }
    }
}

/// Summary of all positions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    /// Positions compared.
    pub positions: usize,
    /// KL(reference || candidate), in nats.
    pub kl: Spread,
    /// Share of the positions with the same top-1 token, exact ties counted as equal; 1 without positions.
    pub top1_agreement: f64,
    /// Positions whose top-1 tokens differ only by an exact tie.
    pub top1_ties: usize,
    /// Largest margin, in logits, over the positions with different top-1 tokens.
    pub largest_margin: f64,
    /// Mean overlap of the top-5 sets.
    pub top5_overlap: f64,
    /// Mean cosine of the raw logits.
    pub cosine_mean: f64,
    /// Smallest cosine of the raw logits.
    pub cosine_min: f64,
    /// Largest absolute difference of two logits.
    pub max_abs_difference: f64,
    /// Index of the first position with different top-1 tokens.
    pub first_different: Option<usize>,
}

impl Summarizer {
    /// Adds the next position.
    pub fn push(&mut self, row: &RowComparison) {
        let index = self.kl.len();
        self.kl.push(row.kl);
        match row.top1 {
            Top1::Same => self.same += 1,
            Top1::Tied => self.tied += 1,
            Top1::Different => {
                self.different.push((index, row.margin));
            }
        }
        self.top5_sum += row.top5_overlap;
        self.cosine_sum += row.cosine;
        self.cosine_min = if index == 0 { row.cosine } else { self.cosine_min.min(row.cosine) };
        self.max_abs_difference = self.max_abs_difference.max(row.max_abs_difference);
    }

    /// KL of every position, in order.
    pub fn kl(&self) -> &[f64] {
        &self.kl
    }

    /// Share of the positions with the same top-1 token, where a different token counts as equal if the reference prefers
    /// its own by at most `margin` logits: rounding alone can change such a preference.
    pub fn agreement_beyond(&self, margin: f64) -> f64 {
        let against = self.different.iter().filter(|(_, found)| *found > margin).count();
        1.0 - against as f64 / self.kl.len().max(1) as f64
    }

    /// The summary of all positions pushed so far.
    pub fn finish(&self) -> Summary {
        let positions = self.kl.len();
        let mean = |sum: f64| if positions == 0 { 1.0 } else { sum / positions as f64 };
        Summary {
            positions,
            kl: Spread::of(&self.kl),
            top1_agreement: mean((self.same + self.tied) as f64),
            top1_ties: self.tied,
            largest_margin: self.different.iter().fold(0.0, |most, (_, margin)| margin.max(most)),
            top5_overlap: mean(self.top5_sum),
            cosine_mean: mean(self.cosine_sum),
            cosine_min: if positions == 0 { 1.0 } else { self.cosine_min },
            max_abs_difference: self.max_abs_difference,
            first_different: self.different.first().map(|(index, _)| *index),
        }
    }
}

/// Perplexity of a text: the exponential of the mean negative log likelihood of its tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Perplexity {
    tokens: u64,
    total: f64,
}

impl Perplexity {
    /// Adds a token's negative log likelihood, in nats.
    pub fn push(&mut self, negative_log_likelihood: f64) {
        self.tokens += 1;
        self.total += negative_log_likelihood;
    }

    /// Number of tokens pushed so far.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// The perplexity; none without tokens.
    pub fn value(&self) -> Option<f64> {
        (self.tokens > 0).then(|| (self.total / self.tokens as f64).exp())
    }
}

/// Histogram with logarithmic bins, for KL, which spans a dozen orders of magnitude.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    /// Lower edge of the first bin, as a power of ten; smaller values, zero included, are counted in that bin.
    pub lowest_exponent: i32,
    /// Bins per decade.
    pub per_decade: usize,
    /// Number of values in each bin.
    pub counts: Vec<usize>,
}

impl Histogram {
    /// Histogram from `10^lowest` to `10^highest` with `per_decade` bins per decade; values beyond the ends are counted in
    /// the outermost bins.
    pub fn of(values: &[f64], lowest: i32, highest: i32, per_decade: usize) -> Self {
        let bins = (highest - lowest).max(1) as usize * per_decade.max(1);
        let mut counts = vec![0; bins];
        for value in values {
            let bin = (value.log10() - f64::from(lowest)) * per_decade as f64;
            // log10(0) is minus infinity, and the cast saturates at both ends.
            counts[(bin as usize).min(bins - 1)] += 1;
        }
        Self { lowest_exponent: lowest, per_decade, counts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare_rows;
    use proptest::prelude::*;

    #[test]
    fn quantiles_by_nearest_rank() {
        let values: Vec<f64> = (1..=200).map(f64::from).collect();
        let spread = Spread::of(&values);
        assert_eq!((spread.median, spread.p99, spread.max, spread.max_at), (100.0, 198.0, 200.0, 199));
        assert_eq!(spread.mean, 100.5);
        let one = Spread::of(&[3.0]);
        assert_eq!((one.median, one.p99, one.mean), (3.0, 3.0, 3.0));
        assert_eq!(Spread::of(&[]), Spread::default());
    }

    #[test]
    fn first_difference_and_agreement() {
        let same = compare_rows(&[1.0, 0.0], &[2.0, 0.0]).unwrap();
        let tied = compare_rows(&[1.0, 1.0], &[0.0, 2.0]).unwrap();
        let different = compare_rows(&[1.0, 0.0], &[0.0, 2.0]).unwrap();
        let mut summary = Summarizer::default();
        for row in [&same, &tied, &different, &different] {
            summary.push(row);
        }
        assert_eq!((summary.agreement_beyond(0.5), summary.agreement_beyond(1.0)), (0.5, 1.0));
        let summary = summary.finish();
        assert_eq!((summary.positions, summary.top1_ties, summary.first_different), (4, 1, Some(2)));
        assert_eq!(summary.top1_agreement, 0.5);
        assert_eq!(summary.largest_margin, 1.0);
    }

    #[test]
    fn perplexity_of_equal_chances_is_their_number() {
        let mut perplexity = Perplexity::default();
        assert_eq!(perplexity.value(), None);
        for _ in 0..5 {
            perplexity.push(16f64.ln());
        }
        assert!((perplexity.value().unwrap() - 16.0).abs() < 1e-12);
        assert_eq!(perplexity.tokens(), 5);
    }

    #[test]
    fn histogram_counts_everything_once() {
        let histogram = Histogram::of(&[0.0, 1e-9, 2e-3, 5e-3, 1e9], -6, 0, 1);
        assert_eq!(histogram.counts, [2, 0, 0, 2, 0, 1]);
    }

    proptest! {
        #[test]
        fn spread_is_ordered(values in prop::collection::vec(0f64..10.0, 1..300)) {
            let spread = Spread::of(&values);
            prop_assert!(spread.median <= spread.p99 && spread.p99 <= spread.max && spread.mean <= spread.max);
            prop_assert_eq!(values[spread.max_at], spread.max);
            let at_or_below = values.iter().filter(|v| **v <= spread.median).count();
            prop_assert!(2 * at_or_below >= values.len());
        }
    }
}
