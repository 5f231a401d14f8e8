//! Softmax of a row, and KL divergence with its gradient, in f32: the parts of a training loop.
//!
//! Comparisons that are reported use [`crate::compare_rows`], whose exponentials are in f64.

/// Replaces logits by probabilities, in place.
pub fn softmax_in_place(row: &mut [f32]) {
    let largest = row.iter().copied().fold(f32::MIN, f32::max);
    let mut sum = 0.0f64;
    for value in row.iter_mut() {
        *value = (*value - largest).exp();
        sum += f64::from(*value);
    }
    let inverse = (1.0 / sum) as f32;
    row.iter_mut().for_each(|value| *value *= inverse);
}

/// Returns KL(reference || candidate) of two rows of logits `[vocab]` and replaces the candidate's logits by the
/// gradient of that divergence with respect to them, `q - p`, times `factor`.
pub fn kl_with_gradient(reference: &[f32], candidate: &mut [f32], factor: f32) -> f64 {
    let log_sum_exp = |row: &[f32]| {
        let largest = row.iter().copied().fold(f32::MIN, f32::max);
        let sum: f64 = row.iter().map(|v| f64::from((v - largest).exp())).sum();
        f64::from(largest) + sum.ln()
    };
    let (p_size, q_size) = (log_sum_exp(reference) as f32, log_sum_exp(candidate) as f32);
    let mut divergence = 0.0;
    for (reference, candidate) in reference.iter().zip(candidate.iter_mut()) {
        let (p_log, q_log) = (reference - p_size, *candidate - q_size);
        let (p, q) = (p_log.exp(), q_log.exp());
        divergence += f64::from(p * (p_log - q_log));
        *candidate = factor * (q - p);
    }
    divergence
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gradient_is_that_of_the_divergence() {
        let reference = [0.3f32, -1.0, 2.0, 0.5];
        let candidate = [0.1f32, -0.5, 1.5, 1.0];
        let at = |mut candidate: [f32; 4]| kl_with_gradient(&reference, &mut candidate, 1.0);
        let mut gradient = candidate;
        assert!(kl_with_gradient(&reference, &mut gradient, 1.0) > 0.0);
        for index in 0..4 {
            let (mut up, mut down) = (candidate, candidate);
            up[index] += 1e-2;
            down[index] -= 1e-2;
            let measured = (at(up) - at(down)) / 2e-2;
            assert!((measured - f64::from(gradient[index])).abs() < 1e-4);
        }
        assert!(at(reference).abs() < 1e-7);
    }

    #[test]
    fn probabilities_sum_to_one() {
        let mut row = [1e4f32, 1e4 - 1.0, -1e4];
        softmax_in_place(&mut row);
        assert!((row[0] - 0.731_058_6).abs() < 1e-6 && row[2] == 0.0, "{row:?}");
    }
}
