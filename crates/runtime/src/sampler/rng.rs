//! Counter-based random numbers: functions of a seed and a position.

use q35_random::{GOLDEN_GAMMA, mix64};

/// A counter-based generator: the number of step `n` is a hash of the seed and `n`, so it does not depend on history
/// or on the division of the work among threads. The hash is SplitMix64's finalizer, applied twice with the seed in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CounterRng {
    seed: u64,
}

impl CounterRng {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// Uniform in [0, 1), with 53 random bits.
    pub(crate) fn uniform(self, step: u64) -> f64 {
        let step = mix64(step.wrapping_mul(GOLDEN_GAMMA));
        let bits = mix64(step ^ self.seed.wrapping_add(0x6A09_E667_F3BC_C909));
        (bits >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::chi_square;

    #[test]
    fn uniform_along_steps_and_along_seeds() {
        let draws = 40_000u64;
        for along_seeds in [false, true] {
            let mut counts = [0u64; 64];
            for i in 0..draws {
                let (seed, step) = if along_seeds { (i, 7) } else { (7, i) };
                counts[(CounterRng::new(seed).uniform(step) * 64.0) as usize] += 1;
            }
            let statistic = chi_square(&counts, &[1.0 / 64.0; 64]);
            // 63 degrees of freedom: above 103.4 once in a thousand.
            assert!(statistic < 103.4, "chi-square {statistic}");
        }
    }

    #[test]
    fn neighbouring_steps_are_independent() {
        let mut counts = [0u64; 64];
        for step in 0..40_000 {
            let rng = CounterRng::new(3);
            let cell = |s| (rng.uniform(s) * 8.0) as usize;
            counts[cell(2 * step) * 8 + cell(2 * step + 1)] += 1;
        }
        let statistic = chi_square(&counts, &[1.0 / 64.0; 64]);
        assert!(statistic < 103.4, "chi-square {statistic}");
    }
}
