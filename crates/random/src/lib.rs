//! SplitMix64, the one random number generator of the workspace.
//!
//! Calibration, sampling and test data must repeat to the byte for a seed, on every platform and in every release, so
//! the algorithm is part of the output format and not an implementation detail of a dependency. Steele, Lea and Flood,
//! "Fast splittable pseudorandom number generators", 2014.
//!
//! Has no dependencies and knows nothing of models or tokens.
//!
//! ```
//! let mut random = q35_random::SplitMix64::new(7);
//! let draw = random.uniform_f32();
//! assert!((0.0..1.0).contains(&draw));
//! assert_eq!(q35_random::SplitMix64::new(7).uniform_f32(), draw);
//! ```
#![deny(missing_docs)]
#![forbid(unsafe_code)]

/// 2^64 divided by the golden ratio: the increment of the state.
pub const GOLDEN_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// A generator with one word of state. All seeds are equally good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitMix64(u64);

impl SplitMix64 {
    /// Creates a generator; equal seeds yield equal sequences.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns the next 64 bits.
    #[inline]
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN_GAMMA);
        mix64(self.0)
    }

    /// Returns a uniform number in [0, 1) with 24 random bits.
    #[inline]
    pub fn uniform_f32(&mut self) -> f32 {
        (self.next_u64() >> 40) as f32 / (1u64 << 24) as f32
    }

    /// Returns a uniform integer below `end`. The modulo bias is negligible while `end` is small against 2^64.
    ///
    /// # Panics
    /// When `end` is 0.
    #[inline]
    pub fn below(&mut self, end: u64) -> u64 {
        self.next_u64() % end
    }

    /// Returns a random permutation of `0..count` (Fisher-Yates).
    pub fn permutation(&mut self, count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..count).collect();
        for last in (1..count).rev() {
            order.swap(last, self.below(last as u64 + 1) as usize);
        }
        order
    }
}

/// The finalizer of SplitMix64: a bijective hash of 64 bits, for counter-based generators.
#[inline]
pub fn mix64(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_is_the_published_one() {
        let mut random = SplitMix64::new(0);
        let found = [random.next_u64(), random.next_u64(), random.next_u64()];
        assert_eq!(found, [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4, 0x06c4_5d18_8009_454f]);
    }

    #[test]
    fn a_permutation_holds_every_index_once() {
        let mut order = SplitMix64::new(3).permutation(100);
        assert_ne!(order, (0..100).collect::<Vec<_>>());
        order.sort_unstable();
        assert_eq!(order, (0..100).collect::<Vec<_>>());
    }
}
