//! Float types of checkpoints, stored as little-endian bytes at any alignment.

use half::{bf16, f16};

/// Float type of stored weights, scales and activations.
///
/// The one float type of the workspace: crates that compute or compare use it too. Types of a file format that include
/// integers (safetensors, MIL) convert to it where they hold floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FloatType {
    /// bfloat16: 8 bits of exponent, 7 of mantissa.
    Bf16,
    /// IEEE 754 half precision.
    F16,
    /// IEEE 754 single precision.
    F32,
}

impl FloatType {
    /// Size of an element in bytes.
    pub fn size(self) -> usize {
        match self {
            Self::Bf16 | Self::F16 => 2,
            Self::F32 => 4,
        }
    }

    /// Name in safetensors headers.
    pub fn safetensors_name(self) -> &'static str {
        match self {
            Self::Bf16 => "BF16",
            Self::F16 => "F16",
            Self::F32 => "F32",
        }
    }

    /// Name in `config.json` and PyTorch.
    pub fn torch_name(self) -> &'static str {
        match self {
            Self::Bf16 => "bfloat16",
            Self::F16 => "float16",
            Self::F32 => "float32",
        }
    }

    /// Short name, in reports and thresholds.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::F32 => "f32",
        }
    }

    /// Size of an element in bits.
    pub fn bits(self) -> u32 {
        8 * self.size() as u32
    }

    /// Largest relative error of rounding a normal number to this type: half a unit in the last place.
    pub fn relative_rounding(self) -> f64 {
        match self {
            Self::Bf16 => 2f64.powi(-8),
            Self::F16 => 2f64.powi(-11),
            Self::F32 => 2f64.powi(-24),
        }
    }

    /// Largest error of rounding a number below the type's normal range.
    pub fn absolute_rounding(self) -> f64 {
        match self {
            Self::F16 => 2f64.powi(-25),
            Self::Bf16 | Self::F32 => 0.0,
        }
    }

    /// Converts little-endian `bytes` to f32, exactly, one element per element of `out`.
    ///
    /// # Panics
    /// When `bytes` is not `out.len() * self.size()` long.
    pub fn widen(self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(bytes.len(), out.len() * self.size(), "bytes for {} elements of {self:?}", out.len());
        match self {
            Self::Bf16 => {
                for (value, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *value = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
                }
            }
            Self::F16 => {
                for (value, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *value = f16::from_le_bytes(*b).to_f32();
                }
            }
            Self::F32 => {
                for (value, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *value = f32::from_le_bytes(*b);
                }
            }
        }
    }

    /// Appends `values`, rounded to this type (nearest, ties to even), as little-endian bytes.
    pub fn narrow(self, values: &[f32], out: &mut Vec<u8>) {
        match self {
            Self::Bf16 => out.extend(values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes())),
            Self::F16 => out.extend(values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes())),
            Self::F32 => out.extend(values.iter().flat_map(|v| v.to_le_bytes())),
        }
    }

    /// Rounds `value` to this type (nearest, ties to even).
    pub fn round(self, value: f32) -> f32 {
        match self {
            Self::Bf16 => bf16::from_f32(value).to_f32(),
            Self::F16 => f16::from_f32(value).to_f32(),
            Self::F32 => value,
        }
    }

    /// Returns the index of the first element of little-endian `bytes` that is NaN or infinite.
    pub fn first_non_finite(self, bytes: &[u8]) -> Option<usize> {
        // Blocks are folded without branches, so that the common case runs at memory speed.
        const BLOCK: usize = 4096;
        let offset = bytes.chunks(BLOCK).position(|block| !self.all_finite(block))? * BLOCK;
        let start = offset / self.size();
        (start..bytes.len() / self.size()).find(|&i| {
            let mut value = [0.0f32];
            self.widen(&bytes[i * self.size()..(i + 1) * self.size()], &mut value);
            !value[0].is_finite()
        })
    }

    fn all_finite(self, bytes: &[u8]) -> bool {
        let half_words = |exponent: u16| {
            let non_finite = |bad: bool, b: &[u8; 2]| bad | (u16::from_le_bytes(*b) & exponent == exponent);
            !bytes.as_chunks::<2>().0.iter().fold(false, non_finite)
        };
        match self {
            Self::Bf16 => half_words(0x7f80),
            Self::F16 => half_words(0x7c00),
            Self::F32 => {
                let non_finite =
                    |bad: bool, b: &[u8; 4]| bad | (u32::from_le_bytes(*b) & 0x7f80_0000 == 0x7f80_0000);
                !bytes.as_chunks::<4>().0.iter().fold(false, non_finite)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [FloatType; 3] = [FloatType::Bf16, FloatType::F16, FloatType::F32];

    #[test]
    fn widening_is_exact_and_narrowing_inverts_it() {
        let values = [0.0, -0.0, 1.0, -2.5, 0.007_812_5, 96.0, 2.0f32.powi(-14)];
        for float in ALL {
            let mut bytes = Vec::new();
            float.narrow(&values, &mut bytes);
            let mut back = [f32::NAN; 7];
            float.widen(&bytes, &mut back);
            assert_eq!(back.map(f32::to_bits), values.map(f32::to_bits), "{float:?}");
        }
    }

    #[test]
    fn the_first_non_finite_element_is_found_at_any_position() {
        for float in ALL {
            for (place, bad) in
                [(0, f32::NAN), (2047, f32::INFINITY), (2048, f32::NEG_INFINITY), (9999, f32::NAN)]
            {
                let mut values = vec![1.0f32; 10_000];
                let mut bytes = Vec::new();
                float.narrow(&values, &mut bytes);
                assert_eq!(float.first_non_finite(&bytes), None);
                values[place] = bad;
                bytes.clear();
                float.narrow(&values, &mut bytes);
                assert_eq!(float.first_non_finite(&bytes), Some(place), "{float:?}");
            }
        }
    }
}
