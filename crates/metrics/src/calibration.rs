//! Does the candidate know when it speaks like the reference?

use crate::{RowComparison, Top1};

/// Top-1 confidence of the candidate against agreement with the reference, in bins of equal width.
///
/// Where a model is sure, it should agree; disagreement at high confidence is a fault and not noise of rounding.
#[derive(Clone, Debug, PartialEq)]
pub struct Calibration {
    bins: Vec<CalibrationBin>,
}

/// One bin of confidence.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CalibrationBin {
    /// Positions in it.
    pub positions: usize,
    /// Positions whose likeliest token was the reference's, ties included.
    pub agreeing: usize,
    /// Sum of the candidate's top-1 probabilities.
    pub confidence_sum: f64,
}

impl CalibrationBin {
    /// Mean confidence, if there was any position.
    pub fn confidence(&self) -> Option<f64> {
        (self.positions > 0).then(|| self.confidence_sum / self.positions as f64)
    }

    /// Part that agreed, if there was any position.
    pub fn agreement(&self) -> Option<f64> {
        (self.positions > 0).then(|| self.agreeing as f64 / self.positions as f64)
    }
}

impl Calibration {
    /// `bins` bins over confidences from 0 to 1; at least one.
    pub fn new(bins: usize) -> Self {
        Self { bins: vec![CalibrationBin::default(); bins.max(1)] }
    }

    /// Counts one position.
    pub fn push(&mut self, row: &RowComparison) {
        let last = self.bins.len() - 1;
        let place = (row.candidate_confidence * self.bins.len() as f64) as usize;
        let bin = &mut self.bins[place.min(last)];
        bin.positions += 1;
        bin.agreeing += usize::from(row.top1 != Top1::Different);
        bin.confidence_sum += row.candidate_confidence;
    }

    /// The bins, from confidence 0 up.
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
