//! The sampler: from logits to a token.
//!
//! The order of its steps: logit bias, penalties, excluded tokens, grammar, top-k, temperature, top-p, min-p, draw.

mod filters;
mod penalties;
mod rng;

use std::collections::BTreeSet;

use crate::Sampling;
use penalties::Occurrences;
use rng::CounterRng;

/// A chosen token.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Choice {
    pub(crate) id: u32,
    /// Log-probabilities of this token and of the most probable alternatives; `None` unless requested.
    pub(crate) logprobs: Option<Logprobs>,
}

/// Natural logarithms of probabilities under the model's unmodified distribution: before penalties, filters and
/// temperature.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Logprobs {
    pub(crate) chosen: f32,
    pub(crate) alternatives: Vec<(u32, f32)>,
}

/// Chooses the tokens of one reply.
#[derive(Clone, Debug)]
pub(crate) struct Sampler {
    sampling: Sampling,
    occurrences: Occurrences,
    rng: CounterRng,
    step: u64,
    forbidden: BTreeSet<u32>,
    /// Number of ids that may be chosen; the logits above are padding rows of the embedding.
    vocabulary: usize,
    /// Scratch buffer: the modified logits.
    work: Vec<f32>,
}

impl Sampler {
    pub(crate) fn new(sampling: &Sampling, seed: u64, vocabulary: usize) -> Self {
        Self {
            occurrences: Occurrences::new(sampling.penalty_window),
            rng: CounterRng::new(seed),
            step: 0,
            forbidden: BTreeSet::new(),
            vocabulary,
            work: Vec::new(),
            sampling: sampling.clone(),
        }
    }

    /// Excludes `id` from all later choices.
    pub(crate) fn forbid(&mut self, id: u32) {
        self.forbidden.insert(id);
    }

    /// As [`Self::choose_permitted`], with every token permitted.
    #[cfg(test)]
    pub(crate) fn choose(
        &mut self,
        logits: &[f32],
        excluded: &[u32],
        mask: impl FnOnce(&mut [f32]),
    ) -> Option<Choice> {
        self.choose_permitted(logits, excluded, mask, |_| true)
    }

    /// Chooses from logits [vocab]. `mask` sets the logits that a grammar forbids to minus infinity; `excluded` are
    /// forbidden for this choice. A chosen token that `permits` rejects is masked, and another one is chosen. `None` if
    /// no token is possible.
    pub(crate) fn choose_permitted(
        &mut self,
        logits: &[f32],
        excluded: &[u32],
        mask: impl FnOnce(&mut [f32]),
        mut permits: impl FnMut(u32) -> bool,
    ) -> Option<Choice> {
        self.work.clear();
        self.work.extend_from_slice(&logits[..logits.len().min(self.vocabulary)]);
        for (id, bias) in &self.sampling.logit_bias {
            if let Some(logit) = self.work.get_mut(*id as usize) {
                *logit += bias;
            }
        }
        self.occurrences.penalise(&mut self.work, &self.sampling);
        for id in self.forbidden.iter().chain(excluded) {
            if let Some(logit) = self.work.get_mut(*id as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        mask(&mut self.work);
        let mut id = self.pick()?;
        while !permits(id) {
            self.work[id as usize] = f32::NEG_INFINITY;
            id = self.pick()?;
        }
        self.step += 1;
        self.occurrences.push(id);
        let logprobs = self.sampling.logprobs.map(|count| logprobs(logits, id, count));
        Some(Choice { id, logprobs })
    }

    fn pick(&self) -> Option<u32> {
        let sampling = &self.sampling;
        if sampling.temperature == 0.0 {
            return filters::most_probable(&self.work);
        }
        let mut candidates = filters::candidates(&self.work);
        filters::top_k(&mut candidates, sampling.top_k);
        filters::softmax(&mut candidates, sampling.temperature);
        filters::top_p(&mut candidates, sampling.top_p);
        filters::min_p(&mut candidates, sampling.min_p);
        filters::draw(&candidates, self.rng.uniform(self.step))
    }
}

fn logprobs(logits: &[f32], id: u32, count: usize) -> Logprobs {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|logit| f64::from(logit - largest).exp()).sum();
    let log_probability = |logit: f32| (f64::from(logit - largest) - total.ln()) as f32;
    let mut best = if count == 0 { Vec::new() } else { filters::candidates(logits) };
    filters::top_k(&mut best, count);
    let alternatives = best.into_iter().map(|c| (c.id, log_probability(c.logit))).collect();
    let chosen = logits.get(id as usize).map_or(f32::NEG_INFINITY, |logit| log_probability(*logit));
    Logprobs { chosen, alternatives }
}

/// Pearson's statistic of counts against expected probabilities; for tests.
#[cfg(test)]
pub(crate) fn chi_square(counts: &[u64], expected: &[f64]) -> f64 {
    let total: u64 = counts.iter().sum();
    let term = |(count, p): (&u64, &f64)| {
        let mean = p * total as f64;
        (*count as f64 - mean).powi(2) / mean
    };
    counts.iter().zip(expected).map(term).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(sampling: &Sampling, logits: &[f32], draws: u64) -> Vec<u64> {
        let mut counts = vec![0; logits.len()];
        for seed in 0..draws {
            let mut sampler = Sampler::new(sampling, seed, logits.len());
            let choice = sampler.choose(logits, &[], |_| {}).unwrap();
            counts[choice.id as usize] += 1;
        }
        counts
    }

    /// Logits are the logarithms of known probabilities, so every distribution has a closed form.
    #[test]
    fn draws_follow_the_closed_form() {
        let p: [f64; 6] = [0.4, 0.25, 0.15, 0.1, 0.07, 0.03];
        let logits: Vec<f32> = p.iter().map(|p| p.ln() as f32).collect();
        let plain = Sampling {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            repetition_penalty: 1.0,
            ..Sampling::default()
        };
        let normal = |w: [f64; 6]| {
            let total: f64 = w.iter().sum();
            w.map(|x| x / total)
        };
        let power = |t: f64| normal(p.map(|x| x.powf(1.0 / t)));
        // Chi-square quantiles at one in a thousand for 1 to 5 degrees of freedom.
        let limits = [0.0, 10.83, 13.82, 16.27, 18.47, 20.52];
        let cases = [
            ("plain", plain.clone(), p),
            ("hot", plain.clone().with_temperature(2.0), power(2.0)),
            ("cold", plain.clone().with_temperature(0.5), power(0.5)),
            ("top_k 3", plain.clone().with_top_k(3), normal([0.4, 0.25, 0.15, 0.0, 0.0, 0.0])),
            ("top_p 0.8", plain.clone().with_top_p(0.79), normal([0.4, 0.25, 0.15, 0.0, 0.0, 0.0])),
            ("min_p 0.2", plain.clone().with_min_p(0.2), normal([0.4, 0.25, 0.15, 0.1, 0.0, 0.0])),
            (
                "top_k 4, then top_p 0.8 of what is left",
                plain.clone().with_top_k(4).with_top_p(0.8),
                normal([0.4, 0.25, 0.15, 0.0, 0.0, 0.0]),
            ),
            (
                "bias",
                Sampling {
                    logit_bias: [(5, (10.0f32).ln()), (0, f32::NEG_INFINITY)].into(),
                    ..plain.clone()
                },
                normal([0.0, 0.25, 0.15, 0.1, 0.07, 0.3]),
            ),
        ];
        for (name, sampling, expected) in cases {
            let counts = counts(&sampling, &logits, 20_000);
            let possible: Vec<usize> = (0..6).filter(|i| expected[*i] > 0.0).collect();
            assert_eq!(
                counts.iter().sum::<u64>(),
                possible.iter().map(|i| counts[*i]).sum::<u64>(),
                "{name}"
            );
            let kept: Vec<u64> = possible.iter().map(|i| counts[*i]).collect();
            let shares: Vec<f64> = possible.iter().map(|i| expected[*i]).collect();
            let statistic = chi_square(&kept, &shares);
            assert!(
                statistic < limits[possible.len() - 1],
                "{name}: chi-square {statistic}, counts {counts:?}"
            );
        }
    }

    #[test]
    fn zero_temperature_takes_the_first_of_the_best() {
        let mut sampler = Sampler::new(&Sampling::greedy(), 1, 4);
        assert_eq!(sampler.choose(&[0.0, 2.0, 2.0, 1.0], &[], |_| {}).unwrap().id, 1);
        assert_eq!(sampler.choose(&[0.0, 2.0, 2.0, 1.0], &[1], |_| {}).unwrap().id, 2);
        assert_eq!(sampler.choose(&[0.0, 2.0, 2.0, 1.0, 9.0], &[], |_| {}).unwrap().id, 1, "padding row");
        assert_eq!(sampler.choose(&[0.0; 4], &[], |l| l.fill(f32::NEG_INFINITY)), None);
    }

    #[test]
    fn repetition_is_penalised_within_the_reply() {
        let sampling = Sampling { repetition_penalty: 2.0, ..Sampling::greedy() };
        let mut sampler = Sampler::new(&sampling, 1, 3);
        let chosen: Vec<u32> =
            (0..3).map(|_| sampler.choose(&[3.0, 2.9, -1.0], &[], |_| {}).unwrap().id).collect();
        assert_eq!(chosen, [0, 1, 0]);
    }

    #[test]
    fn logprobs_are_the_models_own() {
        let logits: Vec<f32> = [0.5f32, 0.3, 0.2].iter().map(|p| p.ln()).collect();
        let sampling = Sampling { temperature: 0.1, ..Sampling::default().with_logprobs(2) };
        let choice = Sampler::new(&sampling, 1, 3).choose(&logits, &[0], |_| {}).unwrap();
        let logprobs = choice.logprobs.unwrap();
        assert_eq!(choice.id, 1);
        assert!((logprobs.chosen - 0.3f32.ln()).abs() < 1e-6);
        assert_eq!(logprobs.alternatives.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [0, 1]);
        let none = Sampling { logprobs: Some(0), ..sampling };
        assert!(
            Sampler::new(&none, 1, 3)
                .choose(&logits, &[], |_| {})
                .unwrap()
                .logprobs
                .unwrap()
                .alternatives
                .is_empty()
        );
    }
}
