//! A small package for tests: two functions that share weights and a state.

use std::path::Path;

use crate::build::{Argument, FunctionBuilder, model};
use crate::{DType, PackageWeights, PackageWriter, TensorType, Value, proto};

const CONTEXT: usize = 8;

/// Writes the package: functions `prefill` (T = 4) and `decode` (T = 1) with input `x` [1, T, 32], output `y` [1, T, 32],
/// a shared quantized weight and a state `cache` [8, 32].
pub(crate) fn write(dir: &Path) {
    let mut package = PackageWriter::create(dir).unwrap();
    let functions = vec![function("decode", 1, package.weights()), function("prefill", 4, package.weights())];
    package.finish(&model(functions, proto::Metadata::default())).unwrap();
}

fn function(name: &str, tokens: usize, weights: &mut PackageWeights) -> crate::build::FinishedFunction {
    let codes: Vec<u8> = (0..32 * 32u32).map(|i| (i * 37 % 251) as u8).collect();
    let codes = weights.add(DType::I8, codes.len(), &codes).unwrap();
    let scale: Vec<u8> =
        (0..32u16).flat_map(|i| half::f16::from_f32(0.01 + f32::from(i) / 1e3).to_le_bytes()).collect();
    let scale = weights.add(DType::F16, 32, &scale).unwrap();
    let mut f = FunctionBuilder::new(name, weights);
    let x = f.input("x", TensorType::new(DType::F16, &[1, tokens, 32])).unwrap();
    let position = f.input("position", TensorType::new(DType::I32, &[1])).unwrap();
    let cache = f.state("cache", TensorType::new(DType::F16, &[CONTEXT, 32])).unwrap();
    let weight = f
        .op(
            "constexpr_blockwise_shift_scale",
            vec![
                ("data", Argument::Value(Value::blob(TensorType::new(DType::I8, &[32, 32]), codes))),
                ("scale", Argument::Value(Value::blob(TensorType::new(DType::F16, &[32, 1]), scale))),
            ],
        )
        .unwrap();
    let y = f.linear(&x, &weight, None).unwrap();
    let y = f.silu(&y).unwrap();
    let old = f.read_state(&cache).unwrap();
    let rows = f.reshape(&y, &[tokens, 32]).unwrap();
    let count = f.int_constant("count", &[1], &[tokens as i32]).unwrap();
    let (zero, width) =
        (f.int_constant("zero", &[1], &[0]).unwrap(), f.int_constant("width", &[1], &[32]).unwrap());
    let end = f.add(&position, &count).unwrap();
    let begin = f.concat(&[&position, &zero], 0).unwrap();
    let end = f.concat(&[&end, &width], 0).unwrap();
    let new = f.slice_update(&old, &rows, &begin, &end).unwrap();
    f.write_state(&cache, &new).unwrap();
    let mean = f.reduce_mean(&new, 0).unwrap();
    let y = f.add(&y, &mean).unwrap();
    f.output(&y, "y").unwrap();
    f.finish().unwrap()
}
