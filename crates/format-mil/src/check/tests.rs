//! Fault injection: one case per kind of defect, with the change and the expected finding.

use std::path::{Path, PathBuf};

use prost::Message;

use super::{Report, check};
use crate::ops::Problem;
use crate::proto::{self, BindingKind, DimensionKind, FeatureKind, ValueKind, ValueTypeKind};
use crate::{Defect, Package, ReadError, RecordError, sample};

struct Sample {
    _dir: tempfile::TempDir,
    package: PathBuf,
}

impl Sample {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let package = dir.path().join("sample.mlpackage");
        sample::write(&package);
        Self { _dir: dir, package }
    }

    fn model_path(&self) -> PathBuf {
        self.package.join("Data/com.apple.CoreML/model.mlmodel")
    }

    fn weights_path(&self) -> PathBuf {
        self.package.join("Data/com.apple.CoreML/weights/weight.bin")
    }

    fn open(&self) -> Result<Package, ReadError> {
        Package::open(&self.package)
    }

    fn check(&self) -> Report {
        check(&self.open().unwrap())
    }
}

fn rewrite(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    change(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

/// Checks the sample package with a changed model.
fn edited(change: impl FnOnce(&mut proto::Model)) -> Report {
    let sample = Sample::new();
    rewrite(&sample.model_path(), |bytes| {
        let mut model = proto::Model::decode(bytes.as_slice()).unwrap();
        change(&mut model);
        *bytes = model.encode_to_vec();
    });
    sample.check()
}

/// Checks the sample package with a changed `decode` function.
fn edited_decode(change: impl FnOnce(&mut proto::Block)) -> Report {
    edited(|model| change(block(model)))
}

fn program(model: &mut proto::Model) -> &mut proto::Program {
    model.ml_program.as_mut().unwrap()
}

fn decode(model: &mut proto::Model) -> &mut proto::Function {
    program(model).functions.get_mut("decode").unwrap()
}

fn block(model: &mut proto::Model) -> &mut proto::Block {
    decode(model).block_specializations.get_mut("CoreML8").unwrap()
}

fn op<'a>(block: &'a mut proto::Block, kind: &str) -> &'a mut proto::Operation {
    block.operations.iter_mut().find(|op| op.r#type == kind).unwrap()
}

fn tensor(ty: &mut Option<proto::ValueType>) -> &mut proto::TensorType {
    match ty.as_mut().unwrap().kind.as_mut().unwrap() {
        ValueTypeKind::Tensor(tensor) => tensor,
        other => panic!("{other:?}"),
    }
}

/// The int8 codes of the weight in `decode`.
fn weight(block: &mut proto::Block) -> &mut proto::Value {
    let data = op(block, "constexpr_blockwise_shift_scale").inputs.get_mut("data").unwrap();
    match data.arguments[0].kind.as_mut().unwrap() {
        BindingKind::Value(value) => value,
        BindingKind::Name(name) => panic!("{name}"),
    }
}

fn blob(value: &mut proto::Value) -> &mut proto::BlobFileValue {
    match value.kind.as_mut().unwrap() {
        ValueKind::BlobFile(blob) => blob,
        other => panic!("{other:?}"),
    }
}

macro_rules! assert_finds {
    ($report:expr, $pattern:pat $(if $guard:expr)?) => {{
        let report = $report;
        assert!(
            report.errors.iter().any(|finding| matches!(&finding.defect, $pattern $(if $guard)?)),
            "expected {}, found {:#?}", stringify!($pattern), report.errors
        );
    }};
}

#[test]
fn a_good_package_has_neither_errors_nor_notes() {
    let report = Sample::new().check();
    assert!(report.errors.is_empty() && report.notes.is_empty(), "{report:#?}");
}

#[test]
fn versions() {
    assert_finds!(edited(|m| program(m).version = 2), Defect::ProgramVersion { found: 2 });
    assert_finds!(edited(|m| m.specification_version = 5), Defect::SpecificationVersion { found: 5 });
    assert_finds!(edited(|m| m.specification_version = 8), Defect::Opset { version: 8, .. });
    assert_finds!(
        edited(|m| {
            m.specification_version = 8;
            for function in program(m).functions.values_mut() {
                let block = function.block_specializations.remove("CoreML8").unwrap();
                function.block_specializations.insert("CoreML7".into(), block);
                function.opset = "CoreML7".into();
            }
        }),
        Defect::TooOld { feature, needed: 9, .. } if feature == "read_state"
    );
    assert_finds!(edited(|m| decode(m).opset = "CoreML99".into()), Defect::Opset { .. });
    assert_finds!(edited(|m| decode(m).opset = "CoreML7".into()), Defect::NoBlock { .. });
}

#[test]
fn names() {
    let undefined = |name: &str| {
        let name = name.to_owned();
        edited_decode(move |b| {
            let x = &mut op(b, "linear").inputs.get_mut("x").unwrap().arguments[0];
            x.kind = Some(BindingKind::Name(name));
        })
    };
    assert_finds!(undefined("nowhere"), Defect::Undefined { parameter, .. } if parameter == "x");
    // A cycle: an operation uses a value computed from its own result.
    assert_finds!(undefined("y"), Defect::Undefined { name, .. } if name == "y");
    // A name of another function.
    assert_finds!(
        edited(|m| {
            let prefill = program(m).functions.get_mut("prefill").unwrap();
            op(prefill.block_specializations.get_mut("CoreML8").unwrap(), "silu").outputs[0].name = "elsewhere".into();
            let rows = op(block(m), "reshape").inputs.get_mut("x").unwrap();
            rows.arguments[0].kind = Some(BindingKind::Name("elsewhere".into()));
        }),
        Defect::Undefined { name, .. } if name == "elsewhere"
    );
    assert_finds!(edited_decode(|b| op(b, "silu").outputs[0].name = "a/b".into()), Defect::Identifier { .. });
    assert_finds!(edited_decode(|b| op(b, "silu").outputs[0].name = "1st".into()), Defect::Identifier { .. });
    assert_finds!(
        edited_decode(|b| op(b, "silu").outputs[0].name = String::new()),
        Defect::Identifier { .. }
    );
    assert_finds!(edited_decode(|b| op(b, "silu").outputs[0].name = "x".into()), Defect::Duplicate { name } if name == "x");
    assert_finds!(edited_decode(|b| b.outputs[0] = "z".into()), Defect::UndefinedOutput { .. });
    assert_finds!(
        edited(|m| {
            let function = decode(m).clone();
            program(m).functions.insert("no name".into(), function);
        }),
        Defect::Identifier { name } if name == "no name"
    );
}

#[test]
fn operations() {
    let problem = |report: Report, wanted: fn(&Problem) -> bool| {
        let found =
            report.errors.iter().any(|f| matches!(&f.defect, Defect::Operation(e) if wanted(&e.problem)));
        assert!(found, "{report:#?}");
    };
    problem(edited_decode(|b| op(b, "silu").r#type = "swish".into()), |p| matches!(p, Problem::Operator));
    problem(edited_decode(|b| drop(op(b, "linear").inputs.remove("x"))), |p| {
        matches!(p, Problem::Missing { .. })
    });
    problem(
        edited_decode(|b| {
            let linear = op(b, "linear");
            let x = linear.inputs["x"].clone();
            linear.inputs.insert("z".into(), x);
        }),
        |p| matches!(p, Problem::Parameter { .. }),
    );
    problem(
        edited_decode(|b| {
            let linear = op(b, "linear");
            linear.inputs.insert("weight".into(), linear.inputs["x"].clone());
        }),
        |p| matches!(p, Problem::NotConstant { .. }),
    );
    assert_finds!(
        edited_decode(|b| {
            let dimension = &mut tensor(&mut op(b, "linear").outputs[0].r#type).dimensions[2];
            dimension.kind = Some(DimensionKind::Constant(proto::ConstantDimension { size: 7 }));
        }),
        Defect::Declared { .. }
    );
    assert_finds!(
        edited_decode(|b| tensor(&mut op(b, "linear").outputs[0].r#type).data_type = 11),
        Defect::Declared { .. }
    );
    assert_finds!(
        edited_decode(|b| {
            let again = op(b, "silu").outputs[0].clone();
            op(b, "silu").outputs.push(proto::NamedValueType { name: "second".into(), ..again });
        }),
        Defect::ResultCount { declared: 2, inferred: 1 }
    );
    assert_finds!(edited_decode(|b| op(b, "silu").outputs[0].r#type = None), Defect::Type { .. });
    assert_finds!(
        edited_decode(|b| op(b, "linear").inputs.get_mut("x").unwrap().arguments[0].kind = None),
        Defect::EmptyArgument { .. }
    );
    assert_finds!(
        edited_decode(|b| {
            let x = op(b, "linear").inputs["x"].clone();
            let predicate = proto::Operation {
                r#type: "cond".into(),
                inputs: [("pred".into(), x)].into(),
                ..Default::default()
            };
            b.operations.push(predicate);
        }),
        Defect::Blocks { found: 0, expected: 2 }
    );
}

#[test]
fn constants() {
    assert_finds!(
        edited_decode(|b| tensor(&mut op(b, "const").outputs[0].r#type).data_type = 11),
        Defect::ConstType { .. }
    );
    // One stride for two dimensions, declared with two.
    let short = edited_decode(|b| {
        let mut stride = b.operations.iter().find(|op| op.outputs[0].name == "count").unwrap().clone();
        let kind = DimensionKind::Constant(proto::ConstantDimension { size: 2 });
        tensor(&mut stride.outputs[0].r#type).dimensions[0].kind = Some(kind);
        stride.outputs[0].name = "stride".into();
        let inputs = &mut op(b, "slice_update").inputs;
        let mut argument = inputs["begin"].clone();
        argument.arguments[0].kind = Some(BindingKind::Name("stride".into()));
        inputs.insert("stride".into(), argument);
        b.operations.insert(0, stride);
    });
    assert_finds!(short, Defect::ConstType { .. });
    assert_finds!(edited_decode(|b| drop(op(b, "const").attributes.remove("val"))), Defect::Const);
    let value = |change: fn(&mut proto::Value)| {
        edited_decode(move |b| change(op(b, "const").attributes.get_mut("val").unwrap()))
    };
    let bytes = |value: &mut proto::Value| {
        let elements = proto::Elements::Bytes(proto::RepeatedBytes { values: vec![0; 3] });
        let tensor = Some(proto::TensorValue { elements: Some(elements) });
        value.kind = Some(ValueKind::Immediate(proto::ImmediateValue { tensor }));
    };
    assert_finds!(value(bytes), Defect::Value { .. });
    assert_finds!(value(|v| v.kind = None), Defect::Value { .. });
    assert_finds!(value(|v| v.r#type = None), Defect::Value { .. });
    assert_finds!(value(|v| v.doc_string = "words".into()), Defect::Value { .. });
    assert_finds!(value(|v| tensor(&mut v.r#type).rank = 9), Defect::Value { .. });
    assert_finds!(value(|v| tensor(&mut v.r#type).data_type = 99), Defect::Value { .. });
}

#[test]
fn weights() {
    assert_finds!(
        edited_decode(|b| blob(weight(b)).offset = 1 << 40),
        Defect::Record(RecordError::Offset { .. })
    );
    assert_finds!(
        edited_decode(|b| blob(weight(b)).offset += 64),
        Defect::Record(RecordError::Sentinel { .. })
    );
    assert_finds!(edited_decode(|b| blob(weight(b)).offset += 1), Defect::Record(RecordError::Offset { .. }));
    assert_finds!(
        edited_decode(|b| tensor(&mut weight(b).r#type).data_type = 31),
        Defect::Record(RecordError::Content { .. })
    );
    assert_finds!(
        edited_decode(|b| {
            let dimension = &mut tensor(&mut weight(b).r#type).dimensions[0];
            dimension.kind = Some(DimensionKind::Constant(proto::ConstantDimension { size: 31 }));
        }),
        Defect::Record(RecordError::Content { .. })
    );
    let with_weights = |change: fn(&mut Vec<u8>)| {
        let sample = Sample::new();
        rewrite(&sample.weights_path(), change);
        sample.check()
    };
    assert_finds!(with_weights(|w| w.truncate(w.len() - 64)), Defect::Record(RecordError::Range { .. }));
    assert_finds!(with_weights(|w| w[0] -= 1), Defect::Record(RecordError::Count { .. }));
    assert_finds!(with_weights(|w| w[0] += 1), Defect::Record(RecordError::Count { .. }));
    assert_finds!(with_weights(|w| w.resize(w.len() + 500, 0)), Defect::Record(RecordError::Count { .. }));
}

#[test]
fn descriptions() {
    let description = |change: fn(&mut proto::ModelDescription)| {
        edited(move |model| change(model.description.as_mut().unwrap()))
    };
    assert_finds!(edited(|m| m.description = None), Defect::NoDescription);
    assert_finds!(
        description(|d| match d.functions[0].input[0].r#type.as_mut().unwrap().kind.as_mut().unwrap() {
            FeatureKind::MultiArray(array) => array.shape[2] = 65,
            FeatureKind::State(_) => unreachable!(),
        }),
        Defect::Feature { .. }
    );
    assert_finds!(
        description(|d| match d.functions[0].input[0].r#type.as_mut().unwrap().kind.as_mut().unwrap() {
            FeatureKind::MultiArray(array) => array.data_type = 65568,
            FeatureKind::State(_) => unreachable!(),
        }),
        Defect::Feature { .. }
    );
    assert_finds!(description(|d| d.functions[0].input[0].r#type = None), Defect::Feature { .. });
    assert_finds!(description(|d| d.functions[0].state.clear()), Defect::Features { role: "state", .. });
    assert_finds!(
        description(|d| {
            let state = d.functions[0].state.pop().unwrap();
            d.functions[0].input.push(state);
        }),
        Defect::Features { role: "input", .. }
    );
    assert_finds!(
        description(|d| d.functions[0].output[0].name = "z".into()),
        Defect::Features { role: "output", .. }
    );
    assert_finds!(description(|d| d.default_function_name = "main".into()), Defect::DefaultFunction { .. });
    assert_finds!(description(|d| drop(d.functions.pop())), Defect::Functions { .. });
    assert_finds!(
        description(|d| {
            let feature = d.functions[0].input[0].clone();
            d.input.push(feature);
        }),
        Defect::BothLevels
    );
    assert_finds!(description(|d| d.functions.clear()), Defect::Functions { .. });
}

#[test]
fn unusual_but_valid_features_are_noted() {
    let note = |report: Report, wanted: fn(&Defect) -> bool| {
        assert!(report.errors.is_empty(), "{report:#?}");
        assert!(report.notes.iter().any(|finding| wanted(&finding.defect)), "{report:#?}");
    };
    note(
        edited_decode(|b| drop(op(b, "concat").inputs.remove("interleave"))),
        |d| matches!(d, Defect::Omitted { parameters } if parameters == "interleave"),
    );
    note(edited_decode(|b| drop(op(b, "silu").attributes.remove("name"))), |d| matches!(d, Defect::Unnamed));
    note(edited(|m| m.specification_version = 10), |d| matches!(d, Defect::OlderOpset { .. }));
}

#[test]
fn read_errors_name_the_cause() {
    let broken = |change: fn(&Sample)| {
        let sample = Sample::new();
        change(&sample);
        sample.open().map(drop)
    };
    let manifest = |sample: &Sample, from: &str, to: &str| {
        rewrite(&sample.package.join("Manifest.json"), |bytes| {
            let text = String::from_utf8(bytes.clone()).unwrap();
            assert!(text.contains(from));
            *bytes = text.replace(from, to).into_bytes();
        });
    };
    assert!(matches!(
        broken(|s| std::fs::remove_file(s.package.join("Manifest.json")).unwrap()),
        Err(ReadError::Io { .. })
    ));
    assert!(matches!(broken(|s| std::fs::remove_file(s.model_path()).unwrap()), Err(ReadError::Io { .. })));
    assert!(matches!(
        broken(|s| std::fs::remove_file(s.weights_path()).unwrap()),
        Err(ReadError::Record(RecordError::Io { .. }))
    ));
    assert!(matches!(
        broken(|s| rewrite(&s.package.join("Manifest.json"), |b| b.truncate(9))),
        Err(ReadError::Manifest { .. })
    ));
    assert!(matches!(
        broken(|s| rewrite(&s.model_path(), |b| b.truncate(b.len() / 2))),
        Err(ReadError::Decode { .. })
    ));
    assert!(matches!(broken(|s| rewrite(&s.model_path(), Vec::clear)), Err(ReadError::NoProgram { .. })));
    assert!(matches!(
        broken(|s| rewrite(&s.weights_path(), |w| w[4] = 1)),
        Err(ReadError::Record(RecordError::Version { .. }))
    ));
    for (from, to) in [
        ("1.0.0", "2.0.0"),
        ("com.apple.CoreML/model.mlmodel", "../../model.mlmodel"),
        ("rootModelIdentifier\": \"", "rootModelIdentifier\": \"0"),
    ] {
        let sample = Sample::new();
        manifest(&sample, from, to);
        assert!(matches!(sample.open(), Err(ReadError::Manifest { .. })), "{to}");
    }
    for file in ["/etc/passwd", "@model_path/weights/../model.mlmodel", "@model_path/weights/", ""] {
        let sample = Sample::new();
        rewrite(&sample.model_path(), |bytes| {
            let mut model = proto::Model::decode(bytes.as_slice()).unwrap();
            blob(weight(block(&mut model))).file_name = file.to_owned();
            *bytes = model.encode_to_vec();
        });
        assert!(matches!(sample.open(), Err(ReadError::Reference { .. })), "{file}");
    }
}

#[test]
fn messages_nested_too_deeply_are_refused() {
    // Nested messages Block, Operation, Block ...: tags 3 and 4, length-delimited.
    let mut bytes = Vec::new();
    for level in 0..4001 {
        let tag = if level % 2 == 0 { 0x1a } else { 0x22 };
        let mut length = Vec::new();
        prost::encode_length_delimiter(bytes.len(), &mut length).unwrap();
        bytes = [&[tag][..], &length, &bytes].concat();
    }
    assert!(proto::Block::decode(bytes.as_slice()).is_err());
}

/// Random damage causes neither a panic nor a large allocation.
#[test]
fn damaged_packages_never_panic() {
    use proptest::prelude::*;
    let sample = Sample::new();
    let (model, weights) =
        (std::fs::read(sample.model_path()).unwrap(), std::fs::read(sample.weights_path()).unwrap());
    let damage = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8);
    let cut = prop::option::weighted(0.2, any::<prop::sample::Index>());
    proptest!(ProptestConfig::with_cases(400), |(in_model in damage.clone(), in_weights in damage, cut in cut)| {
        let damaged = |bytes: &[u8], damage: &[(prop::sample::Index, u8)]| {
            let mut bytes = bytes.to_vec();
            damage.iter().for_each(|(at, value)| { let at = at.index(bytes.len()); bytes[at] ^= value; });
            if let Some(cut) = &cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            bytes
        };
        std::fs::write(sample.model_path(), damaged(&model, &in_model)).unwrap();
        std::fs::write(sample.weights_path(), damaged(&weights, &in_weights)).unwrap();
        if let Ok(package) = sample.open() {
            let _ = check(&package);
        }
    });
}
