//! How fp16 values are kept.

use q35_kernels::{Isa, round_to_f16};

/// How values that the program declares as fp16 are kept. Sums are in f32 either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// As f32, unrounded: what the program means.
    #[default]
    Exact,
    /// Rounded to fp16 after every operation, as inputs and states are: what fp16 hardware keeps.
    Half,
}

impl Precision {
    /// Rounds values to fp16 and back, if this precision does.
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
