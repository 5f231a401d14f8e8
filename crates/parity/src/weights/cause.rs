//! Why a tensor is not what it should be.

use q35_architecture::TensorSpec;
use q35_inference::Weights;
use q35_metrics::VectorError;

use super::compare::Part;
use crate::disguise::{Disguised, suspects_for_tensor};
use crate::{ParityError, Storage};

/// Rows that a suspicion is tried on.
const SAMPLE: usize = 96;

/// The mistake, or the place, that explains a tensor's error; none if nothing does.
pub(super) fn probable(
    source: &dyn Weights,
    candidate: &dyn Weights,
    spec: &TensorSpec,
    storage: Storage,
    part: &Part,
) -> Result<Option<String>, ParityError> {
    let rows = spec.shape[0];
    if part.rows_outside() * 50 <= rows || (part.rows_outside() == 1 && part.relative() < 0.5) {
        return single_place(source, candidate, spec, storage, part);
    }
    let sample: Vec<std::ops::Range<usize>> = if rows <= SAMPLE {
        std::iter::once(0..rows).collect()
    } else {
        let half = SAMPLE / 2;
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
    for mistake in suspects_for_tensor(source.config(), spec) {
        let disguised = Disguised::new(source, mistake.clone());
        if !disguised.touches(spec) {
            continue;
        }
        let error = error_against(&disguised)?.relative();
        if error < plain / 3.0 && error < 0.5 && best.as_ref().is_none_or(|(least, _)| error < *least) {
            best = Some((error, mistake.to_string()));
        }
    }
    if best.is_none() {
        best = scaled(source, candidate, spec, &sample, plain)?.map(|words| (0.0, words));
    }
    Ok(best.map(|(_, words)| words))
}

/// The whole tensor is the source times a number.
fn scaled(
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
    let left: f64 = pairs.iter().map(|(e, f)| (f - factor * e).powi(2)).sum();
    let relative = (left / square).sqrt();
    Ok((relative < plain / 3.0)
        .then(|| format!("all values are about {factor:.4} times what they should be")))
}

/// Few rows are wrong: say which, and what became of the worst group.
fn single_place(
    source: &dyn Weights,
    candidate: &dyn Weights,
    spec: &TensorSpec,
    storage: Storage,
    part: &Part,
) -> Result<Option<String>, ParityError> {
    let Some(worst) = part.worst() else { return Ok(None) };
    let (mut expected, mut found) = (Vec::new(), Vec::new());
    source.read_rows(&spec.name, worst.row..worst.row + 1, &mut expected)?;
    candidate.read_rows(&spec.name, worst.row..worst.row + 1, &mut found)?;
    let group = storage.group(expected.len());
    let columns = worst.column / group * group..(worst.column / group * group + group).min(expected.len());
    let outside_here = expected
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
    let rows: Vec<String> = part.outside.iter().take(4).map(usize::to_string).collect();
    let more = if part.rows_outside() > rows.len() { ", ..." } else { "" };
    let place = format!("row {}{more}", rows.join(", "));
    if matches!(storage, Storage::Float(_)) || outside_here > 1 {
        return Ok(Some(format!("only {place}; the rest of the tensor is as it should be")));
    }
    // With the bias right, found - edge = c (expected - edge): the slope of a line through the group is the scale's
    // error, whatever the bias.
    let slope = slope(&expected[columns.clone()], &found[columns.clone()]);
    let words = match slope {
        Some(slope) if (slope - 1.0).abs() > 0.02 => {
            format!("the scale of one group looks {slope:.3} times what it should be")
        }
        _ => "one group is shifted or damaged".to_owned(),
    };
    Ok(Some(format!("{words}: {place}, columns {}..{}", columns.start, columns.end)))
}

/// Slope of the least-squares line of `y` over `x`.
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
