//! Matrix products on all cores. Every element of a result is computed in one fixed order, whatever the number of
//! threads or of rows beside it.
//!
//! Sums are in f64: the products of f32 numbers are exact in it, so that what cancels in a sum does not show.

use rayon::prelude::*;

use crate::Fault;
use crate::rounded::rounded_rows;
use crate::weight::Weight;

/// Products below this many multiplications are not worth a second thread.
const SERIAL: usize = 1 << 16;
const LANES: usize = 8;
/// Rows of a weight that are unpacked and used together.
const TILE: usize = 4;
/// Rows of a result that one task computes.
const BLOCK: usize = 32;

fn widened(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&v| v.into()).collect()
}

/// Dot products of a row with `C` rows: for each, eight running sums in order, then their sum.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "the fixed bounds are what the compiler unrolls by")]
fn dots<const C: usize>(x: &[f64], w: [&[f64]; C]) -> [f32; C] {
    let (x, x_tail) = x.as_chunks::<LANES>();
    let w = w.map(|row| row.as_chunks::<LANES>());
    let mut sums = [[0.0; LANES]; C];
    let steps = w.iter().map(|row| row.0.len()).fold(x.len(), usize::min);
    for step in 0..steps {
        for c in 0..C {
            for lane in 0..LANES {
                sums[c][lane] += x[step][lane] * w[c].0[step][lane];
            }
        }
    }
    std::array::from_fn(|c| {
        let tail: f64 = x_tail.iter().zip(w[c].1).map(|(x, w)| x * w).sum();
        (total(&sums[c]) + tail) as f32
    })
}

#[inline(always)]
fn total(lanes: &[f64; LANES]) -> f64 {
    ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]))
}

/// A row of signed codes times a row of numbers, unscaled: the bits of [`dots`] with the codes unpacked.
fn signed_dot(x: &[f64], codes: &[i8]) -> f32 {
    let ((x, x_tail), (codes, codes_tail)) = (x.as_chunks::<LANES>(), codes.as_chunks::<LANES>());
    let mut sums = [0.0; LANES];
    for (x, codes) in x.iter().zip(codes) {
        for lane in 0..LANES {
            sums[lane] += x[lane] * f64::from(codes[lane]);
        }
    }
    let tail: f64 = x_tail.iter().zip(codes_tail).map(|(x, &code)| x * f64::from(code)).sum();
    (total(&sums) + tail) as f32
}

/// Runs `task(index, chunk)` over chunks of `out`, on all cores if `work` is worth it.
fn over_chunks(out: &mut [f32], chunk: usize, work: usize, task: impl Fn(usize, &mut [f32]) + Sync) {
    let chunk = chunk.max(1);
    if work < SERIAL {
        out.chunks_mut(chunk).enumerate().for_each(|(i, chunk)| task(i, chunk));
    } else {
        out.par_chunks_mut(chunk).enumerate().for_each(|(i, chunk)| task(i, chunk));
    }
}

/// x [rows, inner] times the rows of a packed weight [outputs, inner]: out [rows, outputs].
pub(crate) fn weight_rows(
    x: &[f32],
    weight: &Weight,
    inner: usize,
    outputs: usize,
    out: &mut [f32],
) -> Result<(), Fault> {
    if weight.is_rounded() {
        return rounded_rows(x, weight, inner, outputs, out);
    }
    let x = &widened(x)[..];
    let rows = out.len() / outputs.max(1);
    let scales = weight.signed_rows();
    if rows == 1
        && let Some(signed) = &scales
    {
        over_chunks(out, BLOCK, inner * outputs, |block, out| {
            for (i, out) in out.iter_mut().enumerate() {
                let row = block * BLOCK + i;
                let codes = &signed.codes[row * inner..(row + 1) * inner];
                *out = signed_dot(x, codes) * signed.scale[row / signed.rows_per_scale];
            }
        });
        return Ok(());
    }
    rows_by_rows(x, inner, outputs, out, |row, unpacked, narrow| match &scales {
        // Unscaled, so that a row's product is the same bits as when it is computed alone.
        Some(signed) => {
            let codes = &signed.codes[row * inner..(row + 1) * inner];
            unpacked.iter_mut().zip(codes).for_each(|(out, &code)| *out = code.into());
        }
        None => {
            weight.row(row, narrow);
            unpacked.iter_mut().zip(narrow).for_each(|(out, &mut value)| *out = value.into());
        }
    });
    if let Some(signed) = scales {
        for row in out.chunks_exact_mut(outputs) {
            row.iter_mut().enumerate().for_each(|(i, v)| *v *= signed.scale[i / signed.rows_per_scale]);
        }
    }
    Ok(())
}

/// x [rows, inner] times the rows of a dense weight [outputs, inner]: out [rows, outputs].
pub(crate) fn dense_rows(x: &[f32], weight: &[f32], inner: usize, outputs: usize, out: &mut [f32]) {
    rows_by_rows(&widened(x), inner, outputs, out, |row, unpacked, _| {
        let row = &weight[row * inner..(row + 1) * inner];
        unpacked.iter_mut().zip(row).for_each(|(out, &value)| *out = value.into());
    });
}

/// Tiles of weight rows, each row unpacked by `fetch(row, buffer, work space)`, times all rows of `x`.
fn rows_by_rows(
    x: &[f64],
    inner: usize,
    outputs: usize,
    out: &mut [f32],
    fetch: impl Fn(usize, &mut [f64], &mut [f32]) + Sync,
) {
    let rows = out.len() / outputs.max(1);
    if rows == 0 || inner == 0 {
        return;
    }
    let x_row = |row: usize| &x[row * inner..(row + 1) * inner];
    // Computed as [outputs, rows], which tasks can share by outputs, then turned.
    let mut turned = vec![0.0; out.len()];
    over_chunks(&mut turned, BLOCK * rows, out.len() * inner, |block, turned| {
        let (mut unpacked, mut narrow) = (vec![0.0; TILE * inner], vec![0.0; inner]);
        for (tile, turned) in turned.chunks_mut(TILE * rows).enumerate() {
            let count = turned.len() / rows;
            for (i, unpacked) in unpacked.chunks_exact_mut(inner).take(count).enumerate() {
                fetch(block * BLOCK + tile * TILE + i, unpacked, &mut narrow);
            }
            if count == TILE {
                let w: [&[f64]; TILE] = std::array::from_fn(|i| &unpacked[i * inner..(i + 1) * inner]);
                for row in 0..rows {
                    let sums = dots(x_row(row), w);
                    (0..TILE).for_each(|c| turned[c * rows + row] = sums[c]);
                }
            } else {
                for c in 0..count {
                    let w = &unpacked[c * inner..(c + 1) * inner];
                    for row in 0..rows {
                        turned[c * rows + row] = dots(x_row(row), [w])[0];
                    }
                }
            }
        }
    });
    for (row, out) in out.chunks_exact_mut(outputs).enumerate() {
        out.iter_mut().enumerate().for_each(|(i, v)| *v = turned[i * rows + row]);
    }
}

/// Products of batches of matrices: x [rows, inner] times y [inner, columns], either stored the other way round if its
/// flag says so. `offsets` hold, per batch, which matrix of `x` and of `y` is meant, in matrices.
pub(crate) fn matrix_product(
    (x, flip_x): (&[f32], bool),
    (y, flip_y): (&[f32], bool),
    (rows, inner, columns): (usize, usize, usize),
    offsets: &[[usize; 2]],
    out: &mut [f32],
) {
    if out.is_empty() || inner == 0 {
        return;
    }
    let rows_per_task = BLOCK.min(rows);
    let mut tasks = Vec::new();
    for (batch, mut out) in out.chunks_exact_mut(rows * columns).enumerate() {
        let mut first = 0;
        while first < rows {
            let count = rows_per_task.min(rows - first);
            let (head, tail) = out.split_at_mut(count * columns);
            tasks.push((offsets[batch], first, head));
            (out, first) = (tail, first + count);
        }
    }
    let work = tasks.len() * rows_per_task * inner * columns;
    let task = |([i, j], first, out): ([usize; 2], usize, &mut [f32])| {
        let (x, y) = (&x[i * rows * inner..][..rows * inner], &y[j * inner * columns..][..inner * columns]);
        let element = |row: usize, k: usize| if flip_x { x[k * rows + row] } else { x[row * inner + k] };
        if flip_y {
            let y = widened(y);
            let mut row = vec![0.0f64; inner];
            for (r, out) in out.chunks_exact_mut(columns).enumerate() {
                row.iter_mut().enumerate().for_each(|(k, v)| *v = element(first + r, k).into());
                let mut tiles = out.chunks_exact_mut(TILE);
                for (tile, out) in tiles.by_ref().enumerate() {
                    let w: [&[f64]; TILE] = std::array::from_fn(|c| &y[(tile * TILE + c) * inner..][..inner]);
                    out.copy_from_slice(&dots(&row, w));
                }
                let done = columns / TILE * TILE;
                for (c, out) in tiles.into_remainder().iter_mut().enumerate() {
                    *out = dots(&row, [&y[(done + c) * inner..][..inner]])[0];
                }
            }
        } else {
            let mut sums = vec![0.0f64; columns];
            for (r, out) in out.chunks_exact_mut(columns).enumerate() {
                sums.fill(0.0);
                for k in 0..inner {
                    let factor = f64::from(element(first + r, k));
                    sums.iter_mut()
                        .zip(&y[k * columns..])
                        .for_each(|(sum, &y)| *sum += factor * f64::from(y));
                }
                out.iter_mut().zip(&sums).for_each(|(out, &sum)| *out = sum as f32);
            }
        }
    };
    if work < SERIAL { tasks.into_iter().for_each(task) } else { tasks.into_par_iter().for_each(task) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    #[test]
    fn products_are_right_however_the_factors_are_stored() {
        let (rows, inner, columns) = (37, 21, 9);
        let (x, y) = (numbers(2 * rows * inner, 1), numbers(inner * columns, 2));
        let offsets = [[0, 0], [1, 0]];
        for (flip_x, flip_y) in [(false, false), (true, false), (false, true), (true, true)] {
            let mut out = vec![0.0; 2 * rows * columns];
            matrix_product((&x, flip_x), (&y, flip_y), (rows, inner, columns), &offsets, &mut out);
            for batch in 0..2 {
                for r in 0..rows {
                    for c in 0..columns {
                        let want: f64 = (0..inner)
                            .map(|k| {
                                let x_at = if flip_x { k * rows + r } else { r * inner + k };
                                let y_at = if flip_y { c * inner + k } else { k * columns + c };
                                f64::from(x[batch * rows * inner + x_at]) * f64::from(y[y_at])
                            })
                            .sum();
                        let got = out[(batch * rows + r) * columns + c];
                        assert!(
                            (f64::from(got) - want).abs() < 1e-5,
                            "{flip_x} {flip_y} {r} {c}: {got} {want}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_is_the_same_bits_alone_and_among_others() {
        let (rows, inner, outputs) = (5, 70, 38);
        let (x, weight) = (numbers(rows * inner, 3), numbers(outputs * inner, 4));
        let mut together = vec![0.0; rows * outputs];
        dense_rows(&x, &weight, inner, outputs, &mut together);
        for row in 0..rows {
            let mut alone = vec![0.0; outputs];
            dense_rows(&x[row * inner..(row + 1) * inner], &weight, inner, outputs, &mut alone);
            assert_eq!(alone, together[row * outputs..(row + 1) * outputs]);
        }
    }
}
