//! Comparison of two rows of logits for the same position.

use crate::exp::exp_nonpositive;

/// Number of independent partial sums, enough to vectorise and to hide latency.
const LANES: usize = 8;
/// Size of the top-k sets that are compared.
const TOP: usize = 5;

/// Rows that cannot be compared.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RowError {
    /// Rows of different length.
    #[error("rows of different lengths: the reference has {reference} logits, the candidate {candidate}")]
    Length {
        /// Logits of the reference.
        reference: usize,
        /// Logits of the candidate.
        candidate: usize,
    },
    /// An empty row.
    #[error("a row without logits")]
    Empty,
    /// NaN or an infinity, for which softmax is undefined.
    #[error("the {side} logit at index {index} is {value}")]
    NotFinite {
        /// "reference" or "candidate".
        side: &'static str,
        /// Index in the row.
        index: usize,
        /// The number as text, since NaN is not equal to itself.
        value: String,
    },
    /// A target token outside the vocabulary.
    #[error("target {target} is outside a row of {length} logits")]
    Target {
        /// The target.
        target: usize,
        /// Length of the row.
        length: usize,
    },
}

/// Agreement of two rows on the top-1 token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Top1 {
    /// The same index is the largest in both.
    Same,
    /// The indices differ, but one row holds equal logits at both, so that its choice is arbitrary.
    Tied,
    /// The rows prefer different tokens.
    Different,
}

/// Comparison of two rows of logits.
#[derive(Clone, Debug, PartialEq)]
pub struct RowComparison {
    /// KL(reference || candidate) in nats; not negative.
    pub kl: f64,
    /// Agreement on the top-1 token.
    pub top1: Top1,
    /// The reference's top-1 token; the lowest index of equals.
    pub reference_top: usize,
    /// The candidate's top-1 token; the lowest index of equals.
    pub candidate_top: usize,
    /// Reference logit of its own top-1 token minus that of the candidate's top-1 token; 0 if they agree.
    pub margin: f64,
    /// Overlap of both top-5 sets, 0 to 1.
    pub top5_overlap: f64,
    /// Cosine of the angle between the raw logits.
    pub cosine: f64,
    /// Largest absolute difference of raw logits.
    pub max_abs_difference: f64,
    /// Probability of the reference's top-1 token under the reference.
    pub reference_confidence: f64,
    /// Probability of the candidate's top-1 token under the candidate.
    pub candidate_confidence: f64,
    /// Log-sum-exp of the reference's logits; minus a token's logit it is that token's negative log likelihood.
    pub reference_log_sum_exp: f64,
    /// Log-sum-exp of the candidate's logits.
    pub candidate_log_sum_exp: f64,
}

/// Compares the candidate's logits with the reference's, both `[vocab]`.
///
/// # Errors
/// Different lengths, empty rows, NaN or infinities.
pub fn compare_rows(reference: &[f32], candidate: &[f32]) -> Result<RowComparison, RowError> {
    if reference.len() != candidate.len() {
        return Err(RowError::Length { reference: reference.len(), candidate: candidate.len() });
    }
    let tops = [finite_top_indices(reference, "reference")?, finite_top_indices(candidate, "candidate")?];
    let [reference_top, candidate_top] = [tops[0][0], tops[1][0]];
    let peaks = [reference[reference_top], candidate[candidate_top]].map(f64::from);
    let sums = Sums::of(reference, candidate, peaks);

    // With u = a - max a, v = b - max b: KL = sum p (u - v) - ln sum e^u + ln sum e^v.
    let [log_reference, log_candidate] = [sums.reference.ln(), sums.candidate.ln()];
    let kl = sums.weighted_difference / sums.reference - log_reference + log_candidate;
    let norms = sums.reference_square.sqrt() * sums.candidate_square.sqrt();
    let same_direction = sums.reference_square == sums.candidate_square;
    let cosine = match norms {
        0.0 => f64::from(u8::from(same_direction)),
        _ => (sums.dot / norms).clamp(-1.0, 1.0),
    };
    let top1 = if reference_top == candidate_top {
        Top1::Same
    } else if reference[reference_top] == reference[candidate_top]
        || candidate[reference_top] == candidate[candidate_top]
    {
        Top1::Tied
    } else {
        Top1::Different
    };
    let shared = tops[0].iter().filter(|index| tops[1].contains(index)).count();
    Ok(RowComparison {
        kl: kl.max(0.0),
        top1,
        reference_top,
        candidate_top,
        margin: peaks[0] - f64::from(reference[candidate_top]),
        top5_overlap: shared as f64 / tops[0].len() as f64,
        cosine,
        max_abs_difference: sums.max_abs_difference,
        reference_confidence: sums.reference.recip(),
        candidate_confidence: sums.candidate.recip(),
        reference_log_sum_exp: peaks[0] + log_reference,
        candidate_log_sum_exp: peaks[1] + log_candidate,
    })
}

/// Index of the largest logit; the lowest index of equals. None for an empty row. NaN is ignored.
pub fn argmax(row: &[f32]) -> Option<usize> {
    top_indices(row, 1).first().copied()
}

/// Indices of the `count` largest logits in descending order, equals by ascending index. NaN is ignored.
pub fn top_indices(row: &[f32], count: usize) -> Vec<usize> {
    let mut best: Vec<usize> = Vec::with_capacity(count + 1);
    let mut least = f32::NEG_INFINITY;
    for (chunk_index, chunk) in row.chunks(2 * LANES).enumerate() {
        let peak = chunk.iter().copied().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a });
        if best.len() >= count && peak <= least {
            continue;
        }
        for (offset, &value) in chunk.iter().enumerate() {
            if value.is_nan() || (best.len() >= count && value <= least) {
                continue;
            }
            let place = best.partition_point(|&index| row[index] >= value);
            best.insert(place, chunk_index * 2 * LANES + offset);
            best.truncate(count);
            least = best.last().map_or(f32::NEG_INFINITY, |&index| row[index]);
        }
    }
    best
}

/// Log-sum-exp of a row.
///
/// # Errors
/// An empty row, NaN or infinities.
pub fn log_sum_exp(row: &[f32]) -> Result<f64, RowError> {
    let peak = f64::from(row[finite_top_indices(row, "candidate")?[0]]);
    let mut sums = [0.0; LANES];
    let chunks = row.chunks_exact(LANES);
    let tail: f64 = chunks.remainder().iter().map(|&x| exp_nonpositive(f64::from(x) - peak)).sum();
    for chunk in chunks {
        for lane in 0..LANES {
            sums[lane] += exp_nonpositive(f64::from(chunk[lane]) - peak);
        }
    }
    Ok(peak + (sums.iter().sum::<f64>() + tail).ln())
}

/// Negative log likelihood of `target`: `-ln softmax(row)[target]`.
///
/// # Errors
/// A target outside the row, an empty row, NaN or infinities.
pub fn negative_log_likelihood(row: &[f32], target: usize) -> Result<f64, RowError> {
    let logit = row.get(target).ok_or(RowError::Target { target, length: row.len() })?;
    Ok(log_sum_exp(row)? - f64::from(*logit))
}

/// Checks that every logit is finite and returns the indices of the five largest (fewer in a shorter row).
fn finite_top_indices(row: &[f32], side: &'static str) -> Result<Vec<usize>, RowError> {
    if row.is_empty() {
        return Err(RowError::Empty);
    }
    // 0 x finite is 0; 0 x NaN and 0 x infinity are NaN, which propagates through the sum.
    let mut nan_check = [0f32; 2 * LANES];
    let chunks = row.chunks_exact(2 * LANES);
    let tail: f32 = chunks.remainder().iter().map(|x| x * 0.0).sum();
    for chunk in chunks {
        for lane in 0..2 * LANES {
            nan_check[lane] += chunk[lane] * 0.0;
        }
    }
    if (nan_check.iter().sum::<f32>() + tail).is_nan()
        && let Some((index, value)) = row.iter().enumerate().find(|(_, x)| !x.is_finite())
    {
        return Err(RowError::NotFinite { side, index, value: value.to_string() });
    }
    Ok(top_indices(row, TOP))
}

/// The sums of a comparison, computed in one pass over both rows.
#[derive(Clone, Copy, Default)]
struct Sums {
    /// sum e^(a - max a)
    reference: f64,
    /// sum e^(b - max b)
    candidate: f64,
    /// sum e^(a - max a) ((a - max a) - (b - max b))
    weighted_difference: f64,
    dot: f64,
    reference_square: f64,
    candidate_square: f64,
    max_abs_difference: f64,
}

impl Sums {
    fn of(reference: &[f32], candidate: &[f32], peaks: [f64; 2]) -> Self {
        let mut lanes = [Self::default(); LANES];
        let (left, right) = (reference.chunks_exact(LANES), candidate.chunks_exact(LANES));
        let rest = left.remainder().iter().zip(right.remainder());
        for (lane, (&a, &b)) in rest.enumerate() {
            lanes[lane].add(f64::from(a), f64::from(b), peaks);
        }
        for (a, b) in left.zip(right) {
            for lane in 0..LANES {
                lanes[lane].add(f64::from(a[lane]), f64::from(b[lane]), peaks);
            }
        }
        lanes.into_iter().fold(Self::default(), |sum, lane| Self {
            reference: sum.reference + lane.reference,
            candidate: sum.candidate + lane.candidate,
            weighted_difference: sum.weighted_difference + lane.weighted_difference,
            dot: sum.dot + lane.dot,
            reference_square: sum.reference_square + lane.reference_square,
            candidate_square: sum.candidate_square + lane.candidate_square,
            max_abs_difference: sum.max_abs_difference.max(lane.max_abs_difference),
        })
    }

    #[inline(always)]
    fn add(&mut self, a: f64, b: f64, [peak_a, peak_b]: [f64; 2]) {
        let (u, v) = (a - peak_a, b - peak_b);
        let weight = exp_nonpositive(u);
        self.reference += weight;
        self.candidate += exp_nonpositive(v);
        self.weighted_difference += weight * (u - v);
        self.dot += a * b;
        self.reference_square += a * a;
        self.candidate_square += b * b;
        let difference = (a - b).abs();
        self.max_abs_difference =
            if difference > self.max_abs_difference { difference } else { self.max_abs_difference };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition, in f64 and with the standard library's functions.
    fn slow_kl(reference: &[f32], candidate: &[f32]) -> f64 {
        let log_softmax = |row: &[f32]| -> Vec<f64> {
            let peak = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = row.iter().map(|&x| (f64::from(x) - f64::from(peak)).exp()).sum();
            row.iter().map(|&x| f64::from(x) - f64::from(peak) - sum.ln()).collect()
        };
        let (p, q) = (log_softmax(reference), log_softmax(candidate));
        p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>().max(0.0)
    }

    fn rows(length: impl Strategy<Value = usize>) -> impl Strategy<Value = (Vec<f32>, Vec<f32>)> {
        length.prop_flat_map(|n| {
            let row = || prop::collection::vec(-40f32..40.0, n);
            (row(), row())
        })
    }

    proptest! {
        #[test]
        fn kl_is_what_its_definition_gives((a, b) in rows(1usize..200)) {
            let (ours, slow) = (compare_rows(&a, &b).unwrap().kl, slow_kl(&a, &b));
            prop_assert!((ours - slow).abs() <= 1e-11 * (1.0 + slow), "{ours} against {slow}");
        }

        #[test]
        fn kl_is_never_negative_and_zero_on_itself((a, b) in rows(1usize..70)) {
            prop_assert!(compare_rows(&a, &b).unwrap().kl >= 0.0);
            let own = compare_rows(&a, &a).unwrap();
            prop_assert!(own.kl <= 1e-15 && own.top1 == Top1::Same && own.max_abs_difference == 0.0);
            prop_assert!(own.cosine > 1.0 - 1e-12 && own.top5_overlap == 1.0 && own.margin == 0.0);
        }

        // Whole numbers and quarters: adding the constant is exact in f32, so nothing but the shift changes.
        #[test]
        fn adding_a_constant_changes_no_distribution(
            quarters in prop::collection::vec((-160i32..160, -160i32..160), 1..60), shift in -9000i32..9000,
        ) {
            let row = |f: &dyn Fn(&(i32, i32)) -> i32| -> Vec<f32> {
                quarters.iter().map(|pair| f(pair) as f32 / 4.0).collect()
            };
            let (a, b) = (row(&|p| p.0), row(&|p| p.1));
            let moved = row(&|p| p.1 + 4 * shift);
            let (plain, shifted) = (compare_rows(&a, &b).unwrap(), compare_rows(&a, &moved).unwrap());
            prop_assert!((plain.kl - shifted.kl).abs() <= 1e-11 * (1.0 + plain.kl));
            prop_assert_eq!(plain.top1, shifted.top1);
            prop_assert_eq!(plain.top5_overlap, shifted.top5_overlap);
            prop_assert!((plain.candidate_confidence - shifted.candidate_confidence).abs() < 1e-12);
        }

        #[test]
        fn huge_logits_stay_finite((a, b) in rows(2usize..40), sign in prop::sample::select(vec![-1e4f32, 1e4])) {
            let lift = |row: &[f32]| -> Vec<f32> {
                row.iter().enumerate().map(|(i, x)| if i % 2 == 0 { x + sign } else { *x }).collect()
            };
            let (a, b) = (lift(&a), lift(&b));
            let ours = compare_rows(&a, &b).unwrap();
            prop_assert!(ours.kl.is_finite() && ours.candidate_log_sum_exp.is_finite());
            let slow = slow_kl(&a, &b);
            prop_assert!((ours.kl - slow).abs() <= 1e-9 * (1.0 + slow), "{} against {slow}", ours.kl);
        }

        #[test]
        fn top_indices_are_those_of_a_stable_sort(row in prop::collection::vec(-3i8..3, 0..90), count in 0usize..8) {
            let row: Vec<f32> = row.into_iter().map(f32::from).collect();
            let mut order: Vec<usize> = (0..row.len()).collect();
            order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
            order.truncate(count);
            prop_assert_eq!(top_indices(&row, count), order);
        }

        #[test]
        fn likelihoods_sum_to_one(row in prop::collection::vec(-30f32..30.0, 1..50)) {
            let total: f64 = (0..row.len()).map(|i| (-negative_log_likelihood(&row, i).unwrap()).exp()).sum();
            prop_assert!((total - 1.0).abs() < 1e-12);
        }
    }

    #[test]
    fn known_answer() {
        // p = (1/4, 3/4), q = (1/2, 1/2): KL = 1/4 ln 1/2 + 3/4 ln 3/2.
        let row = compare_rows(&[0.0, 3f32.ln()], &[7.0, 7.0]).unwrap();
        let expected = 0.25 * 0.5f64.ln() + 0.75 * 1.5f64.ln();
        assert!((row.kl - expected).abs() < 1e-7, "{}", row.kl);
        assert!((row.reference_confidence - 0.75).abs() < 1e-7);
        assert_eq!(row.candidate_confidence, 0.5);
    }

    #[test]
    fn ties_are_no_disagreement() {
        let cases: [(&str, &[f32], &[f32], Top1); 4] = [
            ("same", &[0.0, 2.0, 1.0], &[0.0, 9.0, 1.0], Top1::Same),
            ("reference cannot choose", &[2.0, 2.0, 1.0], &[0.0, 9.0, 1.0], Top1::Tied),
            ("candidate cannot choose", &[0.0, 9.0, 1.0], &[3.0, 3.0, 1.0], Top1::Tied),
            ("different", &[3.0, 2.0, 1.0], &[2.0, 3.0, 1.0], Top1::Different),
        ];
        for (name, reference, candidate, expected) in cases {
            assert_eq!(compare_rows(reference, candidate).unwrap().top1, expected, "{name}");
        }
        assert_eq!(compare_rows(&[3.0, 2.0, 1.0], &[2.0, 3.0, 1.0]).unwrap().margin, 1.0);
    }

    #[test]
    fn a_difference_of_one_float_step_is_seen() {
        let reference: Vec<f32> = (0..1000).map(|i| ((i * 37) % 101) as f32 / 10.0).collect();
        let mut candidate = reference.clone();
        candidate[100] = candidate[100].next_up();
        let row = compare_rows(&reference, &candidate).unwrap();
        let slow = slow_kl(&reference, &candidate);
        assert!(row.max_abs_difference > 0.0);
        assert!((row.kl - slow).abs() < 1e-14, "{:e} against {slow:e}", row.kl);
    }

    #[test]
    fn what_cannot_be_compared_is_refused() {
        assert_eq!(compare_rows(&[1.0], &[1.0, 2.0]), Err(RowError::Length { reference: 1, candidate: 2 }));
        assert_eq!(compare_rows(&[], &[]), Err(RowError::Empty));
        let broken = compare_rows(&[1.0, 2.0], &[1.0, f32::NAN]).unwrap_err();
        assert_eq!(broken.to_string(), "the candidate logit at index 1 is NaN");
        let broken = compare_rows(&[f32::INFINITY; 40], &[1.0; 40]).unwrap_err();
        assert_eq!(broken.to_string(), "the reference logit at index 0 is inf");
        assert_eq!(negative_log_likelihood(&[1.0], 1), Err(RowError::Target { target: 1, length: 1 }));
    }
}
