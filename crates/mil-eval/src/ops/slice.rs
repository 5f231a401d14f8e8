//! Slices and slice updates.

use std::sync::Arc;

use super::shape::{rearranged, rearranged_runs};
use super::{Call, Table};
use crate::Fault;
use crate::tensor::{Data, Odometer, Tensor, strides};

pub(super) const TABLE: Table =
    &[("slice_by_index", slice_by_index), ("slice_by_size", slice_by_size), ("slice_update", slice_update)];

/// The selected indices along each axis.
struct Slice {
    /// First index along each axis.
    starts: Vec<usize>,
    /// Signed step along each axis.
    steps: Vec<i64>,
    /// Number of indices along each axis.
    counts: Vec<usize>,
    /// True for axes that the result does not have.
    squeezed: Vec<bool>,
}

impl Slice {
    /// Reads `begin`, `end`, `stride` and the masks with numpy's rules: negative indices count from the back, and both ends
    /// are clamped to the axis.
    fn new(call: &mut Call, shape: &[usize]) -> Result<Self, Fault> {
        let rank = shape.len();
        let (begin, end) = (call.ints("begin")?, call.ints("end")?);
        let steps = call.optional_ints("stride")?.unwrap_or_else(|| vec![1; rank]);
        let mut mask =
            |name: &str| Ok::<_, Fault>(call.optional_bools(name)?.unwrap_or_else(|| vec![false; rank]));
        let (open_begin, open_end, squeezed) =
            (mask("begin_mask")?, mask("end_mask")?, mask("squeeze_mask")?);
        for length in [begin.len(), end.len(), steps.len(), open_begin.len(), open_end.len(), squeezed.len()]
        {
            if length != rank {
                return Err(Fault::invalid(format!("a slice of {length} axes of a tensor of rank {rank}")));
            }
        }
        let (mut starts, mut counts) = (Vec::new(), Vec::new());
        for i in 0..rank {
            let (size, step) = (shape[i] as i64, steps[i]);
            if step == 0 {
                return Err(Fault::invalid("a slice with a step of zero"));
            }
            let (low, high) = if step > 0 { (0, size) } else { (-1, size - 1) };
            let from_front = |index: i64| if index < 0 { index + size } else { index };
            if squeezed[i] {
                let at = if open_begin[i] { low.max(0) } else { from_front(begin[i]) };
                if !(0..size).contains(&at) {
                    return Err(Fault::Index { index: begin[i], size: shape[i] });
                }
                starts.push(at as usize);
                counts.push(1);
                continue;
            }
            let first = match (open_begin[i], step > 0) {
                (true, true) => 0,
                (true, false) => size - 1,
                (false, _) => from_front(begin[i]).clamp(low, high),
            };
            let last = match (open_end[i], step > 0) {
                (true, true) => size,
                (true, false) => -1,
                (false, _) => from_front(end[i]).clamp(low, high),
            };
            let distance = if step > 0 { last - first } else { first - last };
            counts.push(distance.max(0).unsigned_abs().div_ceil(step.unsigned_abs()) as usize);
            starts.push(first.max(0) as usize);
        }
        Ok(Self { starts, steps, counts, squeezed })
    }

    /// The result's shape.
    fn shape(&self) -> Vec<usize> {
        self.counts.iter().zip(&self.squeezed).filter(|(_, squeezed)| !**squeezed).map(|(&n, _)| n).collect()
    }

    /// The slice as runs of contiguous elements: their length, and the offset of each, in order.
    fn runs(&self, shape: &[usize]) -> (usize, Vec<usize>) {
        let own = strides(shape);
        // A run spans the innermost axes that are selected entirely, and one selected contiguously.
        let mut outer = shape.len();
        while outer > 0 && self.steps[outer - 1] == 1 && self.counts[outer - 1] == shape[outer - 1] {
            outer -= 1;
        }
        if outer > 0 && self.steps[outer - 1] == 1 {
            outer -= 1;
        }
        let run = self.counts[outer..].iter().product();
        let base: usize = self.starts.iter().zip(&own).map(|(start, step)| start * step).sum();
        let sizes = &self.counts[..outer];
        // Odometers only count up: offsets of negative steps are subtracted.
        let forward = |i: &usize| self.steps[*i] > 0;
        let distance = |i: usize| self.steps[i].unsigned_abs() as usize * own[i];
        let ups = (0..outer).map(|i| if forward(&i) { distance(i) } else { 0 }).collect();
        let downs = (0..outer).map(|i| if forward(&i) { 0 } else { distance(i) }).collect();
        let starts = Odometer::new(sizes, [ups, downs]).map(|[up, down]| base + up - down).collect();
        (run, starts)
    }
}

fn slice_by_index(call: &mut Call) -> Result<Vec<Tensor>, Fault> {
    let x = call.take("x")?;
    let slice = Slice::new(call, x.shape())?;
    let shape = slice.shape();
    if shape.iter().product::<usize>() == x.len() && slice.steps.iter().all(|&step| step == 1) {
        return Ok(vec![x.reshaped(shape)?]);
    }
    if slice.counts.contains(&0) {
        return Ok(vec![rearranged(&x, &shape, std::iter::empty())?]);
    }
    let (run, starts) = slice.runs(x.shape());
    Ok(vec![rearranged_runs(&x, &shape, run, starts.into_iter())?])
}

fn slice_by_size(call: &mut Call) -> Result<Vec<Tensor>, Fault> {
    let x = call.take("x")?;
    let (begin, size) = (call.ints("begin")?, call.ints("size")?);
    if begin.len() != x.rank() || size.len() != x.rank() {
        return Err(Fault::invalid(format!("a slice of {} axes of a rank of {}", begin.len(), x.rank())));
    }
    let mut slice = Slice {
        starts: Vec::new(),
        steps: vec![1; x.rank()],
        counts: Vec::new(),
        squeezed: vec![false; x.rank()],
    };
    for (i, (&begin, &count)) in begin.iter().zip(&size).enumerate() {
        let length = x.shape()[i] as i64;
        let start = if begin < 0 { begin + length } else { begin };
        let count = if count == -1 { length - start } else { count };
        if start < 0 || count < 0 || start.checked_add(count).is_none_or(|end| end > length) {
            return Err(Fault::invalid(format!("{count} elements from {start} of an axis of {length}")));
        }
        slice.starts.push(start as usize);
        slice.counts.push(count as usize);
    }
    let shape = slice.shape();
    if slice.counts.contains(&0) {
        return Ok(vec![rearranged(&x, &shape, std::iter::empty())?]);
    }
    let (run, starts) = slice.runs(x.shape());
    Ok(vec![rearranged_runs(&x, &shape, run, starts.into_iter())?])
}

fn slice_update(call: &mut Call) -> Result<Vec<Tensor>, Fault> {
    let (x, update) = (call.take("x")?, call.take("update")?);
    let slice = Slice::new(call, x.shape())?;
    if slice.shape() != update.shape() {
        return Err(Fault::invalid(format!(
            "an update of {:?} for a slice of {:?}",
            update.shape(),
            slice.shape()
        )));
    }
    if update.is_empty() {
        return Ok(vec![x]);
    }
    let (run, starts) = slice.runs(x.shape());
    Ok(vec![update_slice(x, &update, run, &starts)?])
}

/// Overwrites runs of `x` with the elements of `update`, in place if the elements of `x` are not shared.
fn update_slice(x: Tensor, update: &Tensor, run: usize, starts: &[usize]) -> Result<Tensor, Fault> {
    fn write<T: Copy>(values: &mut Arc<Vec<T>>, update: &[T], run: usize, starts: &[usize]) {
        let values = Arc::make_mut(values);
        for (&start, new) in starts.iter().zip(update.chunks_exact(run)) {
            values[start..start + run].copy_from_slice(new);
        }
    }
    let (shape, mut data) = x.into_parts();
    match (&mut data, update.data()) {
        (Data::Float(values), Data::Float(new)) => write(values, new, run, starts),
        (Data::Int(values), Data::Int(new)) => write(values, new, run, starts),
        (Data::Bool(values), Data::Bool(new)) => write(values, new, run, starts),
        _ => return Err(Fault::invalid("`x` and `update` must be of the same type")),
    }
    Tensor::from_parts(shape, data)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(starts: &[usize], steps: &[i64], counts: &[usize]) -> Slice {
        Slice {
            starts: starts.to_vec(),
            steps: steps.to_vec(),
            counts: counts.to_vec(),
            squeezed: vec![false; starts.len()],
        }
    }

    #[test]
    fn entire_inner_axes_form_one_run() {
        assert_eq!(slice(&[1, 0], &[1, 1], &[2, 4]).runs(&[4, 4]), (8, vec![4]));
        assert_eq!(slice(&[0, 1], &[1, 1], &[2, 2]).runs(&[2, 4]), (2, vec![1, 5]));
        assert_eq!(slice(&[0, 3], &[1, -2], &[2, 2]).runs(&[2, 4]), (1, vec![3, 1, 7, 5]));
        assert_eq!(slice(&[3, 0], &[-1, 1], &[2, 4]).runs(&[4, 4]), (4, vec![12, 8]));
    }
}
