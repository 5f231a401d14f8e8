//! Opens an untrusted Core ML package: it is parsed, checked, inspected, loaded and run, or refused. It must never panic,
//! hang, or allocate much more memory than its own size.
//!
//! The input is the length of the model message as a little-endian u32, that message, then the weight file.
#![no_main]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use q35_format_mil::{DType, Package, check, inspect, proto};
use q35_mil_eval::{Function, Precision, Program, Tensor};

const MANIFEST: &str = r#"{
  "fileFormatVersion": "1.0.0",
  "rootModelIdentifier": "1",
  "itemInfoEntries": {
    "1": {"author": "com.apple.CoreML", "name": "model.mlmodel", "description": "", "path": "m/model.mlmodel"},
    "2": {"author": "com.apple.CoreML", "name": "weights", "description": "", "path": "m/weights"}
  }
}"#;
/// Programs with more elements than this are loaded but not run.
const MAX_ELEMENTS: usize = 1 << 16;

static PACKAGE: LazyLock<PathBuf> = LazyLock::new(|| {
    // On tmpfs where possible: the files are rewritten for every input.
    let memory = PathBuf::from("/dev/shm");
    let base = if memory.is_dir() { memory } else { std::env::temp_dir() };
    let dir = base.join(format!("q35-fuzz-{}.mlpackage", std::process::id()));
    std::fs::create_dir_all(dir.join("Data/m/weights")).unwrap();
    std::fs::write(dir.join("Manifest.json"), MANIFEST).unwrap();
    dir
});

fuzz_target!(|data: &[u8]| {
    let Some((length, rest)) = data.split_first_chunk::<4>() else { return };
    let (model, weights) = rest.split_at((u32::from_le_bytes(*length) as usize).min(rest.len()));
    std::fs::write(PACKAGE.join("Data/m/model.mlmodel"), model).unwrap();
    // A new inode: the previous file may still be mapped.
    let path = PACKAGE.join("Data/m/weights/weight.bin");
    let _ = std::fs::remove_file(&path);
    std::fs::write(path, weights).unwrap();

    let Ok(package) = Package::open(&PACKAGE) else { return };
    let (report, _) = (check(&package), inspect(&package));
    for precision in [Precision::Exact, Precision::Half] {
        let loaded = Program::new(&package, precision);
        assert!(loaded.is_err() || report.errors.iter().all(|found| found.defect.is_unknown_operator()));
        let Ok(program) = loaded else { continue };
        if is_small(package.program()) {
            for function in program.functions() {
                let _ = program.run(function.name(), zeros(function), &mut program.new_state());
            }
        }
    }
});

fn zeros(function: &Function) -> BTreeMap<String, Tensor> {
    let zero = |port: &q35_mil_eval::Port| match port.ty.dtype {
        DType::F16 | DType::F32 => Tensor::float(&port.ty.shape, vec![0.0; port.ty.count()]),
        DType::Bool => Tensor::bool(&port.ty.shape, vec![false; port.ty.count()]),
        _ => Tensor::int(&port.ty.shape, vec![0; port.ty.count()]),
    };
    function.inputs().map(|port| (port.name.clone(), zero(port))).collect()
}

/// True if running the program is quick: few elements, and no loop.
fn is_small(program: &proto::Program) -> bool {
    let count = |value: &proto::NamedValueType| {
        let ty = value.r#type.as_ref().and_then(|ty| q35_format_mil::Type::try_from(ty).ok());
        ty.map_or(0, |ty| ty.inner().count())
    };
    let mut left = MAX_ELEMENTS;
    let mut fits = |elements: usize| left.checked_sub(elements).map(|rest| left = rest).is_some();
    program.functions.values().all(|function| {
        function.inputs.iter().all(|input| fits(count(input)))
            && function.block_specializations.values().flat_map(|block| &block.operations).all(|operation| {
                operation.blocks.is_empty() && operation.outputs.iter().all(|output| fits(count(output)))
            })
    })
}
