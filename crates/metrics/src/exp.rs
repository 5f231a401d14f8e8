//! Branch-free `exp` of non-positive numbers.

/// 1.5 x 2^52: adding it leaves the nearest integer in the low bits of the sum.
const ROUND: f64 = 6_755_399_441_055_744.0;
/// ln 2 as a sum of two parts; the low bits of the first are zero, so that its products with small integers are exact.
const LN2_HIGH: f64 = 6.931_471_803_691_238e-1;
const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;

/// Taylor coefficients 1 / n! for n = 0..=12; for |x| <= ln 2 / 2 the next term is below 2e-16 of the result.
const TERMS: [f64; 13] = [
    1.0,
    1.0,
    1.0 / 2.0,
    1.0 / 6.0,
    1.0 / 24.0,
    1.0 / 120.0,
    1.0 / 720.0,
    1.0 / 5_040.0,
    1.0 / 40_320.0,
    1.0 / 362_880.0,
    1.0 / 3_628_800.0,
    1.0 / 39_916_800.0,
    1.0 / 479_001_600.0,
];

/// `exp(x)` for `x <= 0`, with a relative error below 1e-15. Below -700, where the true value is under 1e-304, the result
/// is `exp(-700)`, which is negligible in any sum that contains `exp(0)`.
#[inline(always)]
pub(crate) fn exp_nonpositive(x: f64) -> f64 {
    let x = if x > -700.0 { x } else { -700.0 };
    let shifted = x * std::f64::consts::LOG2_E + ROUND;
    let whole = shifted - ROUND;
    let rest = (x - whole * LN2_HIGH) - whole * LN2_LOW;
    let mut value = TERMS[12];
    let mut n = 12;
    while n > 0 {
        n -= 1;
        value = value * rest + TERMS[n];
    }
    // The low bits of `shifted` are the exponent; the polynomial is in [0.7, 1.5] and stays normal after scaling.
    f64::from_bits(value.to_bits().wrapping_add(shifted.to_bits() << 52))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_standard_library() {
        for i in 0..200_000 {
            let x = -700.0 * f64::from(i) / 200_000.0;
            let (ours, true_value) = (exp_nonpositive(x), x.exp());
            assert!((ours / true_value - 1.0).abs() < 1e-15, "exp({x}) = {true_value:e}, ours {ours:e}");
        }
        assert_eq!(exp_nonpositive(0.0), 1.0);
        assert!(exp_nonpositive(-1e9) < 1e-300);
        assert!(exp_nonpositive(f64::NEG_INFINITY) < 1e-300);
    }
}
