//! The operators by name, for graphs that read like formulas.

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
        /// The operator does not take a value of this type.
        pub fn $name(&mut self, x: &Tensor) -> Built {
            self.op(stringify!($name), vec![("x", x.into())])
        }
    )*};
}

macro_rules! binary {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        /// Shapes are broadcast as numpy does.
        ///
        /// # Errors
        /// Types or shapes do not fit each other.
        pub fn $name(&mut self, x: &Tensor, y: &Tensor) -> Built {
            self.op(stringify!($name), vec![("x", x.into()), ("y", y.into())])
        }
    )*};
}

macro_rules! reduce {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        /// The axis stays, with size 1.
        ///
        /// # Errors
        /// There is no such axis.
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
        /// e to the power of `x`.
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
        /// The larger of both.
        maximum;
        /// The smaller of both.
        minimum;
        /// Whether `x == y`.
        equal;
        /// Whether `x < y`.
        less;
        /// Whether `x <= y`.
        less_equal;
        /// Whether `x >= y`.
        greater_equal;
        /// Whether both hold.
        logical_and;
    }

    reduce! {
        /// The sum along an axis.
        reduce_sum;
        /// The mean along an axis.
        reduce_mean;
        /// The largest along an axis.
        reduce_max;
    }

    /// The remainder of [`Self::floor_div`].
    ///
    /// # Errors
    /// Types or shapes do not fit each other.
    pub fn remainder(&mut self, x: &Tensor, y: &Tensor) -> Built {
        self.op("mod", vec![("x", x.into()), ("y", y.into())])
    }

    /// A scalar of the element type of `like`, an fp16, fp32 or int32.
    ///
    /// # Errors
    /// None but those of every constant.
    pub fn scalar_like(&mut self, like: &Tensor, value: f32) -> Built {
        let constant = Value::float(like.dtype(), value).unwrap_or_else(|| Value::int(value as i32));
        self.value_constant("scalar", constant)
    }

    /// `x * weight^T + bias` along the last axis; `weight` is [out, in].
    ///
    /// # Errors
    /// Shapes do not fit, or `weight` is no constant.
    pub fn linear(&mut self, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Built {
        let mut arguments = vec![("x", x.into()), ("weight", weight.into())];
        arguments.extend(bias.map(|bias| ("bias", bias.into())));
        self.op("linear", arguments)
    }

    /// The matrix product over the last two axes.
    ///
    /// # Errors
    /// Shapes do not fit.
    pub fn matmul(&mut self, x: &Tensor, y: &Tensor) -> Built {
        self.op("matmul", vec![("x", x.into()), ("y", y.into())])
    }

    /// `x * y^T` over the last two axes.
    ///
    /// # Errors
    /// Shapes do not fit.
    pub fn matmul_transposed(&mut self, x: &Tensor, y: &Tensor) -> Built {
        let transpose = Value::bool(true).into();
        self.op("matmul", vec![("x", x.into()), ("y", y.into()), ("transpose_y", transpose)])
    }

    /// `x^T * y` over the last two axes.
    ///
    /// # Errors
    /// Shapes do not fit.
    pub fn transposed_matmul(&mut self, x: &Tensor, y: &Tensor) -> Built {
        let transpose = Value::bool(true).into();
        self.op("matmul", vec![("x", x.into()), ("y", y.into()), ("transpose_x", transpose)])
    }

    /// A convolution in which every channel has its own taps: `x` [1, channels, time], `taps` [channels, 1, taps],
    /// without padding.
    ///
    /// # Errors
    /// Shapes do not fit.
    pub fn depthwise_conv(&mut self, x: &Tensor, taps: &Tensor) -> Built {
        let groups = x.shape().get(1).copied().unwrap_or(0);
        let groups = Value::int(i32::try_from(groups).unwrap_or(i32::MAX));
        self.op("conv", vec![("x", x.into()), ("weight", taps.into()), ("groups", groups.into())])
    }

    /// Softmax along the last axis.
    ///
    /// # Errors
    /// `x` is no float.
    pub fn softmax(&mut self, x: &Tensor) -> Built {
        self.op("softmax", vec![("x", x.into())])
    }

    /// `x` as another element type.
    ///
    /// # Errors
    /// There is no such conversion.
    pub fn cast(&mut self, x: &Tensor, dtype: DType) -> Built {
        if x.dtype() == dtype {
            return Ok(x.clone());
        }
        self.op("cast", vec![("x", x.into()), ("dtype", Value::string(dtype.name()).into())])
    }

    /// `a` where `cond` holds, else `b`.
    ///
    /// # Errors
    /// Shapes or types do not fit.
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

    /// The axes in another order.
    ///
    /// # Errors
    /// `perm` is no permutation.
    pub fn transpose(&mut self, x: &Tensor, perm: &[usize]) -> Built {
        self.op("transpose", vec![("x", x.into()), ("perm", ints(perm).into())])
    }

    /// The whole of `x` repeated along each axis.
    ///
    /// # Errors
    /// Not one number per axis.
    pub fn tile(&mut self, x: &Tensor, reps: &[usize]) -> Built {
        self.op("tile", vec![("x", x.into()), ("reps", ints(reps).into())])
    }

    /// Several values joined along an axis; a single one as it is.
    ///
    /// # Errors
    /// Shapes do not fit, or there is none.
    pub fn concat(&mut self, values: &[&Tensor], axis: i32) -> Built {
        if let [only] = values {
            return Ok((*only).clone());
        }
        let values = Argument::Tensors(values.iter().map(|&value| value.clone()).collect());
        self.op("concat", vec![("values", values), ("axis", Value::int(axis).into())])
    }

    /// `x` cut along an axis into parts of these sizes.
    ///
    /// # Errors
    /// The sizes do not make the axis.
    pub fn split(&mut self, x: &Tensor, sizes: &[usize], axis: i32) -> Result<Vec<Tensor>, BuildError> {
        let arguments =
            vec![("x", x.into()), ("split_sizes", ints(sizes).into()), ("axis", Value::int(axis).into())];
        self.op_many("split", arguments)
    }

    /// `x[begin[0]..end[0], begin[1]..end[1], ...]`.
    ///
    /// # Errors
    /// Not one bound per axis.
    pub fn slice(&mut self, x: &Tensor, begin: &[usize], end: &[usize]) -> Built {
        let (begin, end) = (ints(begin).into(), ints(end).into());
        self.op("slice_by_index", vec![("x", x.into()), ("begin", begin), ("end", end)])
    }

    /// `x` with `update` in place of its part from `begin` to `end`, int32 `[rank]` each.
    ///
    /// # Errors
    /// Shapes do not fit.
    pub fn slice_update(&mut self, x: &Tensor, update: &Tensor, begin: &Tensor, end: &Tensor) -> Built {
        let arguments =
            vec![("x", x.into()), ("update", update.into()), ("begin", begin.into()), ("end", end.into())];
        self.op("slice_update", arguments)
    }

    /// Rows of `x` along its first axis.
    ///
    /// # Errors
    /// `indices` are no integers.
    pub fn gather(&mut self, x: &Tensor, indices: &Tensor) -> Built {
        self.op("gather", vec![("x", x.into()), ("indices", indices.into())])
    }

    /// What a state holds now.
    ///
    /// # Errors
    /// `state` is none.
    pub fn read_state(&mut self, state: &Tensor) -> Built {
        self.op("read_state", vec![("input", state.into())])
    }

    /// Replaces what a state holds.
    ///
    /// # Errors
    /// `state` is none, or `data` is of another type.
    pub fn write_state(&mut self, state: &Tensor, data: &Tensor) -> Result<(), BuildError> {
        self.op_many("write_state", vec![("input", state.into()), ("data", data.into())]).map(drop)
    }
}
