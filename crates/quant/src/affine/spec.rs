//! Bits and group size.

use crate::FloatType;

/// A supported pair of bits and group size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AffineSpec {
    bits: u32,
    group_size: usize,
}

/// An unsupported or unsuitable [`AffineSpec`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AffineError {
    /// MLX has no kernels for this number of bits.
    #[error("unsupported bits\n  expected: one of {:?}\n  found:    {found}", AffineSpec::BITS)]
    Bits {
        /// The requested bits.
        found: u32,
    },
    /// MLX has no kernels for this group size.
    #[error("unsupported group size\n  expected: one of {:?}\n  found:    {found}", AffineSpec::GROUP_SIZES)]
    GroupSize {
        /// The requested group size.
        found: usize,
    },
    /// Rows do not consist of whole groups.
    #[error("rows of {cols} weights do not divide into groups of {group_size}")]
    Columns {
        /// Weights per row.
        cols: usize,
        /// The group size.
        group_size: usize,
    },
}

impl AffineSpec {
    /// Supported bits.
    pub const BITS: [u32; 6] = [2, 3, 4, 5, 6, 8];
    /// Supported group sizes.
    pub const GROUP_SIZES: [usize; 3] = [32, 64, 128];

    /// Checks bits and group size.
    ///
    /// # Errors
    /// Bits or group size that MLX does not support.
    pub fn new(bits: u32, group_size: usize) -> Result<Self, AffineError> {
        if !Self::BITS.contains(&bits) {
            Err(AffineError::Bits { found: bits })
        } else if !Self::GROUP_SIZES.contains(&group_size) {
            Err(AffineError::GroupSize { found: group_size })
        } else {
            Ok(Self { bits, group_size })
        }
    }

    /// Bits per code.
    pub fn bits(self) -> u32 {
        self.bits
    }

    /// Weights per group.
    pub fn group_size(self) -> usize {
        self.group_size
    }

    /// The largest code, `2^bits - 1`.
    pub fn largest_code(self) -> u8 {
        ((1u32 << self.bits) - 1) as u8
    }

    /// Returns true if rows of `cols` weights divide into whole groups.
    pub fn fits(self, cols: usize) -> bool {
        cols > 0 && cols.is_multiple_of(self.group_size)
    }

    /// Checks that rows of `cols` weights divide into whole groups.
    ///
    /// # Errors
    /// [`AffineError::Columns`] unless [`Self::fits`].
    pub fn check_columns(self, cols: usize) -> Result<(), AffineError> {
        if self.fits(cols) { Ok(()) } else { Err(AffineError::Columns { cols, group_size: self.group_size }) }
    }

    /// Number of 32-bit words in a row of `cols` weights.
    pub fn words_per_row(self, cols: usize) -> usize {
        cols * self.bits as usize / 32
    }

    /// Number of groups in a row of `cols` weights.
    pub fn groups_per_row(self, cols: usize) -> usize {
        cols / self.group_size
    }

    /// Bits per weight, scale and bias included.
    pub fn bits_per_weight(self, float: FloatType) -> f64 {
        f64::from(self.bits) + (2 * 8 * float.size()) as f64 / self.group_size as f64
    }
}
