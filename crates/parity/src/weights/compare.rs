//! Comparison of every tensor, row by row, with the bound of its encoding.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use q35_architecture::{TensorSpec, tensor_table};
use q35_inference::{CancelToken, WeightError, Weights};

use super::likely_cause::likely_cause;
use super::report::WeightCheck;
use super::tensor_statistics::TensorStatistics;
use crate::{ParityError, Progress, Stage, Storage};

/// Elements of one chunk, the unit of parallel work.
const CHUNK_ELEMENTS: usize = 1 << 20;

/// Compares every tensor of `candidate` with `source`; `storage` returns the candidate's encoding of each.
///
/// Both must have the same shapes. Uses `threads` threads, each working on a chunk of a tensor.
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
    let mut chunks = Vec::new();
    for (tensor, spec) in table.iter().enumerate() {
        // `Weights` reads a vector as one element per row.
        let step = (CHUNK_ELEMENTS / width(spec)).max(1);
        chunks.extend(
            (0..spec.shape[0]).step_by(step).map(|row| (tensor, row..(row + step).min(spec.shape[0]))),
        );
    }
    let results: Mutex<Vec<(usize, TensorStatistics)>> = Mutex::new(Vec::with_capacity(chunks.len()));
    let failure: Mutex<Option<WeightError>> = Mutex::new(None);
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let work = || {
        let (mut expected, mut found) = (Vec::new(), Vec::new());
        while !cancel.is_cancelled() {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some((tensor, rows)) = chunks.get(index) else { break };
            let spec = &table[*tensor];
            if let Err(error) = source.read_rows(&spec.name, rows.clone(), &mut expected) {
                failure.lock().expect("no panic holds it").get_or_insert(error);
                break;
            }
            // A candidate tensor that cannot be read is a result, not an error of the check.
            let statistics = match candidate.read_rows(&spec.name, rows.clone(), &mut found) {
                Ok(()) => TensorStatistics::of_chunk(spec, storage(spec), rows.start, &expected, &found),
                Err(error) => TensorStatistics::unreadable(expected.len() / width(spec), error.message),
            };
            results.lock().expect("no panic holds it").push((index, statistics));
            let done = 1 + done.fetch_add(1, Ordering::Relaxed);
            progress(Progress { stage: Stage::Weights, done: done as u64, total: chunks.len() as u64 });
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
    let mut results = results.into_inner().expect("all threads are done");
    results.sort_by_key(|(index, _)| *index);
    let mut merged = vec![TensorStatistics::default(); table.len()];
    for (index, statistics) in results {
        merged[chunks[index].0].merge(statistics);
    }
    let mut check = WeightCheck::default();
    let (mut bits, mut elements, mut quantized_bits, mut quantized) = (0.0, 0.0, 0.0, 0.0);
    for (spec, statistics) in table.iter().zip(merged) {
        let storage = storage(spec);
        let mut report = statistics.report(spec, storage, width(spec));
        if let Some(message) = statistics.read_error() {
            report.cause = Some(message.to_owned());
        } else if !report.passed {
            report.cause = likely_cause(source, candidate, spec, storage, &statistics)?;
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
