//! Summary of a package for display: functions, features, operators, sizes, and risks on the Neural Engine.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::neural_engine::{Risk, risks};
use crate::visit::{visit_operations, visit_values};
use crate::{DType, Package, Type, proto};

/// Summary of a package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// Specification version.
    pub specification_version: i32,
    /// Name of the default function.
    pub default_function: String,
    /// The functions, ordered by name.
    pub functions: Vec<InspectedFunction>,
    /// Size of the weight records in bytes, by element type; a shared record counts once.
    pub weight_bytes: BTreeMap<DType, u64>,
    /// Length of the weight files in bytes, headers and padding included.
    pub weight_file_bytes: u64,
    /// Reported Neural Engine limits that the package touches.
    pub risks: Vec<Risk>,
}

/// Summary of a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InspectedFunction {
    /// Name.
    pub name: String,
    /// Operator set.
    pub opset: String,
    /// Names and types of inputs other than states.
    pub inputs: Vec<(String, String)>,
    /// Names and types of outputs.
    pub outputs: Vec<(String, String)>,
    /// Names and types of states.
    pub states: Vec<(String, String)>,
    /// Number of operations per operator, inner blocks included, `const` excluded.
    pub operators: BTreeMap<String, usize>,
    /// Number of `const` operations.
    pub constants: usize,
    /// Size in bytes of the weight records that the function refers to.
    pub weight_bytes: u64,
}

impl InspectedFunction {
    /// Number of operations, constants excluded.
    pub fn operations(&self) -> usize {
        self.operators.values().sum()
    }
}

/// Summarises a package. Malformed parts are omitted; [`crate::check`](fn@crate::check) reports them.
pub fn inspect(package: &Package) -> Inspection {
    let description = package.model().description.as_ref();
    let named = description.map(|description| description.default_function_name.clone());
    let mut weight_bytes: BTreeMap<DType, u64> = BTreeMap::new();
    let mut counted = BTreeSet::new();
    let mut functions = Vec::new();
    for (name, function) in &package.program().functions {
        let Some(block) = function.block_specializations.get(&function.opset) else { continue };
        let mut used = BTreeSet::new();
        visit_values(block, &mut |value| {
            if let Some(proto::ValueKind::BlobFile(blob)) = &value.kind {
                used.insert((blob.file_name.clone(), blob.offset));
            }
        });
        let mut own_bytes = 0;
        for (file, offset) in used {
            let record = package.weight_files().get(&file).and_then(|weights| weights.record(offset).ok());
            let Some(record) = record else { continue };
            let bytes = record.data.end - record.data.start;
            own_bytes += bytes;
            if counted.insert((file, offset)) {
                *weight_bytes.entry(record.dtype).or_default() += bytes;
            }
        }
        functions.push(function_summary(name, function, block, own_bytes));
    }
    Inspection {
        specification_version: package.model().specification_version,
        default_function: named.filter(|name| !name.is_empty()).unwrap_or_else(|| "main".to_owned()),
        functions,
        weight_bytes,
        weight_file_bytes: package.weight_files().values().map(|file| file.len()).sum(),
        risks: risks(package),
    }
}

fn function_summary(
    name: &str,
    function: &proto::Function,
    block: &proto::Block,
    weight_bytes: u64,
) -> InspectedFunction {
    let mut summary = InspectedFunction {
        name: name.to_owned(),
        opset: function.opset.clone(),
        inputs: Vec::new(),
        outputs: Vec::new(),
        states: Vec::new(),
        operators: BTreeMap::new(),
        constants: 0,
        weight_bytes,
    };
    let type_of =
        |value: &proto::NamedValueType| value.r#type.as_ref().and_then(|ty| Type::try_from(ty).ok());
    let mut types: HashMap<&str, String> = HashMap::new();
    for input in &function.inputs {
        let Some(ty) = type_of(input) else { continue };
        let list = if ty.as_tensor().is_some() { &mut summary.inputs } else { &mut summary.states };
        list.push((input.name.clone(), ty.inner().to_string()));
    }
    for output in block.operations.iter().flat_map(|operation| &operation.outputs) {
        if let Some(ty) = type_of(output) {
            types.insert(&output.name, ty.inner().to_string());
        }
    }
    for output in &block.outputs {
        let ty = types.get(output.as_str()).cloned().unwrap_or_else(|| "unknown".to_owned());
        summary.outputs.push((output.clone(), ty));
    }
    visit_operations(block, &mut |operation| match operation.r#type.as_str() {
        "const" => summary.constants += 1,
        op => *summary.operators.entry(op.to_owned()).or_default() += 1,
    });
    summary
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn a_package_is_summarised() {
        let dir = tempfile::tempdir().unwrap();
        sample::write(dir.path());
        let package = Package::open(dir.path()).unwrap();
        let inspection = inspect(&package);
        assert_eq!((inspection.specification_version, inspection.default_function.as_str()), (9, "decode"));
        let [decode, prefill] = &inspection.functions[..] else { panic!("{inspection:#?}") };
        assert_eq!(decode.inputs[0], ("x".to_owned(), "fp16[1, 1, 32]".to_owned()));
        assert_eq!(prefill.outputs, [("y".to_owned(), "fp16[1, 4, 32]".to_owned())]);
        assert_eq!(decode.states, [("cache".to_owned(), "fp16[8, 32]".to_owned())]);
        assert_eq!((decode.operators["linear"], decode.operators["concat"]), (1, 2));
        // Shared records count once: codes, and scales with the bias's zeros.
        assert_eq!(inspection.weight_bytes, BTreeMap::from([(DType::I8, 1024), (DType::F16, 128)]));
        assert_eq!((decode.weight_bytes, prefill.weight_bytes), (1152, 1152));
        assert_eq!(inspection.weight_file_bytes, package.weight_files().values().next().unwrap().len());
    }
}
