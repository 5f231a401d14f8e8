//! Elementwise functions, norms and softmax.

use crate::simd::{Isa, Kernel, Simd};

/// e^x to within 2 units in the last place; x is clamped to -87..=88. Cephes' `expf` polynomial.
#[inline(always)]
pub(crate) fn exp<S: Simd>(simd: S, x: S::F32) -> S::F32 {
    let x = simd.min(simd.max(x, simd.splat(-87.0)), simd.splat(88.0));
    let n = simd.round_to_i32(simd.mul(x, simd.splat(std::f32::consts::LOG2_E)));
    let whole = simd.to_f32(n);
    // ln 2 split in two (Cody-Waite): the first part has so few bits that its multiples are exact.
    let r = simd.fma(whole, simd.splat(-0.693_359_4), x);
    let r = simd.fma(whole, simd.splat(2.121_944_4e-4), r);
    let mut sum = simd.splat(1.987_569_1e-4);
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
        sum = simd.fma(sum, r, simd.splat(coefficient));
    }
    let fraction = simd.add(simd.fma(sum, simd.mul(r, r), r), simd.splat(1.0));
    simd.mul(fraction, simd.exp2i(n))
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(simd: S, x: S::F32) -> S::F32 {
    let one = simd.splat(1.0);
    simd.div(one, simd.add(one, exp(simd, simd.sub(simd.splat(0.0), x))))
}

/// x sigmoid(x).
#[inline(always)]
pub(crate) fn silu<S: Simd>(simd: S, x: S::F32) -> S::F32 {
    let one = simd.splat(1.0);
    simd.div(x, simd.add(one, exp(simd, simd.sub(simd.splat(0.0), x))))
}

/// Sum of squares: four accumulators in rotation, the last vector zero-padded.
#[inline(always)]
pub(crate) fn sum_of_squares<S: Simd>(simd: S, x: &[f32]) -> f32 {
    let (vectors, rest) = x.as_chunks::<16>();
    let mut sums = [simd.splat(0.0); 4];
    for four in vectors.chunks(4) {
        for (sum, vector) in sums.iter_mut().zip(four) {
            let x = simd.load(vector);
            *sum = simd.fma(x, x, *sum);
        }
    }
    let x = simd.load(&zero_padded(rest));
    sums[0] = simd.fma(x, x, sums[0]);
    simd.reduce_add(simd.add(simd.add(sums[0], sums[1]), simd.add(sums[2], sums[3])))
}

#[inline(always)]
pub(crate) fn zero_padded(rest: &[f32]) -> [f32; 16] {
    let mut last = [0.0; 16];
    last[..rest.len()].copy_from_slice(rest);
    last
}

/// Loads up to sixteen elements, zero-padded.
#[inline(always)]
pub(crate) fn load_partial<S: Simd>(simd: S, part: &[f32]) -> S::F32 {
    match part.first_chunk() {
        Some(whole) => simd.load(whole),
        None => simd.load(&zero_padded(part)),
    }
}

/// Stores the first `part.len()` lanes, at most sixteen.
#[inline(always)]
pub(crate) fn store_partial<S: Simd>(simd: S, value: S::F32, part: &mut [f32]) {
    match part.first_chunk_mut() {
        Some(whole) => simd.store(value, whole),
        None => {
            let mut last = [0.0; 16];
            simd.store(value, &mut last);
            part.copy_from_slice(&last[..part.len()]);
        }
    }
}

/// Evaluates an expression over vectors of slices of one length, the last vector zero-padded.
macro_rules! over_vectors {
    ($simd:ident, $out:expr, [$($input:ident),*], |$($x:ident),*| $body:expr) => {{
        let (vectors, rest) = $out.as_chunks_mut::<16>();
        let count = vectors.len();
        let _inputs = ($(assert_eq!($input.len(), 16 * count + rest.len(), "lengths of operands"),)*);
        for (at, out) in vectors.iter_mut().enumerate() {
            $(let $x = $simd.load(&$input.as_chunks::<16>().0[at]);)*
            $simd.store($body, out);
        }
        if !rest.is_empty() {
            $(let $x = load_partial($simd, $input.as_chunks::<16>().1);)*
            store_partial($simd, $body, rest);
        }
    }};
}

/// Declares a public function on slices and its kernel.
macro_rules! kernel_fn {
    ($(#[$doc:meta])* $name:ident<$life:lifetime>($($arg:ident: $ty:ty),*), $kernel:ident, $simd:ident => $body:block) => {
        $(#[$doc])*
        pub fn $name<$life>(isa: Isa, $($arg: $ty),*) {
            isa.run($kernel { $($arg),* });
        }

        struct $kernel<$life> {
            $($arg: $ty),*
        }

        impl Kernel for $kernel<'_> {
            type Output = ();

            #[inline(always)]
            fn run<S: Simd>(self, $simd: S) {
                let Self { $($arg),* } = self;
                $body
            }
        }
    };
}

kernel_fn! {
    /// Rounds every value to the nearest IEEE half, ties to even; infinite beyond its range.
    round_to_f16<'a>(values: &'a mut [f32]), RoundToF16, simd => {
        let (vectors, rest) = values.as_chunks_mut::<16>();
        for vector in vectors {
            simd.store(simd.round_to_f16(simd.load(vector)), vector);
        }
        store_partial(simd, simd.round_to_f16(load_partial(simd, rest)), rest);
    }
}

kernel_fn! {
    /// `out` = weight * x / sqrt(mean(x^2) + eps) for every row of `x` and `out` [rows, width]; `weight` is `[width]`.
    ///
    /// # Panics
    /// If the sizes do not fit.
    rms_norm<'a>(x: &'a [f32], weight: &'a [f32], eps: f32, out: &'a mut [f32]), RmsNorm, simd => {
        assert_eq!(x.len(), out.len(), "lengths of operands");
        for (x, out) in x.chunks_exact(weight.len()).zip(out.chunks_exact_mut(weight.len())) {
            let mean = sum_of_squares(simd, x) / weight.len() as f32;
            let factor = simd.splat(1.0 / (mean + eps).sqrt());
            over_vectors!(simd, out, [x, weight], |x, w| simd.mul(simd.mul(x, factor), w));
        }
    }
}

kernel_fn! {
    /// `gate` = silu(gate) * up.
    ///
    /// # Panics
    /// If the lengths differ.
    silu_multiply<'a>(gate: &'a mut [f32], up: &'a [f32]), SiluMultiply, simd => {
        for (gate, up) in gate.chunks_mut(16).zip(up.chunks(16)) {
            let value = simd.mul(silu(simd, load_partial(simd, gate)), load_partial(simd, up));
            store_partial(simd, value, gate);
        }
    }
}

kernel_fn! {
    /// `x` += `y`.
    ///
    /// # Panics
    /// If the lengths differ.
    add_assign<'a>(x: &'a mut [f32], y: &'a [f32]), AddAssign, simd => {
        let _ = simd;
        assert_eq!(x.len(), y.len(), "lengths of operands");
        for (x, y) in x.iter_mut().zip(y) {
            *x += y;
        }
    }
}

kernel_fn! {
    /// `out` = e^x to within 2 units in the last place, with x clamped to -87..=88.
    ///
    /// # Panics
    /// If the lengths differ.
    exponential<'a>(x: &'a [f32], out: &'a mut [f32]), Exponential, simd => {
        over_vectors!(simd, out, [x], |x| exp(simd, x));
    }
}

kernel_fn! {
    /// `out` = softmax(x) over at least one element.
    ///
    /// # Panics
    /// If the lengths differ.
    softmax<'a>(x: &'a [f32], out: &'a mut [f32]), Softmax, simd => {
        let largest = simd.splat(max_value(simd, x));
        over_vectors!(simd, out, [x], |x| exp(simd, simd.sub(x, largest)));
        let mut sum = simd.splat(0.0);
        let (vectors, rest) = out.as_chunks::<16>();
        for vector in vectors {
            sum = simd.add(sum, simd.load(vector));
        }
        let factor = simd.splat(1.0 / simd.reduce_add(simd.add(sum, simd.load(&zero_padded(rest)))));
        for chunk in out.chunks_mut(16) {
            store_partial(simd, simd.mul(load_partial(simd, chunk), factor), chunk);
        }
    }
}

/// Maximum of `x`; minus infinity if it is empty.
#[inline(always)]
pub(crate) fn max_value<S: Simd>(simd: S, x: &[f32]) -> f32 {
    let (vectors, rest) = x.as_chunks::<16>();
    let mut largest = simd.splat(f32::NEG_INFINITY);
    for vector in vectors {
        largest = simd.max(largest, simd.load(vector));
    }
    rest.iter().fold(simd.reduce_max(largest), |largest, &x| largest.max(x))
}

/// Maximum of `|x|`; zero if it is empty.
#[inline(always)]
pub(crate) fn max_magnitude<S: Simd>(simd: S, x: &[f32]) -> f32 {
    let (vectors, rest) = x.as_chunks::<16>();
    let mut largest = simd.splat(0.0);
    for vector in vectors {
        largest = simd.max(largest, simd.abs(simd.load(vector)));
    }
    rest.iter().fold(simd.reduce_max(largest), |largest, x| largest.max(x.abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_its_bound_everywhere() {
        let x: Vec<f32> = (-87_000..=88_000).step_by(7).map(|i| i as f32 / 1000.0 + 1.7e-5).collect();
        for isa in Isa::available() {
            let mut out = vec![0.0; x.len()];
            exponential(isa, &x, &mut out);
            for (&x, &y) in x.iter().zip(&out) {
                let expected = f64::from(x.clamp(-87.0, 88.0)).exp();
                let error = (f64::from(y) / expected - 1.0).abs();
                assert!(error < 2.4e-7, "exp({x}) = {y}, off by {error:e}, {}", isa.name());
            }
        }
    }

    #[test]
    fn exp_is_clamped_at_its_bounds() {
        let mut out = [0.0; 3];
        exponential(Isa::detect(), &[-1000.0, f32::NEG_INFINITY, 1000.0], &mut out);
        assert!(out[0] > 0.0 && out[0] < 1.7e-38 && out[1] == out[0]);
        assert!(out[2] > 1.6e38 && out[2].is_finite());
    }

    #[test]
    fn all_instruction_sets_agree_over_odd_lengths() {
        let x: Vec<f32> = (0..101).map(|i| (i as f32 * 0.37).sin() * 5.0).collect();
        for length in [1, 15, 16, 17, 63, 64, 65, 101] {
            let mut results = Isa::available().into_iter().map(|isa| {
                let (x, weight) = (&x[..length], &x[101 - length..]);
                let (mut normed, mut soft, mut gated) = (vec![0.0; length], vec![0.0; length], x.to_vec());
                rms_norm(isa, x, weight, 1e-6, &mut normed);
                softmax(isa, x, &mut soft);
                silu_multiply(isa, &mut gated, weight);
                [normed, soft, gated].concat()
            });
            let first = results.next().unwrap();
            for other in results {
                assert_eq!(first, other, "length {length}");
            }
            let soft: f32 = first[length..2 * length].iter().sum();
            assert!((soft - 1.0).abs() < 1e-6);
            let gate = f64::from(x[0]);
            let expected = gate / (1.0 + (-gate).exp()) * f64::from(x[101 - length]);
            assert!((f64::from(first[2 * length]) - expected).abs() < 1e-6);
        }
    }

    #[test]
    fn rms_norm_is_the_formula() {
        let mut out = [0.0; 4];
        rms_norm(Isa::detect(), &[3.0, 4.0, 1.0, 1.0], &[2.0, 1.0], 0.5, &mut out);
        let (first, second) = ((12.5f32 + 0.5).sqrt(), (1.0f32 + 0.5).sqrt());
        for (got, expected) in out.into_iter().zip([6.0 / first, 4.0 / first, 2.0 / second, 1.0 / second]) {
            assert!((got - expected).abs() < 1e-6, "{got} for {expected}");
        }
    }
}
