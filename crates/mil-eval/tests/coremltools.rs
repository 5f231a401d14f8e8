//! Compares packages that coremltools wrote (`scripts/goldens/coremltools_packages.py`) with torch.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use q35_format_mil::{Package, check};
use q35_mil_eval::{Data, Precision, Program, Tensor};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

/// Largest accepted difference, relative to the largest value.
const TOLERANCE: f32 = 1e-5;
/// The same for values that pass through an fp16 state: a value halfway between two fp16 numbers, which are 2^-11 apart,
/// may round to either after a difference in the last bit of its f32.
const STATE_TOLERANCE: f32 = 1e-4;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn names() -> Vec<String> {
    let mut names: Vec<String> = golden()
        .read_dir()
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|kind| kind == "mlpackage"))
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    names.sort();
    names
}

/// The slice of a tensor for one call.
fn slice_for_call(view: &TensorView<'_>, call: usize) -> Tensor {
    let shape = &view.shape()[1..];
    let (count, data) = (shape.iter().product::<usize>(), view.data());
    let words = data.chunks_exact(4).skip(call * count).take(count).map(|b| [b[0], b[1], b[2], b[3]]);
    match view.dtype() {
        Dtype::F32 => Tensor::float(shape, words.map(f32::from_le_bytes).collect()),
        Dtype::I32 => Tensor::int(shape, words.map(i32::from_le_bytes).collect()),
        other => panic!("{other:?}"),
    }
}

fn assert_close(place: &str, close: f32, found: &Tensor, expected: &Tensor) {
    match (found.data(), expected.data()) {
        (Data::Float(found), Data::Float(expected)) => {
            assert_eq!(found.len(), expected.len(), "{place}");
            let scale = expected.iter().fold(0f32, |most, v| most.max(v.abs()));
            for (at, (a, b)) in found.iter().zip(expected.iter()).enumerate() {
                assert!((a - b).abs() <= close * scale, "{place}: {a} for {b} at {at}, largest {scale}");
            }
        }
        (Data::Int(found), Data::Int(expected)) => assert_eq!(found, expected, "{place}"),
        _ => panic!("{place}: {} for {}", found.kind(), expected.kind()),
    }
}

#[test]
fn packages_of_coremltools_compute_what_torch_does() {
    let names = names();
    assert!(names.len() >= 8, "goldens are missing: {names:?}");
    for name in names {
        let bytes = std::fs::read(golden().join(format!("{name}.safetensors"))).unwrap();
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        let function = metadata.metadata().as_ref().unwrap()["function"].clone();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        // Half precision: the state is fp16 in torch, too.
        let program = Program::load(&golden().join(format!("{name}.mlpackage")), Precision::Half).unwrap();
        let mut state = program.new_state();
        let part = |prefix: &str, call: usize| -> BTreeMap<String, Tensor> {
            let named = file.iter().filter_map(|(key, view)| Some((key.strip_prefix(prefix)?, view)));
            named.map(|(key, view)| (key.to_owned(), slice_for_call(&view, call))).collect()
        };
        let calls = file.iter().next().unwrap().1.shape()[0];
        let close = if name.starts_with("stateful") { STATE_TOLERANCE } else { TOLERANCE };
        for call in 0..calls {
            let outputs = program.run(&function, part("in.", call), &mut state).unwrap();
            for (output, expected) in part("out.", call) {
                assert_close(&format!("{name}, call {call}, {output}"), close, &outputs[&output], &expected);
            }
        }
    }
}

#[test]
fn packages_of_coremltools_have_no_defects() {
    for name in names() {
        let report = check(&Package::open(&golden().join(format!("{name}.mlpackage"))).unwrap());
        assert!(report.errors.is_empty(), "{name}: {report:#?}");
    }
}
