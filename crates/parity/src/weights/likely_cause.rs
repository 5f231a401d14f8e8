//! Likely cause of a tensor's error.

use q35_architecture::TensorSpec;
use q35_inference::Weights;
use q35_metrics::VectorError;

use super::tensor_statistics::TensorStatistics;
use crate::qwen3_5_faults::{FaultyWeights, candidate_faults_of_tensor};
use crate::{ParityError, Storage};

/// Rows on which a fault is tried.
const SAMPLE_ROWS: usize = 96;

/// The known fault, or the damaged rows, that explain a tensor's error; none if nothing does.
pub(super) fn likely_cause(
    source: &dyn Weights,
    candidate: &dyn Weights,
    spec: &TensorSpec,
    storage: Storage,
    statistics: &TensorStatistics,
) -> Result<Option<String>, ParityError> {
    let rows = spec.shape[0];
    if statistics.rows_outside() * 50 <= rows
        || (statistics.rows_outside() == 1 && statistics.relative_error() < 0.5)
    {
        return damaged_rows(source, candidate, spec, storage, statistics);
    }
    let sample: Vec<std::ops::Range<usize>> = if rows <= SAMPLE_ROWS {
        std::iter::once(0..rows).collect()
    } else {
        let half = SAMPLE_ROWS / 2;
        vec![0..half, rows / 2..rows / 2 + half]
    };
    let error_against = |weights: &dyn Weights| -> Result<VectorError, ParityError> {
        let (mut expected, mut found, mut error) = (Vec::new(), Vec::new(), VectorError::default());
        for rows in &sample {
            weights.read_rows(&spec.name, rows.clone(), &mut expected)?;
            candidate.read_rows(&spec.name, rows.clone(), &mut found)?;
            error.add(&expected, &found);
        }
        Ok(error)
    };
    let plain = error_against(source)?.relative();
    let mut best: Option<(f64, String)> = None;
    for fault in candidate_faults_of_tensor(source.config(), spec) {
        let faulty = FaultyWeights::new(source, fault.clone());
        if !faulty.affects(spec) {
            continue;
        }
        let error = error_against(&faulty)?.relative();
        if error < plain / 3.0 && error < 0.5 && best.as_ref().is_none_or(|(least, _)| error < *least) {
            best = Some((error, fault.to_string()));
        }
    }
    if best.is_none() {
        best = constant_factor(source, candidate, spec, &sample, plain)?.map(|cause| (0.0, cause));
    }
    Ok(best.map(|(_, cause)| cause))
}

/// Tests whether the whole tensor is the source times a constant.
fn constant_factor(
    source: &dyn Weights,
    candidate: &dyn Weights,
    spec: &TensorSpec,
    sample: &[std::ops::Range<usize>],
    plain: f64,
) -> Result<Option<String>, ParityError> {
    let (mut expected, mut found) = (Vec::new(), Vec::new());
    let (mut dot, mut square, mut pairs) = (0.0, 0.0, Vec::new());
    for rows in sample {
        source.read_rows(&spec.name, rows.clone(), &mut expected)?;
        candidate.read_rows(&spec.name, rows.clone(), &mut found)?;
        for (&e, &f) in expected.iter().zip(&found) {
            dot += f64::from(e) * f64::from(f);
            square += f64::from(e) * f64::from(e);
            pairs.push((f64::from(e), f64::from(f)));
        }
    }
    if square == 0.0 {
        return Ok(None);
    }
    let factor = dot / square;
    let remaining: f64 = pairs.iter().map(|(e, f)| (f - factor * e).powi(2)).sum();
    let relative = (remaining / square).sqrt();
    Ok((relative < plain / 3.0)
        .then(|| format!("all values are about {factor:.4} times what they should be")))
}

/// Describes the few rows that are wrong, and the error of the worst group.
fn damaged_rows(
    source: &dyn Weights,
    candidate: &dyn Weights,
    spec: &TensorSpec,
    storage: Storage,
    statistics: &TensorStatistics,
) -> Result<Option<String>, ParityError> {
    let Some(worst) = statistics.worst() else { return Ok(None) };
    let (mut expected, mut found) = (Vec::new(), Vec::new());
    source.read_rows(&spec.name, worst.row..worst.row + 1, &mut expected)?;
    candidate.read_rows(&spec.name, worst.row..worst.row + 1, &mut found)?;
    let group = storage.group(expected.len());
    let columns = worst.column / group * group..(worst.column / group * group + group).min(expected.len());
    let groups_outside = expected
        .chunks(group)
        .zip(found.chunks(group))
        .filter(|(source, target)| {
            let bound = storage.bound(source, spec.role);
            source.iter().zip(*target).any(|(&e, &f)| {
                let error = (f64::from(f) - f64::from(e)).abs();
                !error.is_finite() || error > bound.allowed(f64::from(e))
            })
        })
        .count();
    let rows: Vec<String> = statistics.first_rows_outside().iter().take(4).map(usize::to_string).collect();
    let more = if statistics.rows_outside() > rows.len() { ", ..." } else { "" };
    let place = format!("row {}{more}", rows.join(", "));
    if matches!(storage, Storage::Float(_)) || groups_outside > 1 {
        return Ok(Some(format!("only {place}; the rest of the tensor is as it should be")));
    }
    // With the bias right, found - edge = c (expected - edge): the slope of a line through the group is the scale's
    // error, whatever the bias.
    let slope = slope(&expected[columns.clone()], &found[columns.clone()]);
    let description = match slope {
        Some(slope) if (slope - 1.0).abs() > 0.02 => {
            format!("the scale of one group looks {slope:.3} times what it should be")
        }
        _ => "one group is shifted or damaged".to_owned(),
    };
    Ok(Some(format!("{description}: {place}, columns {}..{}", columns.start, columns.end)))
}

/// Slope of the least-squares line through the points (`x`, `y`).
fn slope(x: &[f32], y: &[f32]) -> Option<f64> {
    let n = x.len() as f64;
    let mean = |v: &[f32]| v.iter().map(|&a| f64::from(a)).sum::<f64>() / n;
    let (mx, my) = (mean(x), mean(y));
    let (mut covariance, mut variance) = (0.0, 0.0);
    for (&a, &b) in x.iter().zip(y) {
        covariance += (f64::from(a) - mx) * (f64::from(b) - my);
        variance += (f64::from(a) - mx).powi(2);
    }
    (variance > 0.0).then(|| covariance / variance)
}
