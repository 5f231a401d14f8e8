//! Tensor by tensor, row by row, against the bound of its encoding.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use q35_architecture::{TensorSpec, tensor_table};
use q35_inference::{CancelToken, WeightError, Weights};
use q35_metrics::VectorError;
use serde::{Deserialize, Serialize};

use crate::{ParityError, Progress, Stage, Storage};

/// Elements of one piece of work.
const PIECE: usize = 1 << 20;
/// RMS error of a tensor in steps, above which even a calibrated recipe does not explain it. Rounding to nearest
/// has 1/sqrt(12) = 0.29; error feedback and clipping were never above 0.7 in what we measured.
const CALIBRATED_RMS_STEPS: f64 = 1.5;
/// The same of a single group: a wrong scale moves a whole group by several steps.
const CALIBRATED_GROUP_RMS_STEPS: f64 = 4.0;

/// What became of one tensor.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct TensorReport {
    /// Name below the text tower.
    pub name: String,
    /// The kind of tensor: "linear", "embedding", "norm" and so on.
    pub class: String,
    /// The decoder layer, if it is in one.
    pub layer: Option<usize>,
    /// How it is stored: "4-bit/64", "bf16".
    pub storage: String,
    /// Bits of an element, scales included.
    pub bits_per_weight: f64,
    /// Number of elements.
    pub elements: u64,
    /// Length of the error relative to the length of the tensor.
    pub relative_error: f64,
    /// Cosine of the angle to the source.
    pub cosine: f64,
    /// Root mean square error in steps of the encoding; absent for floats.
    pub rms_steps: Option<f64>,
    /// Largest error as a multiple of what the encoding explains: above 1 is outside.
    pub excess: f64,
    /// The element with the largest such multiple.
    pub worst: Option<WorstElement>,
    /// Rows with an element outside the bound.
    pub rows_outside: usize,
    /// Rows in all.
    pub rows: usize,
    /// Whether everything is explained.
    pub passed: bool,
    /// Why it probably is as it is, when it did not pass.
    pub cause: Option<String>,
    /// Whether it could not be read at all.
    pub unreadable: bool,
}

/// An element of a tensor that is furthest from what it may be.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq)]
pub struct WorstElement {
    /// Row.
    pub row: usize,
    /// Column.
    pub column: usize,
    /// The source's value.
    pub expected: f64,
    /// The candidate's value.
    pub found: f64,
    /// The largest error that the encoding explains there.
    pub allowed: f64,
}

/// All tensors.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct WeightCheck {
    /// In the order of computation.
    pub tensors: Vec<TensorReport>,
    /// Bits of an element over all tensors, scales included.
    pub bits_per_weight: f64,
    /// The same over quantized tensors only; 0 if there are none.
    pub bits_per_quantized_weight: f64,
}

impl WeightCheck {
    /// Tensors that are not explained by their encoding.
    pub fn failed(&self) -> impl Iterator<Item = &TensorReport> {
        self.tensors.iter().filter(|tensor| !tensor.passed)
    }
}

/// Compares every tensor of `candidate` with `source`; `storage` says how the candidate holds each.
///
/// Both must have the same configuration as far as shapes go. Works on `threads` threads, a piece of a tensor each.
///
/// # Errors
/// A tensor cannot be read, or `cancel` was used.
pub fn compare_weights(
    source: &dyn Weights,
    candidate: &dyn Weights,
    storage: &(dyn Fn(&TensorSpec) -> Storage + Sync),
    threads: usize,
    cancel: &CancelToken,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<WeightCheck, ParityError> {
    let table = tensor_table(source.config());
    let width = |spec: &TensorSpec| spec.shape[1..].iter().product::<usize>().max(1);
    let mut jobs = Vec::new();
    for (tensor, spec) in table.iter().enumerate() {
        // A vector is one row of its own length to the reader, but one element a row to the trait.
        let step = (PIECE / width(spec)).max(1);
        jobs.extend(
            (0..spec.shape[0]).step_by(step).map(|row| (tensor, row..(row + step).min(spec.shape[0]))),
        );
    }
    let parts: Mutex<Vec<(usize, Part)>> = Mutex::new(Vec::with_capacity(jobs.len()));
    let failure: Mutex<Option<WeightError>> = Mutex::new(None);
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let work = || {
        let (mut expected, mut found) = (Vec::new(), Vec::new());
        while !cancel.is_cancelled() {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some((tensor, rows)) = jobs.get(index) else { break };
            let spec = &table[*tensor];
            if let Err(error) = source.read_rows(&spec.name, rows.clone(), &mut expected) {
                failure.lock().expect("no panic holds it").get_or_insert(error);
                break;
            }
            // A tensor of the candidate that holds no numbers is an answer, and not a reason to stop.
            let part = match candidate.read_rows(&spec.name, rows.clone(), &mut found) {
                Ok(()) => Part::of(spec, storage(spec), rows.start, &expected, &found),
                Err(error) => Part::unreadable(expected.len() / width(spec), error.message),
            };
            parts.lock().expect("no panic holds it").push((index, part));
            let done = 1 + done.fetch_add(1, Ordering::Relaxed);
            progress(Progress { stage: Stage::Weights, done: done as u64, total: jobs.len() as u64 });
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.max(1) {
            scope.spawn(work);
        }
        work();
    });
    if let Some(error) = failure.into_inner().expect("all threads are done") {
        return Err(error.into());
    }
    if cancel.is_cancelled() {
        return Err(ParityError::Cancelled);
    }
    let mut parts = parts.into_inner().expect("all threads are done");
    parts.sort_by_key(|(index, _)| *index);
    let mut merged: Vec<Part> = table.iter().map(|_| Part::default()).collect();
    for (index, part) in parts {
        merged[jobs[index].0].merge(part);
    }
    let mut check = WeightCheck::default();
    let (mut bits, mut elements, mut quantized_bits, mut quantized) = (0.0, 0.0, 0.0, 0.0);
    for (spec, part) in table.iter().zip(merged) {
        let storage = storage(spec);
        let mut report = part.report(spec, storage, width(spec));
        if let Some(message) = &part.unreadable {
            report.cause = Some(message.clone());
        } else if !report.passed {
            report.cause = super::cause::probable(source, candidate, spec, storage, &part)?;
        }
        let count = report.elements as f64;
        bits += report.bits_per_weight * count;
        elements += count;
        if !matches!(storage, Storage::Float(_)) {
            quantized_bits += report.bits_per_weight * count;
            quantized += count;
        }
        check.tensors.push(report);
    }
    check.bits_per_weight = bits / elements;
    check.bits_per_quantized_weight = if quantized > 0.0 { quantized_bits / quantized } else { 0.0 };
    Ok(check)
}

/// What is known of a part of a tensor.
#[derive(Clone, Debug, Default)]
pub(super) struct Part {
    error: VectorError,
    /// Sum of squared errors in steps, and their number.
    steps_square: f64,
    steps_count: u64,
    excess: f64,
    worst: Option<WorstElement>,
    rows: usize,
    /// The first rows outside, and how many there are.
    pub(super) outside: Vec<usize>,
    rows_outside: usize,
    /// Why its numbers could not be had.
    unreadable: Option<String>,
}

/// So many rows are remembered by number.
const REMEMBERED: usize = 16;

impl Part {
    fn unreadable(rows: usize, message: String) -> Self {
        Self { rows, rows_outside: rows, excess: f64::INFINITY, unreadable: Some(message), ..Self::default() }
    }

    fn of(spec: &TensorSpec, storage: Storage, first_row: usize, expected: &[f32], found: &[f32]) -> Self {
        let width = spec.shape[1..].iter().product::<usize>().max(1);
        let mut part = Self { rows: expected.len() / width, ..Self::default() };
        part.error.add(expected, found);
        let group = storage.group(width);
        for (row, (expected, found)) in
            expected.chunks_exact(width).zip(found.chunks_exact(width)).enumerate()
        {
            let mut outside = false;
            for (index, (source, target)) in expected.chunks(group).zip(found.chunks(group)).enumerate() {
                outside |= part.group(storage, spec, (first_row + row, index * group), source, target);
            }
            if outside {
                part.rows_outside += 1;
                if part.outside.len() < REMEMBERED {
                    part.outside.push(first_row + row);
                }
            }
        }
        part
    }

    /// Whether an element of this group is outside its bound.
    fn group(
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
            // No division but where a record falls. Comparisons with NaN are false: an error that is not a number must
            // count as outside.
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

    fn merge(&mut self, other: Self) {
        self.error.merge(&other.error);
        self.steps_square += other.steps_square;
        self.steps_count += other.steps_count;
        if other.excess > self.excess {
            (self.excess, self.worst) = (other.excess, other.worst);
        }
        self.rows += other.rows;
        self.rows_outside += other.rows_outside;
        self.outside.extend(other.outside);
        self.outside.truncate(REMEMBERED);
        self.unreadable = self.unreadable.take().or(other.unreadable);
    }

    fn report(&self, spec: &TensorSpec, storage: Storage, width: usize) -> TensorReport {
        let rms_steps = (self.steps_count > 0).then(|| (self.steps_square / self.steps_count as f64).sqrt());
        let calibrated = matches!(storage, Storage::Affine { calibrated: true, .. });
        let passed = self.excess <= 1.0
            && !(calibrated && rms_steps.is_some_and(|steps| steps > CALIBRATED_RMS_STEPS));
        TensorReport {
            name: spec.name.clone(),
            class: class_of(spec).to_owned(),
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
            unreadable: self.unreadable.is_some(),
        }
    }

    pub(super) fn rows_outside(&self) -> usize {
        self.rows_outside
    }

    pub(super) fn worst(&self) -> Option<WorstElement> {
        self.worst
    }

    pub(super) fn relative(&self) -> f64 {
        self.error.relative()
    }
}

/// The kind of a tensor, in the words of reports.
pub(crate) fn class_of(spec: &TensorSpec) -> &'static str {
    use q35_architecture::Role;
    match spec.role {
        Role::Embedding => "embedding",
        Role::Head => "head",
        Role::Convolution => "convolution",
        Role::CenteredNorm if spec.layer.is_none() => "final norm",
        Role::CenteredNorm => "norm",
        Role::GatedNorm => "gated norm",
        Role::DecayLog | Role::StepBias => "decay",
        Role::Linear if spec.name.contains(".mlp.") => "mlp projection",
        Role::Linear if spec.name.contains(".self_attn.") => "attention projection",
        Role::Linear => "linear attention projection",
    }
}
