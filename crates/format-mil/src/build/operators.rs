//! Builder methods for common operators.

use std::io::{Seek, Write};

use super::function::{Argument, BuildError, FunctionBuilder, Tensor};
use crate::{DType, Value};

type Built = Result<Tensor, BuildError>;

fn ints(values: &[usize]) -> Value {
    Value::ints(&values.iter().map(|&value| i32::try_from(value).unwrap_or(i32::MAX)).collect::<Vec<_>>())
}

macro_rules! unary {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        ///
        /// # Errors
        /// The operator does not accept the type.
        pub fn $name(&mut self, x: &Tensor) -> Built {
            self.op(stringify!($name), vec![("x", x.into())])
        }
    )*};
}

macro_rules! binary {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        /// Shapes broadcast as in numpy.
        ///
        /// # Errors
        /// Types or shapes are incompatible.
        pub fn $name(&mut self, x: &Tensor, y: &Tensor) -> Built {
            self.op(stringify!($name), vec![("x", x.into()), ("y", y.into())])
        }
    )*};
}

macro_rules! reduce {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        /// The axis remains, with size 1.
        ///
        /// # Errors
        /// The axis does not exist.
        pub fn $name(&mut self, x: &Tensor, axis: i32) -> Built {
            let keep_dims = Value::bool(true);
            let arguments = vec![("x", x.into()), ("axes", Value::ints(&[axis]).into()), ("keep_dims", keep_dims.into())];
            self.op(stringify!($name), arguments)
        }
    )*};
}

impl<W: Write + Seek> FunctionBuilder<'_, W> {
    unary! {
        /// Absolute values.
        abs;
        /// `exp(x)`.
        exp;
        /// `1 / (1 + exp(-x))`.
        sigmoid;
        /// `x * sigmoid(x)`.
        silu;
        /// `ln(1 + exp(x))`.
        softplus;
        /// `x * x`.
        square;
        /// `1 / sqrt(x + epsilon)` with the operator's default epsilon, 1e-12, which fp16 rounds to 0.
        rsqrt;
        /// Hyperbolic tangent.
        tanh;
    }

    binary! {
        /// `x + y`.
        add;
        /// `x - y`.
        sub;
        /// `x * y`.
        mul;
        /// `x / y`.
        real_div;
        /// `x / y`, rounded down.
        floor_div;
        /// Elementwise maximum.
        maximum;
        /// Elementwise minimum.
        minimum;
        /// `x == y`, as booleans.
        equal;
        /// `x < y`, as booleans.
        less;
        /// `x <= y`, as booleans.
        less_equal;
        /// `x >= y`, as booleans.
        greater_equal;
        /// `x && y`, for booleans.
        logical_and;
    }

    reduce! {
        /// The sum along an axis.
        reduce_sum;
        /// The mean along an axis.
        reduce_mean;
        /// The maximum along an axis.
        reduce_max;
    }

    /// The remainder of [`Self::floor_div`].
    ///
    /// # Errors
    /// Types or shapes are incompatible.
    pub fn remainder(&mut self, x: &Tensor, y: &Tensor) -> Built {
        self.op("mod", vec![("x", x.into()), ("y", y.into())])
    }

    /// A scalar of the element type of `like`, an fp16, fp32 or int32.
    ///
    /// # Errors
    /// As for [`Self::value_constant`].
    pub fn scalar_like(&mut self, like: &Tensor, value: f32) -> Built {
        let constant = Value::float(like.dtype(), value).unwrap_or_else(|| Value::int(value as i32));
        self.value_constant("scalar", constant)
    }

    /// `x * weight^T + bias` along the last axis; `weight` is [out, in].
    ///
    /// # Errors
    /// Shapes are incompatible, or `weight` is not a constant.
    pub fn linear(&mut self, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Built {
        let mut arguments = vec![("x", x.into()), ("weight", weight.into())];
        arguments.extend(bias.map(|bias| ("bias", bias.into())));
        self.op("linear", arguments)
    }

    /// The matrix product over the last two axes.
    ///
    /// # Errors
    /// Shapes are incompatible.
    pub fn matmul(&mut self, x: &Tensor, y: &Tensor) -> Built {
        self.op("matmul", vec![("x", x.into()), ("y", y.into())])
    }

    /// `x * y^T` over the last two axes.
    ///
    /// # Errors
    /// Shapes are incompatible.
    pub fn matmul_transposed(&mut self, x: &Tensor, y: &Tensor) -> Built {
        let transpose = Value::bool(true).into();
        self.op("matmul", vec![("x", x.into()), ("y", y.into()), ("transpose_y", transpose)])
    }

    /// `x^T * y` over the last two axes.
    ///
    /// # Errors
    /// Shapes are incompatible.
    pub fn transposed_matmul(&mut self, x: &Tensor, y: &Tensor) -> Built {
        let transpose = Value::bool(true).into();
        self.op("matmul", vec![("x", x.into()), ("y", y.into()), ("transpose_x", transpose)])
    }

    /// Depthwise convolution without padding: `x` [1, channels, time], `taps` [channels, 1, taps].
    ///
    /// # Errors
    /// Shapes are incompatible.
    pub fn depthwise_conv(&mut self, x: &Tensor, taps: &Tensor) -> Built {
        let groups = x.shape().get(1).copied().unwrap_or(0);
        let groups = Value::int(i32::try_from(groups).unwrap_or(i32::MAX));
        self.op("conv", vec![("x", x.into()), ("weight", taps.into()), ("groups", groups.into())])
    }

    /// Softmax along the last axis.
    ///
    /// # Errors
    /// `x` is not a float.
    pub fn softmax(&mut self, x: &Tensor) -> Built {
        self.op("softmax", vec![("x", x.into())])
    }

    /// Conversion of `x` to another element type.
    ///
    /// # Errors
    /// The conversion is not supported.
    pub fn cast(&mut self, x: &Tensor, dtype: DType) -> Built {
        if x.dtype() == dtype {
            return Ok(x.clone());
        }
        self.op("cast", vec![("x", x.into()), ("dtype", Value::string(dtype.name()).into())])
    }

    /// `cond ? a : b`, elementwise.
    ///
    /// # Errors
    /// Shapes or types are incompatible.
    pub fn select(&mut self, cond: &Tensor, a: &Tensor, b: &Tensor) -> Built {
        self.op("select", vec![("cond", cond.into()), ("a", a.into()), ("b", b.into())])
    }

    /// The same elements in another shape.
    ///
    /// # Errors
    /// The number of elements differs.
    pub fn reshape(&mut self, x: &Tensor, shape: &[usize]) -> Built {
        if x.shape() == shape {
            return Ok(x.clone());
        }
        self.op("reshape", vec![("x", x.into()), ("shape", ints(shape).into())])
    }

    /// Permutes the axes.
    ///
    /// # Errors
    /// `perm` is not a permutation.
    pub fn transpose(&mut self, x: &Tensor, perm: &[usize]) -> Built {
        self.op("transpose", vec![("x", x.into()), ("perm", ints(perm).into())])
    }

    /// Repeats `x` along each axis.
    ///
    /// # Errors
    /// `reps` does not have one number per axis.
    pub fn tile(&mut self, x: &Tensor, reps: &[usize]) -> Built {
        self.op("tile", vec![("x", x.into()), ("reps", ints(reps).into())])
    }

    /// Concatenates values along an axis; a single value is returned unchanged.
    ///
    /// # Errors
    /// Shapes are incompatible, or `values` is empty.
    pub fn concat(&mut self, values: &[&Tensor], axis: i32) -> Built {
        if let [only] = values {
            return Ok((*only).clone());
        }
        let values = Argument::Tensors(values.iter().map(|&value| value.clone()).collect());
        self.op("concat", vec![("values", values), ("axis", Value::int(axis).into())])
    }

    /// Splits `x` along an axis into parts of the given sizes.
    ///
    /// # Errors
    /// The sizes do not add up to the axis.
    pub fn split(&mut self, x: &Tensor, sizes: &[usize], axis: i32) -> Result<Vec<Tensor>, BuildError> {
        let arguments =
            vec![("x", x.into()), ("split_sizes", ints(sizes).into()), ("axis", Value::int(axis).into())];
        self.op_many("split", arguments)
    }

    /// `x[begin[0]..end[0], begin[1]..end[1], ...]`.
    ///
    /// # Errors
    /// `begin` or `end` does not have one bound per axis.
    pub fn slice(&mut self, x: &Tensor, begin: &[usize], end: &[usize]) -> Built {
        let (begin, end) = (ints(begin).into(), ints(end).into());
        self.op("slice_by_index", vec![("x", x.into()), ("begin", begin), ("end", end)])
    }

    /// `x` with the slice from `begin` to `end` (int32 `[rank]`) replaced by `update`.
    ///
    /// # Errors
    /// Shapes are incompatible.
    pub fn slice_update(&mut self, x: &Tensor, update: &Tensor, begin: &Tensor, end: &Tensor) -> Built {
        let arguments =
            vec![("x", x.into()), ("update", update.into()), ("begin", begin.into()), ("end", end.into())];
        self.op("slice_update", arguments)
    }

    /// Gathers rows of `x` along its first axis.
    ///
    /// # Errors
    /// `indices` are not integers.
    pub fn gather(&mut self, x: &Tensor, indices: &Tensor) -> Built {
        self.op("gather", vec![("x", x.into()), ("indices", indices.into())])
    }

    /// Reads a state.
    ///
    /// # Errors
    /// `state` is not a state.
    pub fn read_state(&mut self, state: &Tensor) -> Built {
        self.op("read_state", vec![("input", state.into())])
    }

    /// Writes a state.
    ///
    /// # Errors
    /// `state` is not a state, or the type of `data` differs.
    pub fn write_state(&mut self, state: &Tensor, data: &Tensor) -> Result<(), BuildError> {
        self.op_many("write_state", vec![("input", state.into()), ("data", data.into())]).map(drop)
    }
}
