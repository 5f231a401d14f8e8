//! Bit allocation: the least total loss within a size limit.

/// One encoding of a tensor: its size and the loss that it causes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct StorageOption {
    pub(crate) bytes: u64,
    pub(crate) loss: f64,
}

/// Returns the index of the chosen option of each tensor, or `None` if not even the smallest options fit the budget.
///
/// Greedy: starts with the smallest option of each tensor and repeatedly takes the step with the largest decrease of loss
/// per byte that still fits. Steps follow each tensor's lower convex hull, on which the greedy order is optimal up to the
/// last step.
pub(crate) fn allocate(tensors: &[Vec<StorageOption>], budget_bytes: u64) -> Option<Vec<usize>> {
    let hulls: Vec<Vec<usize>> = tensors.iter().map(|options| hull(options)).collect();
    let mut at = vec![0usize; tensors.len()];
    let bytes_of = |tensor: usize, step: usize| tensors[tensor][hulls[tensor][step]].bytes;
    let mut spent: u64 = (0..tensors.len()).map(|t| bytes_of(t, 0)).sum();
    if spent > budget_bytes {
        return None;
    }
    loop {
        let mut best: Option<(f64, usize)> = None;
        for (tensor, hull) in hulls.iter().enumerate() {
            let Some(next) = hull.get(at[tensor] + 1) else { continue };
            let (now, next) = (tensors[tensor][hull[at[tensor]]], tensors[tensor][*next]);
            if spent - now.bytes + next.bytes > budget_bytes {
                continue;
            }
            let gain = (now.loss - next.loss) / (next.bytes - now.bytes) as f64;
            if best.is_none_or(|(most, _)| gain > most) {
                best = Some((gain, tensor));
            }
        }
        let Some((_, tensor)) = best else { break };
        spent = spent - bytes_of(tensor, at[tensor]) + bytes_of(tensor, at[tensor] + 1);
        at[tensor] += 1;
    }
    Some(at.iter().zip(&hulls).map(|(at, hull)| hull[*at]).collect())
}

/// Indices of the options on the lower convex hull of loss over bytes, by increasing size.
fn hull(options: &[StorageOption]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..options.len()).collect();
    order.sort_by(|a, b| {
        let (a, b) = (&options[*a], &options[*b]);
        a.bytes.cmp(&b.bytes).then(a.loss.total_cmp(&b.loss))
    });
    let mut on_hull: Vec<usize> = Vec::new();
    for index in order {
        let c = options[index];
        if on_hull.last().is_some_and(|last| options[*last].loss <= c.loss) {
            continue;
        }
        while let [.., before, last] = on_hull[..] {
            let slope = |a: StorageOption, b: StorageOption| (b.loss - a.loss) / (b.bytes - a.bytes) as f64;
            if slope(options[before], options[last]) < slope(options[last], c) {
                break;
            }
            on_hull.pop();
        }
        on_hull.push(index);
    }
    on_hull
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(list: &[(u64, f64)]) -> Vec<StorageOption> {
        list.iter().map(|(bytes, loss)| StorageOption { bytes: *bytes, loss: *loss }).collect()
    }

    #[test]
    fn bytes_go_where_they_save_most() {
        let tensors = [options(&[(10, 8.0), (20, 2.0), (30, 1.0)]), options(&[(10, 3.0), (20, 1.0)])];
        assert_eq!(allocate(&tensors, 20), Some(vec![0, 0]));
        assert_eq!(allocate(&tensors, 30), Some(vec![1, 0]));
        assert_eq!(allocate(&tensors, 40), Some(vec![1, 1]));
        assert_eq!(allocate(&tensors, 1000), Some(vec![2, 1]));
        assert_eq!(allocate(&tensors, 19), None);
    }

    #[test]
    fn a_choice_that_is_larger_and_worse_is_never_taken() {
        let tensors = [options(&[(10, 1.0), (20, 2.0), (30, 0.5)])];
        assert_eq!(allocate(&tensors, 25), Some(vec![0]));
        assert_eq!(allocate(&tensors, 30), Some(vec![2]));
    }

    #[test]
    fn a_poor_bargain_does_not_hide_a_good_one_behind_it() {
        let tensors = [options(&[(10, 10.0), (11, 9.9), (12, 0.0)]), options(&[(10, 1.0), (12, 0.0)])];
        assert_eq!(allocate(&tensors, 22), Some(vec![2, 0]));
    }
}
