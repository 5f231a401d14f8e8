//! Parallel map with an ordered reduction.
//!
//! Most of candle's operations run on one thread, so whole batches are computed in parallel. Results are reduced in the
//! order of the items, so that sums do not depend on which finishes first.

use rayon::prelude::*;

use crate::CalibrateError;

/// Maps every item by `map`, `parallel` items at a time, and passes the results to `reduce` in order.
pub(crate) fn in_order<T: Sync, R: Send>(
    items: &[T],
    parallel: usize,
    map: impl Fn(usize, &T) -> Result<R, CalibrateError> + Sync,
    mut reduce: impl FnMut(usize, R) -> Result<(), CalibrateError>,
) -> Result<(), CalibrateError> {
    for (chunk, items) in items.chunks(parallel.max(1)).enumerate() {
        let first = chunk * parallel.max(1);
        let results: Vec<_> =
            items.par_iter().enumerate().map(|(index, item)| map(first + index, item)).collect();
        for (index, result) in results.into_iter().enumerate() {
            reduce(first + index, result?)?;
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
        let reduce = |index, value| {
            seen.push((index, value));
            Ok(())
        };
        let map = |_, item: &i32| {
            if *item == 40 { Err(CalibrateError::Cancelled) } else { Ok(item + 1) }
        };
        let done = in_order(&[10, 20, 30, 40, 50], 2, map, reduce);
        assert!(matches!(done, Err(CalibrateError::Cancelled)));
        assert_eq!(seen, [(0, 11), (1, 21), (2, 31)]);
    }
}
