//! Which tensor gets how many bits: the least loss within a number of bytes.

/// One way to store a tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Choice {
    pub(crate) bytes: u64,
    pub(crate) loss: f64,
}

/// For each tensor the index of its choice. Starts from everybody's smallest choice and buys, again and again, the
/// improvement with the most loss saved per byte (along each tensor's lower convex hull, on which this greedy order is
/// optimal up to the last purchase), then whatever else still fits.
pub(crate) fn allocate(tensors: &[Vec<Choice>], budget_bytes: u64) -> Option<Vec<usize>> {
    let hulls: Vec<Vec<usize>> = tensors.iter().map(|choices| hull(choices)).collect();
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

/// Indices of the choices on the lower convex hull of loss over bytes, by size.
fn hull(choices: &[Choice]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..choices.len()).collect();
    order.sort_by(|a, b| {
        let (a, b) = (&choices[*a], &choices[*b]);
        a.bytes.cmp(&b.bytes).then(a.loss.total_cmp(&b.loss))
    });
    let mut kept: Vec<usize> = Vec::new();
    for index in order {
        let c = choices[index];
        if kept.last().is_some_and(|last| choices[*last].loss <= c.loss) {
            continue;
        }
        while let [.., before, last] = kept[..] {
            let slope = |a: Choice, b: Choice| (b.loss - a.loss) / (b.bytes - a.bytes) as f64;
            if slope(choices[before], choices[last]) < slope(choices[last], c) {
                break;
            }
            kept.pop();
        }
        kept.push(index);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choices(list: &[(u64, f64)]) -> Vec<Choice> {
        list.iter().map(|(bytes, loss)| Choice { bytes: *bytes, loss: *loss }).collect()
    }

    #[test]
    fn bytes_go_where_they_save_most() {
        let tensors = [choices(&[(10, 8.0), (20, 2.0), (30, 1.0)]), choices(&[(10, 3.0), (20, 1.0)])];
        assert_eq!(allocate(&tensors, 20), Some(vec![0, 0]));
        assert_eq!(allocate(&tensors, 30), Some(vec![1, 0]));
        assert_eq!(allocate(&tensors, 40), Some(vec![1, 1]));
        assert_eq!(allocate(&tensors, 1000), Some(vec![2, 1]));
        assert_eq!(allocate(&tensors, 19), None);
    }

    #[test]
    fn a_choice_that_is_larger_and_worse_is_never_taken() {
        let tensors = [choices(&[(10, 1.0), (20, 2.0), (30, 0.5)])];
        assert_eq!(allocate(&tensors, 25), Some(vec![0]));
        assert_eq!(allocate(&tensors, 30), Some(vec![2]));
    }

    #[test]
    fn a_poor_bargain_does_not_hide_a_good_one_behind_it() {
        let tensors = [choices(&[(10, 10.0), (11, 9.9), (12, 0.0)]), choices(&[(10, 1.0), (12, 0.0)])];
        assert_eq!(allocate(&tensors, 22), Some(vec![2, 0]));
    }
}
