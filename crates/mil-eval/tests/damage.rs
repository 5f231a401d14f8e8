//! Fault injection: damaged packages are rejected or run, without panics and without allocations that the file's contents
//! do not justify.

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::sample::Index;
use prost::Message;
use q35_format_mil::proto::{self, BindingKind, ValueKind, ValueTypeKind};
use q35_format_mil::{DType, Package, check, inspect};
use q35_mil_eval::{EvalError, Precision, Program, Tensor};

/// Programs with more elements are loaded but not run: nested tile operations are valid, and slow.
const ELEMENTS: usize = 1 << 18;

struct Sample {
    _dir: tempfile::TempDir,
    package: PathBuf,
    model: proto::Model,
    weights: Vec<u8>,
}

impl Sample {
    fn new(name: &str) -> Self {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
        let dir = tempfile::tempdir().unwrap();
        let package = dir.path().join(name);
        std::fs::create_dir_all(package.join("Data/com.apple.CoreML/weights")).unwrap();
        for file in ["Manifest.json", "Data/com.apple.CoreML/model.mlmodel"] {
            std::fs::copy(golden.join(file), package.join(file)).unwrap();
        }
        let bytes = std::fs::read(golden.join("Data/com.apple.CoreML/model.mlmodel")).unwrap();
        let weights = std::fs::read(golden.join("Data/com.apple.CoreML/weights/weight.bin")).unwrap();
        Self { _dir: dir, package, model: proto::Model::decode(&*bytes).unwrap(), weights }
    }

    /// Loads and runs a package with these bytes; both errors and results are accepted.
    fn try_all(&self, model: &[u8], weights: &[u8]) {
        std::fs::write(self.package.join("Data/com.apple.CoreML/model.mlmodel"), model).unwrap();
        let path = self.package.join("Data/com.apple.CoreML/weights/weight.bin");
        // A new file, because the old one may still be mapped.
        let _ = std::fs::remove_file(&path);
        std::fs::write(path, weights).unwrap();
        let Ok(package) = Package::open(&self.package) else { return };
        let (report, _) = (check(&package), inspect(&package));
        let loaded = Program::new(&package, Precision::Exact);
        let valid = report.errors.iter().all(|finding| finding.defect.is_unknown_operator());
        assert!(loaded.is_err() || valid, "loaded in spite of {:?}", report.errors);
        if let Ok(program) = loaded
            && is_small(package.program())
        {
            for function in program.functions() {
                let zero = |port: &q35_mil_eval::Port| match port.ty.dtype {
                    DType::F16 | DType::F32 => Tensor::float(&port.ty.shape, vec![0.0; port.ty.count()]),
                    DType::Bool => Tensor::bool(&port.ty.shape, vec![false; port.ty.count()]),
                    _ => Tensor::int(&port.ty.shape, vec![0; port.ty.count()]),
                };
                let inputs = function.inputs().map(|port| (port.name.clone(), zero(port))).collect();
                let _ = program.run(function.name(), inputs, &mut program.new_state());
            }
        }
    }
}

fn is_small(program: &proto::Program) -> bool {
    let count = |value: &proto::NamedValueType| {
        let ty = value.r#type.as_ref().and_then(|ty| q35_format_mil::Type::try_from(ty).ok());
        ty.map_or(0, |ty| ty.inner().count())
    };
    program.functions.values().all(|function| {
        let blocks = function.block_specializations.values();
        let values = blocks.flat_map(|block| &block.operations).flat_map(|operation| &operation.outputs);
        function.inputs.iter().chain(values).fold(0usize, |sum, value| sum.saturating_add(count(value)))
            <= ELEMENTS
    })
}

/// A modification of a program that still decodes.
#[derive(Clone, Debug)]
enum Damage {
    /// Removes an operation.
    Remove(Index),
    /// Swaps two operations.
    Swap(Index, Index),
    /// Replaces an operation's operator by another's.
    Rename(Index, Index),
    /// Rebinds an input to another input's value.
    Rebind(Index, Index),
    /// Removes an input.
    Unbind(Index, Index),
    /// Replaces a result's type by another's.
    Retype(Index, Index),
    /// Changes a dimension.
    Resize(Index, Index, u64),
    /// Changes a constant's offset in the weight file.
    Move(Index, u64),
    /// Replaces a constant by another.
    Reuse(Index, Index),
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = any::<Index>;
    let size = prop_oneof![0u64..40, Just(1 << 31), Just(u64::MAX), any::<u64>()];
    prop_oneof![
        at().prop_map(Damage::Remove),
        (at(), at()).prop_map(|(a, b)| Damage::Swap(a, b)),
        (at(), at()).prop_map(|(a, b)| Damage::Rename(a, b)),
        (at(), at()).prop_map(|(a, b)| Damage::Rebind(a, b)),
        (at(), at()).prop_map(|(a, b)| Damage::Unbind(a, b)),
        (at(), at()).prop_map(|(a, b)| Damage::Retype(a, b)),
        (at(), at(), size.clone()).prop_map(|(a, b, size)| Damage::Resize(a, b, size)),
        (at(), size).prop_map(|(a, offset)| Damage::Move(a, offset)),
        (at(), at()).prop_map(|(a, b)| Damage::Reuse(a, b)),
    ]
}

fn values(operations: &mut [proto::Operation]) -> Vec<&mut proto::Value> {
    let mut all = Vec::new();
    for operation in operations {
        all.extend(operation.attributes.iter_mut().filter(|(key, _)| *key != "name").map(|(_, value)| value));
        for argument in operation.inputs.values_mut() {
            for binding in &mut argument.arguments {
                if let Some(BindingKind::Value(value)) = &mut binding.kind {
                    all.push(value);
                }
            }
        }
    }
    all
}

fn apply(model: &mut proto::Model, damage: &Damage) {
    let functions = &mut model.ml_program.as_mut().unwrap().functions;
    let function = functions.values_mut().next().unwrap();
    let operations = &mut function.block_specializations.values_mut().next().unwrap().operations;
    let count = operations.len();
    if count == 0 {
        return;
    }
    match damage {
        Damage::Remove(at) => drop(operations.remove(at.index(count))),
        Damage::Swap(a, b) => operations.swap(a.index(count), b.index(count)),
        Damage::Rename(a, b) => operations[a.index(count)].r#type = operations[b.index(count)].r#type.clone(),
        Damage::Rebind(a, b) => {
            let source = operations[b.index(count)].inputs.values().next().cloned();
            if let (Some(source), Some(input)) =
                (source, operations[a.index(count)].inputs.values_mut().next())
            {
                *input = source;
            }
        }
        Damage::Unbind(a, b) => {
            let inputs = &mut operations[a.index(count)].inputs;
            if let Some(name) = inputs.keys().nth(b.index(inputs.len().max(1))).cloned() {
                inputs.remove(&name);
            }
        }
        Damage::Retype(a, b) => {
            let source = operations[b.index(count)].outputs.first().and_then(|output| output.r#type.clone());
            if let Some(output) = operations[a.index(count)].outputs.first_mut() {
                output.r#type = source;
            }
        }
        Damage::Resize(a, b, size) => {
            let output = operations[a.index(count)].outputs.first_mut();
            let kind = output.and_then(|output| output.r#type.as_mut()).and_then(|ty| ty.kind.as_mut());
            if let Some(ValueTypeKind::Tensor(tensor)) = kind
                && !tensor.dimensions.is_empty()
            {
                let axis = b.index(tensor.dimensions.len());
                let constant = proto::ConstantDimension { size: *size };
                tensor.dimensions[axis].kind = Some(proto::DimensionKind::Constant(constant));
            }
        }
        Damage::Move(at, offset) => {
            let mut all = values(operations);
            let count = all.len().max(1);
            if let Some(value) = all.get_mut(at.index(count))
                && let Some(ValueKind::BlobFile(blob)) = &mut value.kind
            {
                blob.offset = *offset;
            }
        }
        Damage::Reuse(a, b) => {
            let mut all = values(operations);
            let count = all.len().max(1);
            if let Some(source) = all.get(b.index(count)).map(|value| (**value).clone())
                && let Some(value) = all.get_mut(a.index(count))
            {
                **value = source;
            }
        }
    }
}

const NAMES: [&str; 4] = [
    "stateful_attention.mlpackage",
    "mixture.mlpackage",
    "palette6_groups.mlpackage",
    "int8_affine_ios16.mlpackage",
];

#[test]
fn modified_programs_are_rejected_or_run() {
    for name in NAMES {
        let sample = Sample::new(name);
        proptest!(ProptestConfig::with_cases(120), |(damages in prop::collection::vec(damage(), 1..4))| {
            let mut model = sample.model.clone();
            damages.iter().for_each(|damage| apply(&mut model, damage));
            sample.try_all(&model.encode_to_vec(), &sample.weights);
        });
    }
}

#[test]
fn flipped_and_truncated_bytes_are_rejected_or_run() {
    let flips = || prop::collection::vec((any::<Index>(), any::<u8>()), 0..6);
    let cut = || prop::option::weighted(0.2, any::<Index>());
    for name in NAMES {
        let sample = Sample::new(name);
        let whole = sample.model.encode_to_vec();
        proptest!(ProptestConfig::with_cases(60), |(a in flips(), b in flips(), cut_a in cut(), cut_b in cut())| {
            let damaged = |bytes: &[u8], flips: &[(Index, u8)], cut: Option<Index>| {
                let mut bytes = bytes.to_vec();
                for (at, value) in flips {
                    let at = at.index(bytes.len());
                    bytes[at] ^= value;
                }
                bytes.truncate(cut.map_or(bytes.len(), |cut| cut.index(bytes.len())));
                bytes
            };
            sample.try_all(&damaged(&whole, &a, cut_a), &damaged(&sample.weights, &b, cut_b));
        });
    }
}

#[test]
fn an_unsupported_operator_is_named_with_its_place() {
    let sample = Sample::new(NAMES[1]);
    let mut model = sample.model.clone();
    let function = model.ml_program.as_mut().unwrap().functions.get_mut("main").unwrap();
    let operations = &mut function.block_specializations.values_mut().next().unwrap().operations;
    let softmax = operations.iter_mut().find(|operation| operation.r#type == "softmax").unwrap();
    softmax.r#type = "crop_resize".to_owned();
    let path = sample.package.join("Data/com.apple.CoreML/model.mlmodel");
    std::fs::write(path, model.encode_to_vec()).unwrap();
    std::fs::write(sample.package.join("Data/com.apple.CoreML/weights/weight.bin"), &sample.weights).unwrap();
    match Program::load(&sample.package, Precision::Exact).err().unwrap() {
        EvalError::Unsupported { function, operation, operator } => {
            assert_eq!((function.as_str(), operator.as_str()), ("main", "crop_resize"));
            assert!(!operation.is_empty());
        }
        other => panic!("{other}"),
    }
}
