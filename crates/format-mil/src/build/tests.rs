use std::io::Cursor;

use prost::Message;

use super::{BuildError, FunctionBuilder, model};
use crate::{DType, TensorType, Type, Value, WeightWriter, proto};

type Memory = WeightWriter<Cursor<Vec<u8>>>;

fn weights() -> Memory {
    WeightWriter::new(Cursor::new(Vec::new())).unwrap()
}

fn half(shape: &[usize]) -> TensorType {
    TensorType::new(DType::F16, shape)
}

fn small(name: &str, weights: &mut Memory) -> Result<super::FinishedFunction, BuildError> {
    let mut f = FunctionBuilder::new(name, weights);
    let x = f.input("x", half(&[1, 4]))?;
    let state = f.state("memory", half(&[1, 32]))?;
    f.set_scope("layers_0");
    let data = f.constant("layers_0_weight", DType::F16, &[32, 4], &[0.25; 128])?;
    let y = f.linear(&x, &data, None)?;
    let old = f.read_state(&state)?;
    let sum = f.add(&y, &old)?;
    f.write_state(&state, &sum)?;
    let doubled = f.add(&sum, &sum)?;
    f.output(&doubled, "y")?;
    f.finish()
}

fn operations(function: &proto::Function) -> &[proto::Operation] {
    &function.block_specializations[&function.opset].operations
}

#[test]
fn operations_get_names_attributes_and_every_default() {
    let mut weights = weights();
    let built = small("main", &mut weights).unwrap();
    let names: Vec<String> = operations(&built.function)
        .iter()
        .map(|op| format!("{} {}", op.r#type, op.outputs.first().map_or("-", |output| &output.name)))
        .collect();
    assert_eq!(
        names,
        [
            "const layers_0_weight",
            "const zeros",
            "linear layers_0_linear",
            "read_state layers_0_read_state",
            "add layers_0_add",
            "write_state -",
            "add y",
        ]
    );
    for op in operations(&built.function) {
        assert!(op.attributes.contains_key("name"), "{op:?}");
        if let Some(signature) = crate::ops::signature(&op.r#type) {
            for parameter in signature.parameters {
                if parameter.need != crate::ops::Need::Optional {
                    assert!(op.inputs.contains_key(parameter.name), "{} lacks {}", op.r#type, parameter.name);
                }
            }
        }
    }
}

#[test]
fn the_same_calls_give_the_same_bytes() {
    let build = || {
        let mut weights = weights();
        let functions = vec![small("first", &mut weights).unwrap(), small("second", &mut weights).unwrap()];
        let model = model(functions, proto::Metadata::default()).encode_to_vec();
        (model, weights.finish().unwrap().into_inner())
    };
    let (bytes, blobs) = build();
    assert_eq!((bytes.clone(), blobs.clone()), build());
    assert_eq!(blobs[0], 2, "both functions share the weight and the zeros");
    let read = proto::Model::decode(bytes.as_slice()).unwrap();
    assert_eq!(read.encode_to_vec(), bytes);
    let description = read.description.unwrap();
    assert_eq!(description.default_function_name, "first");
    assert_eq!(description.functions[1].state[0].name, "memory");
    assert!(description.input.is_empty());
}

#[test]
fn a_single_main_is_described_by_the_model() {
    let mut weights = weights();
    let functions = vec![small("main", &mut weights).unwrap()];
    let model = model(functions, proto::Metadata::default());
    let description = model.description.unwrap();
    assert_eq!((description.input.len(), description.state.len(), description.output.len()), (1, 1, 1));
    assert!(description.functions.is_empty() && description.default_function_name.is_empty());
    assert_eq!(model.specification_version, 9);
}

#[test]
fn mistakes_are_errors_that_name_the_place() {
    let mut weights = weights();
    let mut f = FunctionBuilder::new("decode", &mut weights);
    let x = f.input("x", half(&[1, 4])).unwrap();
    f.set_scope("layers_3_mlp");
    let says = |error: BuildError, expected: &str| assert_eq!(error.to_string(), expected);
    let weight = f.constant("w", DType::F16, &[3, 5], &[0.0; 15]).unwrap();
    says(
        f.linear(&x, &weight, None).unwrap_err(),
        "decode/layers_3_mlp_linear: `linear`(bias: fp16[3], weight: fp16[3, 5], x: fp16[1, 4]): the last dimension \
         of x fp16[1, 4] must be that of weight fp16[3, 5]",
    );
    says(
        f.linear(&x, &x, None).unwrap_err(),
        "decode/layers_3_mlp_linear: `linear`(bias: fp16[1], weight: fp16[1, 4], x: fp16[1, 4]): `weight` must be a constant",
    );
    says(f.op("flux", vec![]).unwrap_err(), "decode/layers_3_mlp_flux: `flux`(): unknown operator");
    says(f.input("x", half(&[1])).unwrap_err(), "decode: `x` is in use");
    says(f.input("2x", half(&[1])).unwrap_err(), "decode: `2x` is not an identifier");
    says(f.constant("w", DType::F32, &[2, 2], &[0.0; 3]).unwrap_err(), "decode/w: 3 elements for fp32[2, 2]");
    says(
        f.output(&x, "y").unwrap_err(),
        "decode: `y` is an input or an output already and cannot get a second name",
    );
    assert!(f.finish().unwrap_err().to_string().contains("has no outputs"));
}

#[test]
fn values_of_other_functions_are_refused() {
    let (mut first, mut second) = (weights(), weights());
    let mut one = FunctionBuilder::new("one", &mut first);
    let x = one.input("x", half(&[7])).unwrap();
    let mut other = FunctionBuilder::new("other", &mut second);
    assert_eq!(other.abs(&x).unwrap_err().to_string(), "other: a value of another function is used");
}

#[test]
fn constexpr_arguments_stay_in_place() {
    let mut weights = weights();
    let data = weights.add(DType::I8, 16, &[1; 16]).unwrap();
    let mut f = FunctionBuilder::new("main", &mut weights);
    let data = Value::blob(TensorType::new(DType::I8, &[4, 4]), data);
    let zeros = f.constant("scale", DType::F16, &[4, 1], &[1.0; 4]).unwrap();
    let unpacked = f
        .op("constexpr_blockwise_shift_scale", vec![("data", data.into()), ("scale", (&zeros).into())])
        .unwrap();
    let x = f.input("x", half(&[2, 4])).unwrap();
    let y = f.linear(&x, &unpacked, None).unwrap();
    f.output(&y, "y").unwrap();
    let built = f.finish().unwrap();
    let op = operations(&built.function).iter().find(|op| op.r#type.starts_with("constexpr")).unwrap();
    let kinds: Vec<bool> = op
        .inputs
        .values()
        .map(|argument| matches!(argument.arguments[0].kind, Some(proto::BindingKind::Value(_))))
        .collect();
    assert_eq!(kinds, [true, false]);
    assert_eq!(built.outputs[0].ty, Type::tensor(DType::F16, &[2, 4]));
}
