//! Error statistics of a tensor or of a chunk of its rows.

use q35_architecture::TensorSpec;
use q35_metrics::VectorError;

use super::report::{TensorReport, WorstElement, tensor_class};
use crate::Storage;

/// Largest RMS error of a tensor with a calibrated recipe, in quantization steps. Rounding to nearest has
/// 1/sqrt(12) = 0.29; error feedback and clipping stay below 0.7.
const CALIBRATED_RMS_STEPS: f64 = 1.5;
/// Largest RMS error of a single group with a calibrated recipe: a wrong scale moves a whole group by several steps.
const CALIBRATED_GROUP_RMS_STEPS: f64 = 4.0;
/// Number of rows outside the bound that are recorded by index.
const RECORDED_ROWS: usize = 16;

/// Error statistics of a tensor or of a chunk of its rows.
#[derive(Clone, Debug, Default)]
pub(super) struct TensorStatistics {
    error: VectorError,
    /// Sum of squared errors in quantization steps.
    steps_square: f64,
    /// Number of elements in `steps_square`.
    steps_count: u64,
    excess: f64,
    worst: Option<WorstElement>,
    rows: usize,
    /// The first rows outside the bound.
    first_rows_outside: Vec<usize>,
    rows_outside: usize,
    /// Error of a failed read.
    read_error: Option<String>,
}

impl TensorStatistics {
    /// Statistics of `rows` rows that could not be read.
    pub(super) fn unreadable(rows: usize, message: String) -> Self {
        Self { rows, rows_outside: rows, excess: f64::INFINITY, read_error: Some(message), ..Self::default() }
    }

    /// Compares the rows of a chunk that begins at `first_row`, both [rows, width].
    pub(super) fn of_chunk(
        spec: &TensorSpec,
        storage: Storage,
        first_row: usize,
        expected: &[f32],
        found: &[f32],
    ) -> Self {
        let width = spec.shape[1..].iter().product::<usize>().max(1);
        let mut statistics = Self { rows: expected.len() / width, ..Self::default() };
        statistics.error.add(expected, found);
        let group = storage.group(width);
        for (row, (expected, found)) in
            expected.chunks_exact(width).zip(found.chunks_exact(width)).enumerate()
        {
            let mut outside = false;
            for (index, (source, target)) in expected.chunks(group).zip(found.chunks(group)).enumerate() {
                let origin = (first_row + row, index * group);
                outside |= statistics.add_group(storage, spec, origin, source, target);
            }
            if outside {
                statistics.rows_outside += 1;
                if statistics.first_rows_outside.len() < RECORDED_ROWS {
                    statistics.first_rows_outside.push(first_row + row);
                }
            }
        }
        statistics
    }

    /// Adds a group; returns true if one of its elements is outside the bound.
    fn add_group(
        &mut self,
        storage: Storage,
        spec: &TensorSpec,
        (row, column): (usize, usize),
        source: &[f32],
        target: &[f32],
    ) -> bool {
        let bound = storage.bound(source, spec.role);
        let (mut square, mut excess, mut at) = (0.0, 0.0, 0);
        for (index, (&expected, &found)) in source.iter().zip(target).enumerate() {
            let expected = f64::from(expected);
            let error = (f64::from(found) - expected).abs();
            let allowed = bound.allowed(expected);
            // Divides only for a new maximum. Comparisons with NaN are false: an error that is NaN counts as outside.
            if error <= excess * allowed {
                square += error * error;
                continue;
            }
            (excess, at) = (if error.is_finite() { error / allowed } else { f64::MAX }, index);
            square += if error.is_finite() { error * error } else { 0.0 };
        }
        if bound.step > 0.0 {
            let in_steps = square / (bound.step * bound.step);
            self.steps_square += in_steps;
            self.steps_count += source.len() as u64;
            if let Storage::Affine { calibrated: true, .. } = storage {
                excess = excess.max((in_steps / source.len() as f64).sqrt() / CALIBRATED_GROUP_RMS_STEPS);
            }
        }
        if excess > self.excess {
            self.excess = excess;
            self.worst = Some(WorstElement {
                row,
                column: column + at,
                expected: f64::from(source[at]),
                found: f64::from(target[at]),
                allowed: bound.allowed(f64::from(source[at])),
            });
        }
        excess > 1.0
    }

    /// Adds the statistics of the following rows.
    pub(super) fn merge(&mut self, other: Self) {
        self.error.merge(&other.error);
        self.steps_square += other.steps_square;
        self.steps_count += other.steps_count;
        if other.excess > self.excess {
            (self.excess, self.worst) = (other.excess, other.worst);
        }
        self.rows += other.rows;
        self.rows_outside += other.rows_outside;
        self.first_rows_outside.extend(other.first_rows_outside);
        self.first_rows_outside.truncate(RECORDED_ROWS);
        self.read_error = self.read_error.take().or(other.read_error);
    }

    /// The report of the whole tensor, without a cause.
    pub(super) fn report(&self, spec: &TensorSpec, storage: Storage, width: usize) -> TensorReport {
        let rms_steps = (self.steps_count > 0).then(|| (self.steps_square / self.steps_count as f64).sqrt());
        let calibrated = matches!(storage, Storage::Affine { calibrated: true, .. });
        let passed = self.excess <= 1.0
            && !(calibrated && rms_steps.is_some_and(|steps| steps > CALIBRATED_RMS_STEPS));
        TensorReport {
            name: spec.name.clone(),
            class: tensor_class(spec).to_owned(),
            layer: spec.layer,
            storage: storage.to_string(),
            bits_per_weight: storage.bits_per_weight(width),
            elements: self.error.count(),
            relative_error: self.error.relative(),
            cosine: self.error.cosine(),
            rms_steps,
            excess: self.excess,
            worst: self.worst,
            rows_outside: self.rows_outside,
            rows: self.rows,
            passed,
            cause: None,
            unreadable: self.read_error.is_some(),
        }
    }

    pub(super) fn read_error(&self) -> Option<&str> {
        self.read_error.as_deref()
    }

    pub(super) fn rows_outside(&self) -> usize {
        self.rows_outside
    }

    pub(super) fn first_rows_outside(&self) -> &[usize] {
        &self.first_rows_outside
    }

    pub(super) fn worst(&self) -> Option<WorstElement> {
        self.worst
    }

    pub(super) fn relative_error(&self) -> f64 {
        self.error.relative()
    }
}
