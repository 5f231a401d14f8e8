//! Table of cases: operator, arguments, result type or error.

use std::collections::BTreeMap;

use super::{Constant, Need, Operand, infer, signature, signatures};
use crate::DType::{Bool, F16, F32, I8, I32, U8};
use crate::{TensorType, Type, Value};

/// A tensor computed at run time.
fn run(dtype: crate::DType, shape: &[usize]) -> (Type, Option<Value>) {
    (Type::tensor(dtype, shape), None)
}

fn state(shape: &[usize]) -> (Type, Option<Value>) {
    (Type::State(TensorType::new(F16, shape)), None)
}

/// A constant in the weight file.
fn blob(dtype: crate::DType, shape: &[usize]) -> (Type, Option<Value>) {
    literal(Value::blob(TensorType::new(dtype, shape), 64))
}

fn literal(value: Value) -> (Type, Option<Value>) {
    (Type::Tensor(value.ty.clone()), Some(value))
}

fn ints(values: &[i32]) -> (Type, Option<Value>) {
    literal(Value::ints(values))
}

fn int(value: i32) -> (Type, Option<Value>) {
    literal(Value::int(value))
}

fn flag(value: bool) -> (Type, Option<Value>) {
    literal(Value::bool(value))
}

type Argument<'a> = (&'a str, (Type, Option<Value>));

fn result(op: &str, arguments: &[Argument<'_>]) -> Result<String, String> {
    let mut by_name: BTreeMap<String, Vec<Operand<'_>>> = BTreeMap::new();
    for (name, (ty, value)) in arguments {
        let constant = value.as_ref().map_or(Constant::Runtime, Constant::Value);
        by_name.entry((*name).to_owned()).or_default().push(Operand { ty, constant });
    }
    match infer(op, &by_name) {
        Ok(types) => Ok(types.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")),
        Err(error) => Err(error.problem.to_string()),
    }
}

#[test]
fn valid_operations_have_these_results() {
    let x = || ("x", run(F16, &[1, 4, 8]));
    #[rustfmt::skip]
    let cases: Vec<(&str, Vec<Argument<'_>>, &str)> = vec![
        ("constexpr_blockwise_shift_scale", vec![("data", blob(I8, &[6, 64])), ("scale", blob(F16, &[6, 2]))], "fp16[6, 64]"),
        ("constexpr_lut_to_dense", vec![("indices", blob(U8, &[6, 4])), ("lut", blob(F16, &[1, 1, 256, 1]))], "fp16[6, 4]"),
        ("constexpr_lut_to_dense", vec![("indices", blob(U8, &[6, 4])), ("lut", blob(F16, &[1, 1, 256, 3])), ("vector_axis", int(-1))], "fp16[6, 12]"),
        ("constexpr_affine_dequantize", vec![("quantized_data", blob(U8, &[6, 4])), ("zero_point", blob(U8, &[6])), ("scale", blob(F16, &[6])), ("axis", int(0))], "fp16[6, 4]"),
        ("linear", vec![x(), ("weight", blob(F16, &[5, 8]))], "fp16[1, 4, 5]"),
        ("matmul", vec![x(), ("y", run(F16, &[3, 1, 7, 8])), ("transpose_y", flag(true))], "fp16[3, 1, 4, 7]"),
        ("conv", vec![x(), ("weight", blob(F16, &[4, 1, 3])), ("groups", int(4))], "fp16[1, 4, 6]"),
        ("conv", vec![x(), ("weight", blob(F16, &[2, 4, 3])), ("pad_type", literal(Value::string("same"))), ("strides", ints(&[3]))], "fp16[1, 2, 3]"),
        ("add", vec![x(), ("y", literal(Value::f16(1.0)))], "fp16[1, 4, 8]"),
        ("less", vec![x(), ("y", run(F16, &[3, 4, 1]))], "bool[3, 4, 8]"),
        ("cast", vec![x(), ("dtype", literal(Value::string("int32")))], "int32[1, 4, 8]"),
        ("select", vec![("cond", run(Bool, &[4, 1])), ("a", run(I32, &[4, 8])), ("b", int(0))], "int32[4, 8]"),
        ("reduce_max", vec![x(), ("axes", ints(&[-1])), ("keep_dims", flag(true))], "fp16[1, 4, 1]"),
        ("reduce_sum", vec![x()], "fp16[]"),
        ("reduce_argmax", vec![x()], "int32[1, 4]"),
        ("topk", vec![x(), ("k", int(3))], "fp16[1, 4, 3] int32[1, 4, 3]"),
        ("concat", vec![("values", run(F16, &[2, 3])), ("values", run(F16, &[4, 3])), ("axis", int(0))], "fp16[6, 3]"),
        ("split", vec![x(), ("split_sizes", ints(&[3, 5])), ("axis", int(-1))], "fp16[1, 4, 3] fp16[1, 4, 5]"),
        ("stack", vec![("values", run(I32, &[3])), ("values", run(I32, &[3])), ("axis", int(-1))], "int32[3, 2]"),
        ("slice_by_index", vec![x(), ("begin", ints(&[0, -3, 1])), ("end", ints(&[0, 9, -1])), ("squeeze_mask", literal(Value::bools(&[true, false, false])))], "fp16[3, 6]"),
        ("slice_by_index", vec![x(), ("begin", ints(&[0, 3, 0])), ("end", ints(&[1, 0, 0])), ("stride", ints(&[1, -2, 3])), ("end_mask", literal(Value::bools(&[false, true, true])))], "fp16[1, 2, 3]"),
        ("slice_by_size", vec![x(), ("begin", run(I32, &[3])), ("size", ints(&[1, 2, 8]))], "fp16[1, 2, 8]"),
        ("slice_update", vec![x(), ("update", run(F16, &[1, 2, 8])), ("begin", run(I32, &[3])), ("end", run(I32, &[3]))], "fp16[1, 4, 8]"),
        ("reshape", vec![x(), ("shape", ints(&[2, -1, 4]))], "fp16[2, 4, 4]"),
        ("reshape", vec![x(), ("shape", ints(&[0, 2, 16]))], "fp16[1, 2, 16]"),
        ("transpose", vec![x(), ("perm", ints(&[-1, 0, 1]))], "fp16[8, 1, 4]"),
        ("expand_dims", vec![x(), ("axes", ints(&[0, -1]))], "fp16[1, 1, 4, 8, 1]"),
        ("squeeze", vec![x()], "fp16[4, 8]"),
        ("tile", vec![x(), ("reps", ints(&[2, 1, 3]))], "fp16[2, 4, 24]"),
        ("pad", vec![x(), ("pad", ints(&[1, 0]))], "fp16[1, 4, 9]"),
        ("gather", vec![("x", blob(F16, &[100, 8])), ("indices", run(I32, &[1, 5]))], "fp16[1, 5, 8]"),
        ("gather_along_axis", vec![x(), ("indices", run(I32, &[1, 4, 2])), ("axis", int(2))], "fp16[1, 4, 2]"),
        ("scatter_nd", vec![("data", run(F16, &[4, 8])), ("indices", run(I32, &[3, 1])), ("updates", run(F16, &[3, 8]))], "fp16[4, 8]"),
        ("one_hot", vec![("indices", run(I32, &[1])), ("one_hot_vector_size", int(9))], "int32[1, 9]"),
        ("range_1d", vec![("end", int(7)), ("start", int(0)), ("step", int(2))], "int32[4]"),
        ("fill", vec![("shape", ints(&[2, 3])), ("value", literal(Value::f16(0.0)))], "fp16[2, 3]"),
        ("shape", vec![x()], "int32[3]"),
        ("layer_norm", vec![x(), ("axes", ints(&[-1])), ("gamma", blob(F16, &[8]))], "fp16[1, 4, 8]"),
        ("scaled_dot_product_attention", vec![("query", run(F16, &[1, 2, 3, 8])), ("key", run(F16, &[1, 2, 5, 8])), ("value", run(F16, &[1, 2, 5, 6])), ("attn_mask", run(Bool, &[3, 5]))], "fp16[1, 2, 3, 6]"),
        ("read_state", vec![("input", state(&[2, 32]))], "fp16[2, 32]"),
        ("write_state", vec![("input", state(&[2, 32])), ("data", run(F16, &[2, 32]))], ""),
    ];
    for (op, arguments, expected) in cases {
        assert_eq!(result(op, &arguments).as_deref(), Ok(expected), "{op} {arguments:?}");
    }
}

#[test]
fn invalid_operations_are_refused_with_the_reason() {
    let x = || ("x", run(F16, &[1, 4, 8]));
    #[rustfmt::skip]
    let cases: Vec<(&str, Vec<Argument<'_>>, &str)> = vec![
        ("flux", vec![x()], "unknown operator"),
        ("add", vec![x()], "`y` is missing"),
        ("exp", vec![x(), ("z", int(1))], "no parameter `z`"),
        ("exp", vec![x(), x()], "`x` has 2 values"),
        ("exp", vec![("x", run(I32, &[1]))], "`x` is int32[1], expected fp16 or fp32"),
        ("exp", vec![("x", state(&[1]))], "expected a tensor"),
        ("read_state", vec![("input", run(F16, &[1]))], "expected a state"),
        ("add", vec![x(), ("y", literal(Value::f32(1.0)))], "`y` is fp32[], expected fp16"),
        ("add", vec![x(), ("y", run(F16, &[3]))], "cannot be broadcast"),
        ("linear", vec![x(), ("weight", run(F16, &[5, 8]))], "`weight` must be a constant"),
        ("linear", vec![x(), ("weight", blob(F16, &[5, 7]))], "the last dimension of x fp16[1, 4, 8]"),
        ("linear", vec![x(), ("weight", blob(F16, &[5, 8])), ("bias", blob(F16, &[8]))], "bias fp16[8] must be [5]"),
        ("matmul", vec![x(), ("y", run(F16, &[4, 8]))], "8 against 4"),
        ("conv", vec![x(), ("weight", blob(F16, &[4, 1, 9])), ("groups", int(4))], "larger than the padded x"),
        ("conv", vec![x(), ("weight", blob(F16, &[4, 1, 3])), ("groups", int(3))], "do not fit in 3 groups"),
        ("conv", vec![x(), ("weight", blob(F16, &[4, 4, 3])), ("strides", ints(&[0]))], "`strides` must be 1 positive"),
        ("constexpr_blockwise_shift_scale", vec![("data", blob(I8, &[6, 65])), ("scale", blob(F16, &[6, 2]))], "does not divide"),
        ("constexpr_lut_to_dense", vec![("indices", blob(U8, &[6, 4])), ("lut", blob(F16, &[1, 1, 16, 1]))], "2^bits"),
        ("cast", vec![x(), ("dtype", literal(Value::string("int5")))], "cannot cast to \"int5\""),
        ("select", vec![("cond", run(Bool, &[4, 8])), ("a", run(I32, &[8])), ("b", int(0))], "larger than what it chooses from"),
        ("softmax", vec![x(), ("axis", int(3))], "axis 3 of 3 dimensions"),
        ("reduce_sum", vec![x(), ("axes", ints(&[1, -2]))], "names an axis twice"),
        ("topk", vec![x(), ("k", int(9))], "the largest 9 of 8"),
        ("concat", vec![("values", run(F16, &[2, 3])), ("values", run(F16, &[4, 2])), ("axis", int(0))], "cannot be joined"),
        ("split", vec![x(), ("num_splits", int(3)), ("axis", int(2))], "cannot be split"),
        ("split", vec![x(), ("split_sizes", ints(&[9, -1])), ("axis", int(2))], "do not make 8"),
        ("slice_by_index", vec![x(), ("begin", run(I32, &[3])), ("end", ints(&[1, 1, 1]))], "must be constants"),
        ("slice_by_index", vec![x(), ("begin", ints(&[0, 0])), ("end", ints(&[1, 1, 1]))], "one entry per dimension"),
        ("slice_by_size", vec![x(), ("begin", ints(&[0, 3, 0])), ("size", ints(&[1, 2, 8]))], "of dimension 1"),
        ("slice_update", vec![x(), ("update", run(F16, &[1, 2, 8])), ("begin", ints(&[0, 0, 0])), ("end", ints(&[1, 3, 8]))], "does not fit the slice"),
        ("reshape", vec![x(), ("shape", ints(&[3, -1]))], "cannot be reshaped"),
        ("reshape", vec![x(), ("shape", run(I32, &[2]))], "`shape` must be a constant"),
        ("reshape", vec![x(), ("shape", ints(&[2, 2, 2, 2, 2, 1]))], "more than 5 dimensions"),
        ("transpose", vec![x(), ("perm", ints(&[0, 1, 1]))], "does not permute"),
        ("squeeze", vec![x(), ("axes", ints(&[1]))], "dimension 1 of fp16[1, 4, 8] is not 1"),
        ("gather", vec![x(), ("indices", run(I32, &[2])), ("batch_dims", int(1)), ("axis", int(1))], "batch_dims 1"),
        ("scatter_nd", vec![("data", run(F16, &[4, 8])), ("indices", run(I32, &[3, 1])), ("updates", run(F16, &[3, 7]))], "must be [3, 8]"),
        ("range_1d", vec![("end", int(7)), ("start", int(0)), ("step", int(0))], "from 0 to 7 by 0"),
        ("tile", vec![x(), ("reps", ints(&[i32::MAX, i32::MAX, 1]))], "is too large"),
        ("write_state", vec![("input", state(&[2, 32])), ("data", run(F16, &[2, 31]))], "does not fit the state"),
        ("rsqrt", vec![("x", run(F32, &[1])), ("epsilon", run(F32, &[]))], "`epsilon` must be a constant"),
    ];
    for (op, arguments, reason) in cases {
        let error = result(op, &arguments).expect_err(op);
        assert!(error.contains(reason), "{op}: {error}");
    }
}

#[test]
fn the_table_is_sound() {
    for (index, one) in signatures().iter().enumerate() {
        assert!(signatures()[..index].iter().all(|other| other.op != one.op), "{} twice", one.op);
        assert!(std::ptr::eq(signature(one.op).unwrap(), one));
        let required = one.parameters.iter().filter(|parameter| parameter.need == Need::Required);
        assert!(required.count() > 0 || one.parameters.is_empty(), "{}", one.op);
    }
}

/// Random arguments are accepted or rejected without a panic.
#[test]
fn random_arguments_never_panic() {
    use proptest::prelude::*;
    let dimension = prop_oneof![0usize..6, Just(1), Just(1 << 47), Just(usize::MAX)];
    let tensor = (prop_oneof![Just(F16), Just(I32), Just(Bool)], prop::collection::vec(dimension, 0..6))
        .prop_map(|(dtype, shape)| run(dtype, &shape));
    let number = prop_oneof![-4i32..9, Just(i32::MIN), Just(i32::MAX)];
    let argument = prop_oneof![
        3 => tensor,
        2 => prop::collection::vec(number.clone(), 0..6).prop_map(|values| ints(&values)),
        1 => number.prop_map(int),
        1 => prop::collection::vec(any::<bool>(), 0..6).prop_map(|values| literal(Value::bools(&values))),
        1 => prop_oneof![Just("same"), Just("fp16"), Just("custom")].prop_map(|text| literal(Value::string(text))),
        1 => any::<bool>().prop_map(flag),
    ];
    let call = (0..signatures().len()).prop_flat_map(move |index| {
        let count = signatures()[index].parameters.len();
        (Just(index), prop::collection::vec(prop::option::weighted(0.8, argument.clone()), count))
    });
    proptest!(ProptestConfig::with_cases(4000), |((index, given) in call)| {
        let one = &signatures()[index];
        let arguments: Vec<Argument<'_>> = one.parameters.iter().zip(given)
            .filter_map(|(parameter, value)| Some((parameter.name, value?))).collect();
        let _ = result(one.op, &arguments);
    });
}
