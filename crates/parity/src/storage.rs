//! Encodings of tensors, and the largest rounding error that each explains.

use q35_architecture::Role;
use q35_quant::FloatType;

/// Encoding of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// Floats.
    Float(FloatType),
    /// MLX affine groups along a row: `scale * code + bias`.
    Affine {
        /// Bits of a code.
        bits: u32,
        /// Elements that share a scale and a bias.
        group_size: usize,
        /// Type of scales and biases.
        parameters: FloatType,
        /// True if the codes were chosen by a calibrated recipe, which departs from the nearest code where that keeps
        /// the output closer.
        calibrated: bool,
    },
    /// Core ML's symmetric encodings: `scale * code` with signed codes.
    Symmetric {
        /// Bits of a code.
        bits: u32,
        /// Elements of a row that share a scale; the whole row if `None`.
        group_size: Option<usize>,
        /// Type of the scale.
        parameters: FloatType,
    },
    /// Core ML's older encoding: `scale * (code - zero_point)` with unsigned codes, one pair per row.
    ZeroPoint {
        /// Bits of a code.
        bits: u32,
        /// Type of the scale.
        parameters: FloatType,
    },
}

impl Storage {
    /// Bits per element, scales and biases included, in rows of `width` elements.
    pub fn bits_per_weight(self, width: usize) -> f64 {
        let width = width.max(1) as f64;
        match self {
            Self::Float(float) => f64::from(float.bits()),
            Self::Affine { bits, group_size, parameters, .. } => {
                f64::from(bits) + 2.0 * f64::from(parameters.bits()) / group_size.max(1) as f64
            }
            Self::Symmetric { bits, group_size, parameters } => {
                f64::from(bits) + f64::from(parameters.bits()) / group_size.map_or(width, |g| g as f64)
            }
            Self::ZeroPoint { bits, parameters } => {
                f64::from(bits) + f64::from(bits + parameters.bits()) / width
            }
        }
    }

    /// Elements of a row that share quantization parameters.
    pub(crate) fn group(self, width: usize) -> usize {
        match self {
            Self::Affine { group_size, .. } | Self::Symmetric { group_size: Some(group_size), .. } => {
                group_size.clamp(1, width.max(1))
            }
            _ => width.max(1),
        }
    }

    /// Error bound of a group with these source `values`.
    pub(crate) fn bound(self, values: &[f32], role: Role) -> Bound {
        let (low, high) = values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &value| {
            let value = f64::from(value);
            (if value < low { value } else { low }, if value > high { value } else { high })
        });
        let largest = low.abs().max(high.abs());
        match self {
            Self::Float(float) => {
                // Norms are stored as 1 + w and decays as exp(A_log): they round like numbers near 1.
                let offset = match role {
                    Role::CenteredNorm | Role::DecayLog => 1.0,
                    _ => 0.0,
                };
                let unit = float.relative_rounding();
                Bound {
                    step: 0.0,
                    slack: unit * offset + float.absolute_rounding() + 1e-12,
                    relative: unit,
                    low: f64::NEG_INFINITY,
                    high: f64::INFINITY,
                    steps: 0.0,
                }
            }
            Self::Affine { bits, parameters, calibrated, .. } => {
                Bound::affine(low, high, bits, parameters, calibrated)
            }
            Self::Symmetric { bits, parameters, .. } => {
                let most = f64::from((1u32 << (bits - 1)) - 1);
                Bound::of_step(largest / most, largest, most, parameters, 0.5)
            }
            Self::ZeroPoint { bits, parameters } => {
                let most = f64::from((1u32 << bits) - 1);
                // The range includes zero; rounding the zero point adds up to half a step.
                let range = high.max(0.0) - low.min(0.0);
                Bound::of_step(range / most, largest, most, parameters, 1.0)
            }
        }
    }
}

impl std::fmt::Display for Storage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Float(float) => f.write_str(float.name()),
            Self::Affine { bits, group_size, calibrated: false, .. } => write!(f, "{bits}-bit/{group_size}"),
            Self::Affine { bits, group_size, calibrated: true, .. } => {
                write!(f, "{bits}-bit/{group_size} calibrated")
            }
            Self::Symmetric { bits, group_size: None, .. } => write!(f, "int{bits}/row"),
            Self::Symmetric { bits, group_size: Some(size), .. } => write!(f, "int{bits}/{size}"),
            Self::ZeroPoint { bits, .. } => write!(f, "uint{bits}/row"),
        }
    }
}

/// The largest error that the encoding of a group explains.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bound {
    /// Quantization step; 0 for floats.
    pub(crate) step: f64,
    /// Allowed error independent of the value.
    slack: f64,
    /// Allowed error relative to the value.
    relative: f64,
    /// Smallest representable value; the distance of a source value below it is allowed too.
    low: f64,
    /// Largest representable value; the distance of a source value above it is allowed too.
    high: f64,
    /// Allowed error in quantization steps.
    steps: f64,
}

impl Bound {
    /// Half a step of MLX's grid. The grid starts at the value of largest magnitude and its step is adjusted until zero
    /// is representable, which may leave the other end up to a step outside.
    fn affine(low: f64, high: f64, bits: u32, parameters: FloatType, calibrated: bool) -> Self {
        let most = f64::from((1u32 << bits) - 1);
        let plain = ((high - low) / most).max(1e-7);
        let edge = if low.abs() > high.abs() { low } else { high };
        // f32 may round a number of ticks near one half either way: both steps are allowed.
        let ratio = (edge / plain).abs();
        let uncertain = 1e-3 * (1.0 + ratio * 1e-3);
        let step_of = |ticks: f64| if ticks == 0.0 { plain } else { edge.abs() / ticks };
        let step = step_of((ratio - uncertain).round());
        let reach = most * step_of((ratio + uncertain).round());
        let (covered_low, covered_high) = if edge == low { (low, low + reach) } else { (high - reach, high) };
        // Scale and bias are rounded when they are stored, and their sum may be rounded again.
        let rounding = parameters.relative_rounding() * (reach + 2.0 * edge.abs())
            + parameters.absolute_rounding() * (most + 2.0);
        if calibrated {
            // Error feedback and clipping move single weights by many steps, but never outside the grid.
            let reach = 1.5 * (high - low) + rounding;
            return Self {
                step,
                slack: reach + 1e-9,
                relative: 0.0,
                low: f64::NEG_INFINITY,
                high: f64::INFINITY,
                steps: 0.0,
            };
        }
        Self {
            step,
            slack: 1.02 * rounding + 1e-9,
            relative: 0.0,
            low: covered_low,
            high: covered_high,
            steps: 0.5,
        }
    }

    fn of_step(step: f64, largest: f64, most: f64, parameters: FloatType, steps: f64) -> Self {
        let rounding = parameters.relative_rounding() * 2.0 * largest + parameters.absolute_rounding() * most;
        Self {
            step,
            slack: 1.02 * rounding + 1e-9,
            relative: 0.0,
            low: f64::NEG_INFINITY,
            high: f64::INFINITY,
            steps,
        }
    }

    /// The largest explained error of an element whose source value is `value`.
    #[inline]
    pub(crate) fn allowed(&self, value: f64) -> f64 {
        let beyond = (self.low - value).max(value - self.high).max(0.0);
        self.steps * self.step + self.slack + self.relative * value.abs() + beyond
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_per_weight_count_scales() {
        let affine =
            Storage::Affine { bits: 4, group_size: 64, parameters: FloatType::Bf16, calibrated: false };
        assert_eq!(affine.bits_per_weight(1024), 4.5);
        let row = Storage::Symmetric { bits: 8, group_size: None, parameters: FloatType::F16 };
        assert_eq!(row.bits_per_weight(1024), 8.0 + 16.0 / 1024.0);
        assert_eq!(affine.to_string(), "4-bit/64");
        assert_eq!(Storage::Float(FloatType::F32).bits_per_weight(1), 32.0);
    }

    #[test]
    fn half_a_step_is_allowed_and_not_more() {
        // From -8 to 7 in fifteen steps of one: exactly representable.
        let values: Vec<f32> = (-8..8).map(|i| i as f32).collect();
        let affine =
            Storage::Affine { bits: 4, group_size: 16, parameters: FloatType::F32, calibrated: false };
        let bound = affine.bound(&values, Role::Linear);
        assert!((bound.step - 1.0).abs() < 1e-9);
        assert!(bound.allowed(0.4) > 0.5 && bound.allowed(0.4) < 0.51);
        let symmetric = Storage::Symmetric { bits: 8, group_size: None, parameters: FloatType::F32 };
        let bound = symmetric.bound(&[-1.27, 0.5], Role::Linear);
        assert!((bound.allowed(0.5) - 0.005).abs() < 1e-5);
    }

    #[test]
    fn a_norm_may_be_rounded_as_a_number_near_one() {
        let bound = Storage::Float(FloatType::Bf16).bound(&[0.01], Role::CenteredNorm);
        assert!(bound.allowed(0.01) > 2f64.powi(-8) && bound.allowed(0.01) < 1.2 * 2f64.powi(-8));
        let exact = Storage::Float(FloatType::F32).bound(&[0.01], Role::Linear);
        assert!(exact.allowed(0.01) < 1e-8);
    }
}
