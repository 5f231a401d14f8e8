//! Calibration curve: the candidate's confidence against its agreement with the reference.

use crate::{RowComparison, Top1};

/// Top-1 confidence of the candidate against agreement with the reference, in bins of equal width.
///
/// Rounding changes the top-1 token where confidence is low; disagreement at high confidence indicates a fault.
#[derive(Clone, Debug, PartialEq)]
pub struct Calibration {
    bins: Vec<CalibrationBin>,
}

/// One bin of a [`Calibration`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CalibrationBin {
    /// Positions in the bin.
    pub positions: usize,
    /// Positions with the reference's top-1 token, ties included.
    pub agreeing: usize,
    /// Sum of the candidate's top-1 probabilities.
    pub confidence_sum: f64,
}

impl CalibrationBin {
    /// Mean confidence; none for an empty bin.
    pub fn confidence(&self) -> Option<f64> {
        (self.positions > 0).then(|| self.confidence_sum / self.positions as f64)
    }

    /// Share of agreeing positions; none for an empty bin.
    pub fn agreement(&self) -> Option<f64> {
        (self.positions > 0).then(|| self.agreeing as f64 / self.positions as f64)
    }
}

impl Calibration {
    /// A curve of `bins` bins (at least one) over confidences from 0 to 1.
    pub fn new(bins: usize) -> Self {
        Self { bins: vec![CalibrationBin::default(); bins.max(1)] }
    }

    /// Adds one position.
    pub fn push(&mut self, row: &RowComparison) {
        let last = self.bins.len() - 1;
        let place = (row.candidate_confidence * self.bins.len() as f64) as usize;
        let bin = &mut self.bins[place.min(last)];
        bin.positions += 1;
        bin.agreeing += usize::from(row.top1 != Top1::Different);
        bin.confidence_sum += row.candidate_confidence;
    }

    /// The bins, in ascending order of confidence.
    pub fn bins(&self) -> &[CalibrationBin] {
        &self.bins
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare_rows;

    #[test]
    fn positions_fall_into_the_bin_of_their_confidence() {
        let mut calibration = Calibration::new(10);
        calibration.push(&compare_rows(&[0.0, 0.0], &[0.0, 0.0]).unwrap());
        calibration.push(&compare_rows(&[0.0, 90.0], &[90.0, 0.0]).unwrap());
        let bins = calibration.bins();
        assert_eq!((bins[5].positions, bins[5].agreeing), (1, 1));
        assert_eq!((bins[9].positions, bins[9].agreeing), (1, 0));
        assert_eq!(bins[5].confidence(), Some(0.5));
        assert_eq!(bins[0].agreement(), None);
    }
}
