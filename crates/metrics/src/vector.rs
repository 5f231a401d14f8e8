//! Error of a tensor against its expected values.

/// Running sums over pairs of expected and found numbers, of one vector or of the concatenation of several.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct VectorError {
    count: u64,
    dot: f64,
    expected_square: f64,
    found_square: f64,
    difference_square: f64,
    max_abs: f64,
    max_at: u64,
    not_finite: u64,
}

impl VectorError {
    /// Sums over a pair of slices of the same length; excess elements of the longer one are ignored.
    pub fn of(expected: &[f32], found: &[f32]) -> Self {
        let mut sums = Self::default();
        sums.add(expected, found);
        sums
    }

    /// Adds the elements of a pair of slices. Pairs with NaN or infinities are counted and excluded from the sums.
    pub fn add(&mut self, expected: &[f32], found: &[f32]) {
        for (&e, &f) in expected.iter().zip(found) {
            let (e, f) = (f64::from(e), f64::from(f));
            let difference = f - e;
            let at = self.count;
            self.count += 1;
            if !difference.is_finite() {
                self.not_finite += 1;
                continue;
            }
            self.dot += e * f;
            self.expected_square += e * e;
            self.found_square += f * f;
            self.difference_square += difference * difference;
            if difference.abs() > self.max_abs {
                (self.max_abs, self.max_at) = (difference.abs(), at);
            }
        }
    }

    /// Adds the sums over the elements that follow.
    pub fn merge(&mut self, other: &Self) {
        if other.max_abs > self.max_abs {
            (self.max_abs, self.max_at) = (other.max_abs, self.count + other.max_at);
        }
        self.count += other.count;
        self.dot += other.dot;
        self.expected_square += other.expected_square;
        self.found_square += other.found_square;
        self.difference_square += other.difference_square;
        self.not_finite += other.not_finite;
    }

    /// Number of pairs.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Number of pairs with NaN or infinities.
    pub fn not_finite(&self) -> u64 {
        self.not_finite
    }

    /// Cosine of the angle between both vectors; 1 if both are zero, 0 if one is.
    pub fn cosine(&self) -> f64 {
        match (self.expected_square > 0.0, self.found_square > 0.0) {
            (true, true) => {
                (self.dot / (self.expected_square.sqrt() * self.found_square.sqrt())).clamp(-1.0, 1.0)
            }
            (false, false) => 1.0,
            _ => 0.0,
        }
    }

    /// Norm of the difference relative to the norm of the expected vector; infinite if only the latter is zero.
    pub fn relative(&self) -> f64 {
        match (self.difference_square > 0.0, self.expected_square > 0.0) {
            (false, _) => 0.0,
            (true, true) => (self.difference_square / self.expected_square).sqrt(),
            (true, false) => f64::INFINITY,
        }
    }

    /// Root mean square of the difference.
    pub fn rms(&self) -> f64 {
        (self.difference_square / (self.count.max(1)) as f64).sqrt()
    }

    /// Largest absolute difference.
    pub fn max_abs(&self) -> f64 {
        self.max_abs
    }

    /// Index of the pair with the largest absolute difference.
    pub fn max_at(&self) -> u64 {
        self.max_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers() {
        let error = VectorError::of(&[3.0, 4.0], &[3.0, 4.5]);
        assert_eq!((error.max_abs(), error.max_at(), error.count()), (0.5, 1, 2));
        assert!((error.relative() - 0.1).abs() < 1e-12);
        assert!((error.rms() - 0.125f64.sqrt()).abs() < 1e-12);
        assert!((VectorError::of(&[1.0, 0.0], &[0.0, 2.0]).cosine()).abs() < 1e-12);
        assert_eq!(VectorError::of(&[0.0], &[0.0]).cosine(), 1.0);
        assert_eq!(VectorError::of(&[0.0], &[1.0]).relative(), f64::INFINITY);
        assert_eq!(VectorError::of(&[1.0, 1.0], &[f32::NAN, 1.0]).not_finite(), 1);
    }

    #[test]
    fn parts_add_up_to_the_whole() {
        let a: Vec<f32> = (0..50).map(|i| (i as f32).sin()).collect();
        let b: Vec<f32> = (0..50).map(|i| (i as f32).sin() + if i == 33 { 0.5 } else { 0.01 }).collect();
        let whole = VectorError::of(&a, &b);
        let mut parts = VectorError::of(&a[..20], &b[..20]);
        parts.merge(&VectorError::of(&a[20..], &b[20..]));
        assert_eq!(parts.max_at(), whole.max_at());
        assert!((parts.relative() - whole.relative()).abs() < 1e-12);
        assert!((parts.cosine() - whole.cosine()).abs() < 1e-12);
    }
}
