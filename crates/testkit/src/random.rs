//! Random test data that is the same on every platform.

use q35_random::{GOLDEN_GAMMA, SplitMix64};

/// A seeded generator of test data.
#[derive(Clone, Debug)]
pub struct Random(SplitMix64);

impl Random {
    /// Creates a generator; equal seeds yield equal numbers.
    pub fn new(seed: u64) -> Self {
        Self(SplitMix64::new(seed))
    }

    /// Creates a generator seeded by `seed` and `name`, so that a tensor's values do not depend on the other tensors.
    pub fn named(seed: u64, name: &str) -> Self {
        // FNV-1a, started from the seed.
        let start = 0xcbf2_9ce4_8422_2325 ^ seed.wrapping_mul(GOLDEN_GAMMA);
        let hash = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        Self::new(name.bytes().fold(start, hash))
    }

    /// Returns the next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Returns an integer below `end`, which is small against 2^64.
    pub fn below(&mut self, end: usize) -> usize {
        self.0.below(end as u64) as usize
    }

    /// Returns a uniform number in [0, 1).
    pub fn uniform(&mut self) -> f32 {
        self.0.uniform_f32()
    }

    /// Returns an approximately normal number of mean 0 and standard deviation 1: a sum of four uniform numbers, which
    /// needs no transcendental function and so is the same on every platform.
    pub fn normal(&mut self) -> f32 {
        let sum: f32 = (0..4).map(|_| self.uniform() - 0.5).sum();
        sum * 3f32.sqrt()
    }

    /// Returns `count` token ids below `vocab_size`.
    pub fn tokens(&mut self, count: usize, vocab_size: usize) -> Vec<u32> {
        (0..count).map(|_| self.below(vocab_size) as u32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_those_of_a_normal() {
        let mut random = Random::named(3, "x");
        let draws: Vec<f32> = (0..100_000).map(|_| random.normal()).collect();
        let mean = draws.iter().sum::<f32>() / draws.len() as f32;
        let variance = draws.iter().map(|x| x * x).sum::<f32>() / draws.len() as f32;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "mean {mean}, variance {variance}");
    }

    #[test]
    fn the_stream_never_changes() {
        assert_eq!(Random::new(0).bits(), 0xe220_a839_7b1d_cdaf);
    }
}
