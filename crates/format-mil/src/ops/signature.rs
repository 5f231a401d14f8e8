//! The table of operators: names, types and defaults of their parameters.

use super::call::{Call, Problem};
use super::shapes;
use crate::DType::{self, Bool, F16, F32, I4, I8, I16, I32, String, U1, U2, U3, U4, U6, U8, U16};
use crate::TensorType;

/// Signature of an operator.
#[derive(Debug)]
pub struct Signature {
    /// Name in MIL.
    pub op: &'static str,
    /// Parameters.
    pub parameters: &'static [Parameter],
    /// True if files hold the arguments as attributes instead of inputs (iOS 16 `constexpr_*` operators).
    pub in_attributes: bool,
    pub(super) infer: fn(&Call<'_>) -> Result<Vec<TensorType>, Problem>,
}

/// One parameter of an operator.
#[derive(Debug)]
pub struct Parameter {
    /// Name.
    pub name: &'static str,
    /// Accepted element types.
    pub types: &'static [DType],
    /// Type variable: parameters of an operator with the same letter must have the same element type; `-` is none.
    pub domain: char,
    /// Required or optional.
    pub need: Need,
    /// True if the argument must be known at compile time.
    pub constant: bool,
    /// True if the parameter accepts several values.
    pub variadic: bool,
    /// True if the argument is a state.
    pub state: bool,
}

/// Presence of a parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Need {
    /// The parameter must be present.
    Required,
    /// The parameter may be absent, and no default is written.
    Optional,
    /// The parameter may be absent; coremltools writes this default explicitly.
    Default(Default),
}

/// Default value of an absent parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Default {
    /// A boolean.
    Bool(bool),
    /// An int32.
    Int(i32),
    /// A string.
    Text(&'static str),
    /// A float of the type of `x`.
    Float(f32),
    /// Zeros of the weight's type, one per row of `weight`.
    ZeroBias,
    /// Ones, one per spatial dimension of `x`.
    SpatialOnes,
    /// Zeros, two per spatial dimension of `x`.
    SpatialZeroPairs,
    /// All axes of `x`.
    AllAxes,
}

/// Signature of the operator named `op`, if it is supported.
pub fn signature(op: &str) -> Option<&'static Signature> {
    TABLE.iter().find(|signature| signature.op == op)
}

/// Signatures of all supported operators.
pub fn signatures() -> &'static [Signature] {
    TABLE
}

impl Signature {
    /// The parameter named `name`.
    pub fn parameter(&self, name: &str) -> Option<&'static Parameter> {
        self.parameters.iter().find(|parameter| parameter.name == name)
    }
}

const FLOAT: &[DType] = &[F16, F32];
const ARITHMETIC: &[DType] = &[F16, F32, I32];
const ARITHMETIC_BOOL: &[DType] = &[F16, F32, I32, Bool];
const MOVABLE: &[DType] = &[F16, F32, I8, U8, I16, U16, I32, Bool];
const NUMBERS: &[DType] = &[F16, F32, I8, U8, I16, U16, I32];
const INDEX: &[DType] = &[I8, U8, I16, U16, I32];
const BOUND: &[DType] = &[I8, I16, I32];
const PACKED: &[DType] = &[I4, U4, I8, U8, F16, F32];
const PALETTE: &[DType] = &[U1, U2, U3, U4, U6, U8];
const BYTE: &[DType] = &[I8, U8];
const LUT: &[DType] = &[I8, U8, F16, F32];
const INT: &[DType] = &[I32];
const TRUTH: &[DType] = &[Bool];
const TEXT: &[DType] = &[String];
const STATE: &[DType] = &[F16, F32, I8, U8, I16, U16, I32];

/// A required input that may be computed at run time.
const fn input(name: &'static str, types: &'static [DType], domain: char) -> Parameter {
    Parameter { name, types, domain, need: Need::Required, constant: false, variadic: false, state: false }
}

/// A required constant.
const fn constant(name: &'static str, types: &'static [DType], domain: char) -> Parameter {
    Parameter { constant: true, ..input(name, types, domain) }
}

const fn optional(parameter: Parameter) -> Parameter {
    Parameter { need: Need::Optional, ..parameter }
}

const fn with_default(parameter: Parameter, default: Default) -> Parameter {
    Parameter { need: Need::Default(default), ..parameter }
}

const fn variadic(name: &'static str) -> Parameter {
    Parameter { variadic: true, ..input(name, MOVABLE, 'T') }
}

const fn state(name: &'static str) -> Parameter {
    Parameter { state: true, ..input(name, STATE, 'T') }
}

const fn int(name: &'static str, default: i32) -> Parameter {
    with_default(constant(name, INT, '-'), Default::Int(default))
}

const fn flag(name: &'static str, default: bool) -> Parameter {
    with_default(constant(name, TRUTH, '-'), Default::Bool(default))
}

const fn text(name: &'static str, default: &'static str) -> Parameter {
    with_default(constant(name, TEXT, '-'), Default::Text(default))
}

const fn epsilon(default: f32) -> Parameter {
    with_default(constant("epsilon", FLOAT, '-'), Default::Float(default))
}

type Infer = fn(&Call<'_>) -> Result<Vec<TensorType>, Problem>;

const fn op(op: &'static str, parameters: &'static [Parameter], infer: Infer) -> Signature {
    Signature { op, parameters, in_attributes: false, infer }
}

const fn unary(name: &'static str) -> Signature {
    const X: &[Parameter] = &[input("x", FLOAT, 'T')];
    op(name, X, shapes::like_x)
}

const fn unary_arithmetic(name: &'static str) -> Signature {
    const X: &[Parameter] = &[input("x", ARITHMETIC, 'T')];
    op(name, X, shapes::like_x)
}

const fn binary(name: &'static str) -> Signature {
    const XY: &[Parameter] = &[input("x", ARITHMETIC, 'T'), input("y", ARITHMETIC, 'T')];
    op(name, XY, shapes::broadcast)
}

const fn comparison(name: &'static str) -> Signature {
    const XY: &[Parameter] = &[input("x", ARITHMETIC, 'T'), input("y", ARITHMETIC, 'T')];
    op(name, XY, shapes::comparison)
}

const fn logical(name: &'static str) -> Signature {
    const XY: &[Parameter] = &[input("x", TRUTH, 'T'), input("y", TRUTH, 'T')];
    op(name, XY, shapes::comparison)
}

const fn reduce(name: &'static str) -> Signature {
    const PARAMETERS: &[Parameter] =
        &[input("x", ARITHMETIC, 'T'), optional(constant("axes", INT, '-')), flag("keep_dims", false)];
    op(name, PARAMETERS, shapes::reduce)
}

const fn argument(name: &'static str) -> Signature {
    const PARAMETERS: &[Parameter] = &[
        input("x", ARITHMETIC, 'T'),
        int("axis", -1),
        flag("keep_dims", false),
        text("output_dtype", "int32"),
    ];
    op(name, PARAMETERS, shapes::argument)
}

static TABLE: &[Signature] = &[
    // Compressed weights.
    op(
        "constexpr_blockwise_shift_scale",
        &[
            constant("data", PACKED, 'S'),
            constant("scale", FLOAT, 'D'),
            optional(constant("offset", PACKED, '-')),
        ],
        shapes::blockwise_shift_scale,
    ),
    op(
        "constexpr_lut_to_dense",
        &[
            constant("indices", PALETTE, 'I'),
            constant("lut", LUT, 'T'),
            optional(constant("vector_axis", INT, '-')),
        ],
        shapes::lut_to_dense,
    ),
    Signature {
        in_attributes: true,
        ..op(
            "constexpr_affine_dequantize",
            &[
                constant("quantized_data", BYTE, 'S'),
                constant("zero_point", BYTE, 'S'),
                constant("scale", FLOAT, 'D'),
                constant("axis", INT, '-'),
            ],
            shapes::affine_dequantize,
        )
    },
    // Products and convolutions.
    op(
        "linear",
        &[
            input("x", ARITHMETIC, 'T'),
            constant("weight", ARITHMETIC, 'T'),
            with_default(constant("bias", ARITHMETIC, 'T'), Default::ZeroBias),
        ],
        shapes::linear,
    ),
    op(
        "matmul",
        &[
            input("x", ARITHMETIC, 'T'),
            input("y", ARITHMETIC, 'T'),
            flag("transpose_x", false),
            flag("transpose_y", false),
        ],
        shapes::matmul,
    ),
    op(
        "conv",
        &[
            input("x", FLOAT, 'T'),
            input("weight", FLOAT, 'T'),
            optional(input("bias", FLOAT, 'T')),
            with_default(constant("strides", INT, '-'), Default::SpatialOnes),
            text("pad_type", "valid"),
            with_default(constant("pad", INT, '-'), Default::SpatialZeroPairs),
            with_default(constant("dilations", INT, '-'), Default::SpatialOnes),
            int("groups", 1),
        ],
        shapes::conv,
    ),
    op(
        "scaled_dot_product_attention",
        &[
            input("query", FLOAT, 'T'),
            input("key", FLOAT, 'T'),
            input("value", FLOAT, 'T'),
            optional(input("attn_mask", &[Bool, F16, F32], '-')),
        ],
        shapes::attention,
    ),
    // Elementwise.
    binary("add"),
    binary("sub"),
    binary("mul"),
    binary("real_div"),
    binary("floor_div"),
    binary("mod"),
    binary("pow"),
    binary("maximum"),
    binary("minimum"),
    op("rsqrt", &[input("x", FLOAT, 'T'), epsilon(1e-12)], shapes::like_x),
    op("inverse", &[input("x", FLOAT, 'T'), epsilon(1e-4)], shapes::like_x),
    op("log", &[input("x", FLOAT, 'T'), epsilon(1e-45)], shapes::like_x),
    unary("sqrt"),
    unary("exp"),
    unary("tanh"),
    unary("sigmoid"),
    unary("softplus"),
    unary("silu"),
    unary("relu"),
    unary("erf"),
    unary("sin"),
    unary("cos"),
    unary("floor"),
    unary("ceil"),
    unary_arithmetic("square"),
    unary_arithmetic("abs"),
    unary_arithmetic("sign"),
    op("gelu", &[input("x", FLOAT, 'T'), text("mode", "EXACT")], shapes::like_x),
    op(
        "clip",
        &[input("x", FLOAT, 'T'), constant("alpha", FLOAT, 'T'), constant("beta", FLOAT, 'T')],
        shapes::like_x,
    ),
    op("identity", &[input("x", MOVABLE, 'T')], shapes::like_x),
    op("cast", &[input("x", MOVABLE, 'T'), constant("dtype", TEXT, '-')], shapes::cast),
    comparison("less"),
    comparison("less_equal"),
    comparison("greater"),
    comparison("greater_equal"),
    comparison("equal"),
    comparison("not_equal"),
    logical("logical_and"),
    logical("logical_or"),
    logical("logical_xor"),
    op("logical_not", &[input("x", TRUTH, 'T')], shapes::like_x),
    op(
        "select",
        &[input("cond", TRUTH, '-'), input("a", ARITHMETIC_BOOL, 'T'), input("b", ARITHMETIC_BOOL, 'T')],
        shapes::select,
    ),
    // Reductions and normalizations.
    op("softmax", &[input("x", FLOAT, 'T'), int("axis", -1)], shapes::like_x_with_axis),
    reduce("reduce_sum"),
    reduce("reduce_mean"),
    reduce("reduce_max"),
    reduce("reduce_min"),
    reduce("reduce_prod"),
    reduce("reduce_sum_square"),
    reduce("reduce_l2_norm"),
    argument("reduce_argmax"),
    argument("reduce_argmin"),
    op(
        "topk",
        &[
            input("x", NUMBERS, 'T'),
            with_default(constant("k", BOUND, '-'), Default::Int(1)),
            int("axis", -1),
            flag("ascending", false),
            flag("sort", true),
            flag("return_indices", true),
            text("output_indices_dtype", "int32"),
        ],
        shapes::topk,
    ),
    op(
        "cumsum",
        &[input("x", ARITHMETIC, 'T'), int("axis", 0), flag("exclusive", false), flag("reverse", false)],
        shapes::like_x_with_axis,
    ),
    op(
        "layer_norm",
        &[
            input("x", FLOAT, 'T'),
            with_default(constant("axes", INT, '-'), Default::AllAxes),
            optional(constant("gamma", FLOAT, 'T')),
            optional(constant("beta", FLOAT, 'T')),
            epsilon(1e-5),
        ],
        shapes::layer_norm,
    ),
    op("l2_norm", &[input("x", FLOAT, 'T'), epsilon(1e-6)], shapes::like_x),
    // Shape and layout.
    op(
        "concat",
        &[variadic("values"), constant("axis", INT, '-'), flag("interleave", false)],
        shapes::concat,
    ),
    op(
        "split",
        &[
            input("x", ARITHMETIC_BOOL, 'T'),
            optional(constant("num_splits", INT, '-')),
            optional(constant("split_sizes", INT, '-')),
            constant("axis", INT, '-'),
        ],
        shapes::split,
    ),
    op("stack", &[variadic("values"), constant("axis", INT, '-')], shapes::stack),
    op(
        "slice_by_index",
        &[
            input("x", MOVABLE, 'T'),
            input("begin", BOUND, 'U'),
            input("end", BOUND, 'U'),
            optional(constant("stride", BOUND, 'U')),
            optional(constant("begin_mask", TRUTH, '-')),
            optional(constant("end_mask", TRUTH, '-')),
            optional(constant("squeeze_mask", TRUTH, '-')),
        ],
        shapes::slice_by_index,
    ),
    op(
        "slice_by_size",
        &[input("x", MOVABLE, 'T'), input("begin", BOUND, 'U'), input("size", BOUND, 'U')],
        shapes::slice_by_size,
    ),
    op(
        "slice_update",
        &[
            input("x", MOVABLE, 'T'),
            input("update", MOVABLE, 'T'),
            input("begin", BOUND, 'U'),
            input("end", BOUND, 'U'),
            optional(constant("stride", BOUND, 'U')),
            optional(constant("begin_mask", TRUTH, '-')),
            optional(constant("end_mask", TRUTH, '-')),
            optional(constant("squeeze_mask", TRUTH, '-')),
        ],
        shapes::slice_update,
    ),
    op("reshape", &[input("x", MOVABLE, 'T'), input("shape", BOUND, 'U')], shapes::reshape),
    op("transpose", &[input("x", MOVABLE, 'T'), constant("perm", INT, '-')], shapes::transpose),
    op("expand_dims", &[input("x", MOVABLE, 'T'), constant("axes", INT, '-')], shapes::expand_dims),
    op("squeeze", &[input("x", MOVABLE, 'T'), optional(constant("axes", INT, '-'))], shapes::squeeze),
    op("tile", &[input("x", ARITHMETIC_BOOL, 'T'), input("reps", INT, '-')], shapes::tile),
    op(
        "pad",
        &[
            input("x", FLOAT, 'T'),
            input("pad", INT, '-'),
            text("mode", "constant"),
            with_default(constant("constant_val", FLOAT, 'T'), Default::Float(0.0)),
        ],
        shapes::pad,
    ),
    op("band_part", &[input("x", ARITHMETIC_BOOL, 'T'), int("lower", -1), int("upper", -1)], shapes::like_x),
    // Gather and scatter.
    op(
        "gather",
        &[
            input("x", NUMBERS, 'T'),
            input("indices", INDEX, '-'),
            int("axis", 0),
            int("batch_dims", 0),
            flag("validate_indices", false),
        ],
        shapes::gather,
    ),
    op(
        "gather_along_axis",
        &[
            input("x", NUMBERS, 'T'),
            input("indices", INDEX, '-'),
            int("axis", 0),
            flag("validate_indices", false),
        ],
        shapes::gather_along_axis,
    ),
    op(
        "scatter_nd",
        &[
            input("data", ARITHMETIC, 'T'),
            input("indices", INT, '-'),
            input("updates", ARITHMETIC, 'T'),
            text("mode", "add"),
            flag("validate_indices", false),
        ],
        shapes::scatter_nd,
    ),
    op(
        "one_hot",
        &[
            input("indices", INT, '-'),
            input("one_hot_vector_size", INT, '-'),
            int("axis", -1),
            with_default(constant("on_value", ARITHMETIC_BOOL, 'T'), Default::Int(1)),
            with_default(constant("off_value", ARITHMETIC_BOOL, 'T'), Default::Int(0)),
        ],
        shapes::one_hot,
    ),
    // Tensor creation.
    op(
        "range_1d",
        &[input("end", ARITHMETIC, 'T'), input("start", ARITHMETIC, 'T'), input("step", ARITHMETIC, 'T')],
        shapes::range_1d,
    ),
    op(
        "fill",
        &[
            input("shape", INT, '-'),
            with_default(constant("value", ARITHMETIC_BOOL, 'T'), Default::Float(0.0)),
        ],
        shapes::fill,
    ),
    op("shape", &[input("x", ARITHMETIC_BOOL, 'T')], shapes::shape),
    // States.
    op("read_state", &[state("input")], shapes::read_state),
    op("write_state", &[state("input"), input("data", STATE, 'T')], shapes::write_state),
];
