//! Independent parts side by side.
//!
//! Most of the time goes into operations that run on one thread each, so whole batches are computed beside each other.
//! Results are taken in the order of the parts, so that sums do not depend on which is done first.

use rayon::prelude::*;

use crate::CalibrateError;

/// Computes `part` of every item, `side_by_side` at a time, and hands the results to `take` in order.
pub(crate) fn in_order<T: Sync, R: Send>(
    items: &[T],
    side_by_side: usize,
    part: impl Fn(usize, &T) -> Result<R, CalibrateError> + Sync,
    mut take: impl FnMut(usize, R) -> Result<(), CalibrateError>,
) -> Result<(), CalibrateError> {
    for (chunk, items) in items.chunks(side_by_side.max(1)).enumerate() {
        let first = chunk * side_by_side.max(1);
        let results: Vec<_> =
            items.par_iter().enumerate().map(|(index, item)| part(first + index, item)).collect();
        for (index, result) in results.into_iter().enumerate() {
            take(first + index, result?)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_and_the_first_error_ends_it() {
        let mut seen = Vec::new();
        let take = |index, value| {
            seen.push((index, value));
            Ok(())
        };
        let part = |_, item: &i32| {
            if *item == 40 { Err(CalibrateError::Cancelled) } else { Ok(item + 1) }
        };
        let done = in_order(&[10, 20, 30, 40, 50], 2, part, take);
        assert!(matches!(done, Err(CalibrateError::Cancelled)));
        assert_eq!(seen, [(0, 11), (1, 21), (2, 31)]);
    }
}
