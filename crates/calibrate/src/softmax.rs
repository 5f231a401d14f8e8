//! Probabilities from rows of logits.

use rayon::prelude::*;

/// Replaces logits by probabilities.
pub(crate) fn softmax_in_place(row: &mut [f32]) {
    let largest = row.iter().copied().fold(f32::MIN, f32::max);
    let mut sum = 0.0f64;
    for value in row.iter_mut() {
        *value = (*value - largest).exp();
        sum += f64::from(*value);
    }
    let inverse = (1.0 / sum) as f32;
    row.iter_mut().for_each(|value| *value *= inverse);
}

/// Replaces the student's logits by the derivative of the sum of KL(teacher || student) by them, times `factor`;
/// returns the sum of the divergences. Both are [rows, vocab]; the teacher's logits are overwritten.
pub(crate) fn divergence(teacher: &mut [f32], student: &mut [f32], vocab: usize, factor: f32) -> f64 {
    let rows: Vec<f64> = teacher
        .par_chunks_mut(vocab)
        .zip(student.par_chunks_mut(vocab))
        .map(|(teacher, student)| {
            let size = |row: &[f32]| {
                let largest = row.iter().copied().fold(f32::MIN, f32::max);
                let sum: f64 = row.iter().map(|v| f64::from((v - largest).exp())).sum();
                f64::from(largest) + sum.ln()
            };
            let (p_size, q_size) = (size(teacher) as f32, size(student) as f32);
            let mut sum = 0.0;
            for (teacher, student) in teacher.iter().zip(student.iter_mut()) {
                let (p_log, q_log) = (teacher - p_size, *student - q_size);
                let (p, q) = (p_log.exp(), q_log.exp());
                sum += f64::from(p * (p_log - q_log));
                *student = factor * (q - p);
            }
            sum
        })
        .collect();
    rows.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_derivative_is_that_of_the_divergence() {
        let teacher = [0.3f32, -1.0, 2.0, 0.5];
        let student = [0.1f32, -0.5, 1.5, 1.0];
        let at = |student: [f32; 4]| divergence(&mut teacher.clone(), &mut student.clone(), 4, 1.0);
        let mut slopes = student;
        assert!(divergence(&mut teacher.clone(), &mut slopes, 4, 1.0) > 0.0);
        for index in 0..4 {
            let (mut up, mut down) = (student, student);
            up[index] += 1e-2;
            down[index] -= 1e-2;
            let measured = (at(up) - at(down)) / 2e-2;
            assert!((measured - f64::from(slopes[index])).abs() < 1e-4);
        }
        assert!(at(teacher).abs() < 1e-7);
    }
}
