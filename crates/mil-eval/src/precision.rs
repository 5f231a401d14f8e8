//! Arithmetic of fp16 values.

use q35_kernels::{Isa, round_to_f16};

/// Representation of values that the program declares as fp16. Sums are in f32 in both modes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// Unrounded f32.
    #[default]
    Exact,
    /// Rounded to fp16: results of operations, inputs and states, as on fp16 hardware.
    Half,
}

impl Precision {
    /// Rounds values to fp16 if this is [`Precision::Half`].
    pub(crate) fn round(self, values: &mut [f32]) {
        if self == Self::Half {
            round_to_f16(Isa::detect(), values);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_rounds_to_nearest_even_and_overflows_to_infinity() {
        let source = [1.0, 1.0 + 1.0 / 2048.0, 1.0 + 3.0 / 2048.0, 65504.0, 65520.0, -70000.0, 1e-8];
        let mut values = source;
        Precision::Exact.round(&mut values);
        assert_eq!(values, source);
        Precision::Half.round(&mut values);
        let want = [1.0, 1.0, 1.0 + 2.0 / 1024.0, 65504.0, f32::INFINITY, f32::NEG_INFINITY, 0.0];
        assert_eq!(values, want);
    }
}
