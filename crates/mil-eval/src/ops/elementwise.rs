//! Elementwise operators, with broadcasting.

use std::sync::Arc;

use super::{Call, Table, kind};
use crate::Fault;
use crate::tensor::{Data, Odometer, Tensor, broadcast, strides};

pub(super) const TABLE: Table = &[
    ("add", |c| arithmetic(c, |a, b| a + b, i32::wrapping_add)),
    ("sub", |c| arithmetic(c, |a, b| a - b, i32::wrapping_sub)),
    ("mul", |c| arithmetic(c, |a, b| a * b, i32::wrapping_mul)),
    ("real_div", |c| arithmetic(c, |a, b| a / b, floor_div)),
    ("floor_div", |c| arithmetic(c, |a, b| (a / b).floor(), floor_div)),
    ("mod", |c| {
        arithmetic(c, |a, b| a - (a / b).floor() * b, |a, b| a.wrapping_sub(floor_div(a, b).wrapping_mul(b)))
    }),
    ("pow", |c| arithmetic(c, power, integer_power)),
    ("maximum", |c| arithmetic(c, maximum, i32::max)),
    ("minimum", |c| arithmetic(c, minimum, i32::min)),
    ("less", |c| comparison(c, |a, b| a < b, |a, b| a < b)),
    ("less_equal", |c| comparison(c, |a, b| a <= b, |a, b| a <= b)),
    ("greater", |c| comparison(c, |a, b| a > b, |a, b| a > b)),
    ("greater_equal", |c| comparison(c, |a, b| a >= b, |a, b| a >= b)),
    ("equal", |c| comparison(c, |a, b| a == b, |a, b| a == b)),
    ("not_equal", |c| comparison(c, |a, b| a != b, |a, b| a != b)),
    ("logical_and", |c| logical(c, |a, b| a & b)),
    ("logical_or", |c| logical(c, |a, b| a | b)),
    ("logical_xor", |c| logical(c, |a, b| a ^ b)),
    ("logical_not", logical_not),
    ("select", select),
    ("identity", |c| Ok(vec![c.take("x")?])),
    ("cast", |c| Ok(vec![c.take("x")?])),
    ("abs", |c| number(c, f32::abs, i32::wrapping_abs)),
    ("sign", |c| number(c, sign, i32::signum)),
    ("square", |c| number(c, |x| x * x, |x| x.wrapping_mul(x))),
    ("acos", |c| unary(c, f32::acos)),
    ("asin", |c| unary(c, f32::asin)),
    ("atan", |c| unary(c, f32::atan)),
    ("atanh", |c| unary(c, f32::atanh)),
    ("ceil", |c| unary(c, f32::ceil)),
    ("cos", |c| unary(c, f32::cos)),
    ("cosh", |c| unary(c, f32::cosh)),
    ("erf", |c| unary(c, erf)),
    ("exp", |c| unary(c, f32::exp)),
    ("exp2", |c| unary(c, f32::exp2)),
    ("floor", |c| unary(c, f32::floor)),
    ("inverse", |c| with_epsilon(c, 1e-4, |x, epsilon| 1.0 / (x + epsilon))),
    ("log", |c| with_epsilon(c, 1e-45, |x, epsilon| (x + epsilon).ln())),
    ("relu", |c| unary(c, |x| maximum(x, 0.0))),
    ("relu6", |c| unary(c, |x| minimum(maximum(x, 0.0), 6.0))),
    ("round", |c| unary(c, f32::round_ties_even)),
    ("rsqrt", |c| with_epsilon(c, 1e-12, |x, epsilon| 1.0 / (x + epsilon).sqrt())),
    ("sigmoid", |c| unary(c, sigmoid)),
    ("silu", |c| unary(c, |x| x * sigmoid(x))),
    ("sin", |c| unary(c, f32::sin)),
    ("sinh", |c| unary(c, f32::sinh)),
    ("softplus", |c| unary(c, softplus)),
    ("softsign", |c| unary(c, |x| x / (1.0 + x.abs()))),
    ("sqrt", |c| unary(c, f32::sqrt)),
    ("tan", |c| unary(c, f32::tan)),
    ("tanh", |c| unary(c, f32::tanh)),
    ("gelu", gelu),
    ("clip", clip),
    ("threshold", |c| {
        let alpha = c.float_or("alpha", 0.0)?;
        unary(c, move |x| maximum(x, alpha))
    }),
    ("leaky_relu", |c| {
        let alpha = c.float_or("alpha", 0.01)?;
        unary(c, move |x| if x >= 0.0 { x } else { alpha * x })
    }),
    ("elu", |c| {
        let alpha = c.float_or("alpha", 1.0)?;
        unary(c, move |x| if x >= 0.0 { x } else { alpha * x.exp_m1() })
    }),
    ("sigmoid_hard", |c| {
        let (alpha, beta) = (c.float_or("alpha", 0.2)?, c.float_or("beta", 0.5)?);
        unary(c, move |x| (alpha * x + beta).clamp(0.0, 1.0))
    }),
    ("linear_activation", |c| {
        let (alpha, beta) = (c.float_or("alpha", 1.0)?, c.float_or("beta", 0.0)?);
        unary(c, move |x| alpha * x + beta)
    }),
];

/// Maximum that propagates NaN, as Core ML's reference does; `f32::max` ignores NaN.
pub(super) fn maximum(a: f32, b: f32) -> f32 {
    if a > b || a.is_nan() { a } else { b }
}

fn minimum(a: f32, b: f32) -> f32 {
    if a < b || a.is_nan() { a } else { b }
}

fn sign(x: f32) -> f32 {
    if x == 0.0 || x.is_nan() { x } else { x.signum() }
}

fn power(a: f32, b: f32) -> f32 {
    if b == 2.0 { a * a } else { a.powf(b) }
}

fn integer_power(a: i32, b: i32) -> i32 {
    u32::try_from(b).map_or_else(|_| f64::from(a).powi(b) as i32, |b| a.wrapping_pow(b))
}

/// Division rounded towards negative infinity; division by zero returns zero, as in numpy.
fn floor_div(a: i32, b: i32) -> i32 {
    if b == 0 {
        return 0;
    }
    let quotient = a.wrapping_div(b);
    if a.wrapping_rem(b) != 0 && (a < 0) != (b < 0) { quotient - 1 } else { quotient }
}

pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// ln(1 + e^x) without overflow.
fn softplus(x: f32) -> f32 {
    maximum(x, 0.0) + (-x.abs()).exp().ln_1p()
}

/// The error function in f64: Taylor series near zero, continued fraction elsewhere.
fn erf(x: f32) -> f32 {
    let z = f64::from(x.abs());
    let value = if z.is_nan() {
        f64::NAN
    } else if z < 2.5 {
        let (mut term, mut sum, mut n) = (z, z, 0.0);
        while term.abs() > 1e-17 * sum.abs() {
            n += 1.0;
            term *= -z * z / n;
            sum += term / (2.0 * n + 1.0);
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    } else if z > 6.0 {
        1.0
    } else {
        let fraction = (1..=60).rev().fold(0.0, |tail, n| f64::from(n) / 2.0 / (z + tail));
        1.0 - (-z * z).exp() / ((z + fraction) * std::f64::consts::PI.sqrt())
    };
    (value as f32).copysign(x)
}

fn gelu(call: &mut Call) -> Result<Vec<Tensor>, Fault> {
    match call.text_or("mode", "EXACT")?.as_str() {
        "EXACT" => unary(call, |x| 0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))),
        "TANH_APPROXIMATION" => unary(call, |x| {
            0.5 * x * (1.0 + ((2.0 / std::f32::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
        }),
        "SIGMOID_APPROXIMATION" => unary(call, |x| x * sigmoid(1.702 * x)),
        other => Err(Fault::invalid(format!("gelu has no mode `{other}`"))),
    }
}

fn clip(call: &mut Call) -> Result<Vec<Tensor>, Fault> {
    let low = call.float_or("alpha", f32::NEG_INFINITY)?;
    let high = call.float_or("beta", f32::INFINITY)?;
    unary(call, move |x| minimum(maximum(x, low), high))
}

fn with_epsilon(call: &mut Call, default: f32, f: impl Fn(f32, f32) -> f32) -> Result<Vec<Tensor>, Fault> {
    let epsilon = call.float_or("epsilon", default)?;
    unary(call, |x| f(x, epsilon))
}

/// Applies `f` to the floats of `x`, in place if they are not shared.
fn unary(call: &mut Call, f: impl Fn(f32) -> f32) -> Result<Vec<Tensor>, Fault> {
    let mut x = call.floats("x")?;
    match Arc::get_mut(&mut x.values) {
        Some(values) => values.iter_mut().for_each(|v| *v = f(*v)),
        None => x.values = Arc::new(x.values.iter().map(|&v| f(v)).collect()),
    }
    Ok(vec![Tensor::from_parts(x.shape, Data::Float(x.values))?])
}

fn number(call: &mut Call, f: impl Fn(f32) -> f32, g: impl Fn(i32) -> i32) -> Result<Vec<Tensor>, Fault> {
    let x = call.take("x")?;
    let data = match x.data() {
        Data::Float(values) => Data::Float(Arc::new(values.iter().map(|&v| f(v)).collect())),
        Data::Int(values) => Data::Int(Arc::new(values.iter().map(|&v| g(v)).collect())),
        _ => return Err(kind("x", "a number", &x)),
    };
    Ok(vec![Tensor::from_parts(x.shape().to_vec(), data)?])
}

fn arithmetic(
    call: &mut Call,
    f: impl Fn(f32, f32) -> f32,
    g: impl Fn(i32, i32) -> i32,
) -> Result<Vec<Tensor>, Fault> {
    let (x, y) = (call.take("x")?, call.take("y")?);
    let shape = broadcast(x.shape(), y.shape())?;
    let same = x.shape() == shape && (y.shape() == shape || y.len() == 1);
    let (x_shape, y_shape) = (x.shape().to_vec(), y.shape().to_vec());
    let data = match (x.into_parts().1, y.into_parts().1) {
        (Data::Float(mut a), Data::Float(b)) => match Arc::get_mut(&mut a).filter(|_| same) {
            Some(values) => {
                if b.len() == 1 {
                    let b = b[0];
                    values.iter_mut().for_each(|v| *v = f(*v, b));
                } else {
                    values.iter_mut().zip(b.iter()).for_each(|(v, &b)| *v = f(*v, b));
                }
                Data::Float(a)
            }
            None => Data::Float(Arc::new(zip(&a, &x_shape, &b, &y_shape, &shape, f))),
        },
        (Data::Int(a), Data::Int(b)) => Data::Int(Arc::new(zip(&a, &x_shape, &b, &y_shape, &shape, g))),
        _ => return Err(Fault::invalid("`x` and `y` must both be floats or both be integers")),
    };
    Ok(vec![Tensor::from_parts(shape, data)?])
}

fn comparison(
    call: &mut Call,
    f: impl Fn(f32, f32) -> bool,
    g: impl Fn(i32, i32) -> bool,
) -> Result<Vec<Tensor>, Fault> {
    let (x, y) = (call.take("x")?, call.take("y")?);
    let shape = broadcast(x.shape(), y.shape())?;
    let values = match (x.data(), y.data()) {
        (Data::Float(a), Data::Float(b)) => zip(a, x.shape(), b, y.shape(), &shape, f),
        (Data::Int(a), Data::Int(b)) => zip(a, x.shape(), b, y.shape(), &shape, g),
        (Data::Bool(a), Data::Bool(b)) => {
            zip(a, x.shape(), b, y.shape(), &shape, |a, b| g(i32::from(a), i32::from(b)))
        }
        _ => return Err(Fault::invalid("`x` and `y` must be of the same type")),
    };
    Ok(vec![Tensor::bool(&shape, values)])
}

fn logical(call: &mut Call, f: impl Fn(bool, bool) -> bool) -> Result<Vec<Tensor>, Fault> {
    let (x, y) = (call.take("x")?, call.take("y")?);
    let shape = broadcast(x.shape(), y.shape())?;
    match (x.data(), y.data()) {
        (Data::Bool(a), Data::Bool(b)) => {
            Ok(vec![Tensor::bool(&shape, zip(a, x.shape(), b, y.shape(), &shape, f))])
        }
        _ => Err(kind("x", "bool", &x)),
    }
}

fn logical_not(call: &mut Call) -> Result<Vec<Tensor>, Fault> {
    let x = call.take("x")?;
    let values = x.bools().ok_or_else(|| kind("x", "bool", &x))?;
    Ok(vec![Tensor::bool(x.shape(), values.iter().map(|v| !v).collect())])
}

fn select(call: &mut Call) -> Result<Vec<Tensor>, Fault> {
    let (cond, a, b) = (call.take("cond")?, call.take("a")?, call.take("b")?);
    let choose = cond.bools().ok_or_else(|| kind("cond", "bool", &cond))?;
    let shape = broadcast(&broadcast(a.shape(), b.shape())?, cond.shape())?;
    fn pick<T: Copy>(
        shape: &[usize],
        choose: (&[bool], &[usize]),
        a: (&[T], &[usize]),
        b: (&[T], &[usize]),
    ) -> Vec<T> {
        let steps =
            [broadcast_steps(choose.1, shape), broadcast_steps(a.1, shape), broadcast_steps(b.1, shape)];
        Odometer::new(shape, steps).map(|[c, i, j]| if choose.0[c] { a.0[i] } else { b.0[j] }).collect()
    }
    let choose = (choose, cond.shape());
    let data = match (a.data(), b.data()) {
        (Data::Float(x), Data::Float(y)) => {
            Data::Float(Arc::new(pick(&shape, choose, (x, a.shape()), (y, b.shape()))))
        }
        (Data::Int(x), Data::Int(y)) => {
            Data::Int(Arc::new(pick(&shape, choose, (x, a.shape()), (y, b.shape()))))
        }
        (Data::Bool(x), Data::Bool(y)) => {
            Data::Bool(Arc::new(pick(&shape, choose, (x, a.shape()), (y, b.shape()))))
        }
        _ => return Err(Fault::invalid("`a` and `b` must be of the same type")),
    };
    Ok(vec![Tensor::from_parts(shape, data)?])
}

/// Strides of `from` broadcast to `to`: zero along repeated axes.
pub(super) fn broadcast_steps(from: &[usize], to: &[usize]) -> Vec<usize> {
    let own = strides(from);
    let missing = to.len() - from.len();
    (0..to.len())
        .map(|axis| match axis.checked_sub(missing) {
            Some(i) if from[i] != 1 => own[i],
            _ => 0,
        })
        .collect()
}

/// Applies `f` to two broadcast operands. Adjacent axes with compatible strides are merged first, so that the inner loop
/// is long and has one of four simple forms.
fn zip<T: Copy, U>(
    a: &[T],
    a_shape: &[usize],
    b: &[T],
    b_shape: &[usize],
    shape: &[usize],
    f: impl Fn(T, T) -> U,
) -> Vec<U> {
    let (a_steps, b_steps) = (broadcast_steps(a_shape, shape), broadcast_steps(b_shape, shape));
    // (length, step of a, step of b), innermost last.
    let mut axes: Vec<(usize, usize, usize)> = Vec::new();
    for axis in (0..shape.len()).rev().filter(|&axis| shape[axis] != 1) {
        let (size, step_a, step_b) = (shape[axis], a_steps[axis], b_steps[axis]);
        match axes.first_mut() {
            Some((inner, inner_a, inner_b))
                if step_a == *inner_a * *inner && step_b == *inner_b * *inner && *inner > 0 =>
            {
                *inner *= size;
            }
            _ => axes.insert(0, (size, step_a, step_b)),
        }
    }
    let (inner, step_a, step_b) = axes.pop().unwrap_or((1, 0, 0));
    let sizes: Vec<usize> = axes.iter().map(|axis| axis.0).collect();
    let steps = [axes.iter().map(|axis| axis.1).collect(), axes.iter().map(|axis| axis.2).collect()];
    let mut out = Vec::with_capacity(shape.iter().product());
    if shape.contains(&0) {
        return out;
    }
    for [i, j] in Odometer::new(&sizes, steps) {
        match (step_a, step_b) {
            (1, 1) => out.extend(a[i..i + inner].iter().zip(&b[j..j + inner]).map(|(&a, &b)| f(a, b))),
            (1, 0) => out.extend(a[i..i + inner].iter().map(|&a| f(a, b[j]))),
            (0, 1) => out.extend(b[j..j + inner].iter().map(|&b| f(a[i], b))),
            _ => out.extend((0..inner).map(|n| f(a[i + n * step_a], b[j + n * step_b]))),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_axes_equal_unmerged_iteration() {
        for (a_shape, b_shape) in [
            (vec![2, 3, 4], vec![2, 3, 4]),
            (vec![2, 3, 4], vec![4]),
            (vec![2, 3, 4], vec![3, 1]),
            (vec![2, 1, 4], vec![3, 1]),
            (vec![2, 3, 4], vec![2, 1, 1]),
            (vec![1], vec![2, 2]),
            (vec![2, 3, 1, 5], vec![1, 4, 1]),
            (vec![0, 3], vec![3]),
        ] {
            let a: Vec<i32> = (0..a_shape.iter().product::<usize>() as i32).collect();
            let b: Vec<i32> = (0..b_shape.iter().product::<usize>() as i32).map(|v| 100 * v).collect();
            let shape = broadcast(&a_shape, &b_shape).unwrap();
            let got = zip(&a, &a_shape, &b, &b_shape, &shape, |a, b| a + b);
            let steps = [broadcast_steps(&a_shape, &shape), broadcast_steps(&b_shape, &shape)];
            let want: Vec<i32> = Odometer::new(&shape, steps).map(|[i, j]| a[i] + b[j]).collect();
            assert_eq!(got, want, "{a_shape:?} with {b_shape:?}");
        }
    }

    #[test]
    fn the_error_function_is_right_to_f32() {
        for (x, want) in [
            (0.0, 0.0),
            (0.5, 0.520_499_9),
            (1.0, 0.842_700_8),
            (2.0, 0.995_322_3),
            (2.49, 0.999_570_8),
            (2.51, 0.999_614_3),
            (3.0, 0.999_977_9),
            (7.0, 1.0),
        ] {
            assert!((erf(x) - want).abs() < 3e-7, "erf({x}) = {}", erf(x));
            assert_eq!(erf(-x), -erf(x));
        }
    }

    #[test]
    fn integers_divide_towards_minus_infinity_and_never_trap() {
        assert_eq!(floor_div(-7, 2), -4);
        assert_eq!(floor_div(7, -2), -4);
        assert_eq!(floor_div(6, 3), 2);
        assert_eq!(floor_div(1, 0), 0);
        assert_eq!(floor_div(i32::MIN, -1), i32::MIN);
    }

    #[test]
    fn softplus_neither_overflows_nor_vanishes() {
        assert_eq!(softplus(100.0), 100.0);
        assert!((softplus(0.0) - std::f32::consts::LN_2).abs() < 1e-7);
        assert!(softplus(-50.0) > 0.0);
    }
}
