//! Reported limits of the Neural Engine that a package touches.
//!
//! Core ML decides on the device where an operation runs, and q35 has never run there: the limits are reports by others,
//! some of them contradictory. Each risk names the operations concerned and the source of the report.

use std::collections::BTreeMap;

use crate::visit::visit_operations;
use crate::{Package, TensorType, Type, proto};

/// A reported limit that a package touches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Risk {
    /// The limit.
    pub limit: Limit,
    /// Name of the function, or "package".
    pub place: String,
    /// The first few operations or features that touch the limit.
    pub touches: Vec<String>,
    /// Number of operations or features that touch the limit.
    pub count: usize,
}

/// Reported limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Limit {
    /// More than one state.
    ManyStates,
    /// A state's last dimension is not a multiple of 32.
    StateWidth,
    /// A state that is not fp16.
    StateType,
    /// An update of many rows of a state at once.
    WideUpdate,
    /// Scales per block instead of per channel.
    BlockScales,
    /// A look-up table with a scale per channel.
    ScaledTable,
    /// int8 weights without a table.
    PlainInt8,
    /// Signed weights with a zero point of 0 in the iOS 16 operator.
    SignedZeroPoint,
    /// fp32 arithmetic.
    Float32,
    /// A dimension larger than the engine supports.
    LargeDimension,
    /// A rank larger than recommended.
    Rank,
    /// Loops and branches.
    ControlFlow,
    /// Operators that were observed to run on other units.
    Operators,
    /// A gather from quantized weights.
    QuantizedGather,
    /// A large package.
    PackageSize,
    /// An argmax over a large vocabulary.
    LargeIndices,
    /// Flexible shapes by range.
    FlexibleShapes,
}

impl Limit {
    /// Identifier in machine-readable output.
    pub fn name(self) -> &'static str {
        match self {
            Self::ManyStates => "many_states",
            Self::StateWidth => "state_width",
            Self::StateType => "state_type",
            Self::WideUpdate => "wide_update",
            Self::BlockScales => "block_scales",
            Self::ScaledTable => "scaled_table",
            Self::PlainInt8 => "plain_int8",
            Self::SignedZeroPoint => "signed_zero_point",
            Self::Float32 => "float32",
            Self::LargeDimension => "large_dimension",
            Self::Rank => "rank",
            Self::ControlFlow => "control_flow",
            Self::Operators => "operators",
            Self::QuantizedGather => "quantized_gather",
            Self::PackageSize => "package_size",
            Self::LargeIndices => "large_indices",
            Self::FlexibleShapes => "flexible_shapes",
        }
    }

    /// Description of the risk.
    pub fn risk(self) -> &'static str {
        match self {
            Self::ManyStates => {
                "several states in one function: three were reported to compile and then fail at run time; two were \
                 reported to work, one is what was shipped"
            }
            Self::StateWidth => "a state whose last dimension is no multiple of 32 was reported to fail",
            Self::StateType => "coremltools refuses states that are not fp16",
            Self::WideUpdate => {
                "a slice_update of a state with 128 new rows was reported to fail, 16 and 32 rows to work"
            }
            Self::BlockScales => {
                "scales per block: the engine's compiler was reported to support per channel and per tensor only (a \
                 fallback to the CPU), and 8-bit blocks to give silently wrong results"
            }
            Self::ScaledTable => {
                "a look-up table followed by a scale was reported to fail to load on macOS 26"
            }
            Self::PlainInt8 => {
                "int8 weights without a table: recommended by Apple's guide, but reported on one M4 to run on the CPU \
                 only"
            }
            Self::SignedZeroPoint => {
                "signed int8 with a zero point of 0 in constexpr_affine_dequantize was reported to be computed wrongly"
            }
            Self::Float32 => "fp32 operations run elsewhere: the engine computes in fp16",
            Self::LargeDimension => {
                "a dimension above 16384 (65536 for channels) was reported to be beyond the engine's tensors"
            }
            Self::Rank => "tensors of more than four dimensions were advised against",
            Self::ControlFlow => "control flow was reported not to be accelerated",
            Self::Operators => "these operators were reported to leave the engine",
            Self::QuantizedGather => "a gather from quantized weights: nobody has reported where it runs",
            Self::PackageSize => {
                "weights above about 1 GB: Apple's tools advise against it for the iPhone, and a package above 1.0 to \
                 1.4 GB was reported to fall back to the GPU silently"
            }
            Self::LargeIndices => "indices over a large vocabulary were reported to wrap modulo 65536",
            Self::FlexibleShapes => "shapes given as ranges were reported to force a model off the engine",
        }
    }

    /// Source of the report.
    pub fn source(self) -> &'static str {
        match self {
            Self::ManyStates | Self::LargeIndices => {
                "john-rocky/CoreML-LLM, Qwen3.5-0.8B and Gemma on iPhone"
            }
            Self::StateWidth => "apple/coremltools issue 2631",
            Self::StateType => "coremltools 9.0, observed",
            Self::WideUpdate => "Anemll issue 27, apple/coremltools issue 2553",
            Self::BlockScales => "apple/coremltools issue 2510; apple/coreai-models issue 279",
            Self::ScaledTable => "apple/coremltools pull request 2688",
            Self::PlainInt8 => {
                "coremltools documentation, opt-quantization-perf; against it kasper0406/stablehlo-coreml pull request 110"
            }
            Self::SignedZeroPoint => "apple/coremltools pull requests 2675 and 2677",
            Self::Float32 => "coremltools documentation, typed execution",
            Self::LargeDimension | Self::Rank => "Anemll, agent.md and qwen_model.py",
            Self::ControlFlow => "apple/coremltools issue 2208",
            Self::Operators => "john-rocky/CoreML-LLM, prefill research: only cumsum left the engine",
            Self::QuantizedGather => "no report known",
            Self::PackageSize => "coremltools documentation, mlmodel-utilities; john-rocky/CoreML-LLM",
            Self::FlexibleShapes => "john-rocky/CoreML-LLM; coremltools documentation, flexible-inputs",
        }
    }
}

/// Largest reported height or width of the engine's tensors; channels are limited separately.
const LARGEST_SIDE: usize = 16_384;
const LARGEST_CHANNELS: usize = 65_536;
const UPDATE_ROWS: usize = 32;
const PACKAGE_BYTES: u64 = 1_000_000_000;
const SHOWN: usize = 5;

/// All reported limits that the package touches, by function.
pub(crate) fn risks(package: &Package) -> Vec<Risk> {
    let mut risks = Vec::new();
    for (name, function) in &package.program().functions {
        if let Some(block) = function.block_specializations.get(&function.opset) {
            let mut found = Found { touches: BTreeMap::new() };
            found.function(function, block);
            risks.extend(found.touches.into_iter().map(|(limit, all)| {
                let (count, touches) = (all.len(), all.into_iter().take(SHOWN).collect());
                Risk { limit, place: name.clone(), touches, count }
            }));
        }
    }
    let bytes: u64 = package.weight_files().values().map(|file| file.len()).sum();
    let package_risk = |limit, touches: String| Risk {
        limit,
        place: "package".to_owned(),
        touches: vec![touches],
        count: 1,
    };
    if bytes > PACKAGE_BYTES {
        risks.push(package_risk(Limit::PackageSize, format!("{bytes} bytes of weights")));
    }
    if let Some(name) = ranged_feature(package.model()) {
        risks.push(package_risk(Limit::FlexibleShapes, name));
    }
    risks
}

/// Name of a feature with a flexible shape (ranges).
fn ranged_feature(model: &proto::Model) -> Option<String> {
    let description = model.description.as_ref()?;
    let functions = description.functions.iter().flat_map(|f| f.input.iter().chain(&f.output));
    let ranged = |feature: &&proto::FeatureDescription| {
        let kind = feature.r#type.as_ref().and_then(|ty| ty.kind.as_ref());
        matches!(kind, Some(proto::FeatureKind::MultiArray(array)) if array.shape_range.is_some())
    };
    let all = description.input.iter().chain(&description.output).chain(functions);
    all.into_iter().find(ranged).map(|feature| feature.name.clone())
}

struct Found {
    touches: BTreeMap<Limit, Vec<String>>,
}

fn tensor_type(value: &proto::NamedValueType) -> Option<TensorType> {
    Some(Type::try_from(value.r#type.as_ref()?).ok()?.inner().clone())
}

impl Found {
    fn add(&mut self, limit: Limit, touch: String) {
        self.touches.entry(limit).or_default().push(touch);
    }

    fn function(&mut self, function: &proto::Function, block: &proto::Block) {
        let is_state = |input: &&proto::NamedValueType| {
            matches!(
                input.r#type.as_ref().and_then(|ty| ty.kind.as_ref()),
                Some(proto::ValueTypeKind::State(_))
            )
        };
        let states: Vec<_> = function.inputs.iter().filter(is_state).collect();
        for state in &states {
            let Some(ty) = tensor_type(state) else { continue };
            if states.len() > 1 {
                self.add(Limit::ManyStates, state.name.clone());
            }
            if ty.shape.last().is_none_or(|width| width % 32 != 0) {
                self.add(Limit::StateWidth, format!("{} {ty}", state.name));
            }
            if ty.dtype != crate::DType::F16 {
                self.add(Limit::StateType, format!("{} {ty}", state.name));
            }
        }
        let mut makers: BTreeMap<&str, &proto::Operation> = BTreeMap::new();
        let mut types: BTreeMap<&str, TensorType> =
            function.inputs.iter().filter_map(|i| Some((i.name.as_str(), tensor_type(i)?))).collect();
        visit_operations(block, &mut |operation| {
            for output in &operation.outputs {
                makers.insert(&output.name, operation);
                if let Some(ty) = tensor_type(output) {
                    types.insert(&output.name, ty);
                }
            }
        });
        visit_operations(block, &mut |operation| self.operation(operation, &makers, &types));
    }

    fn operation(
        &mut self,
        operation: &proto::Operation,
        makers: &BTreeMap<&str, &proto::Operation>,
        types: &BTreeMap<&str, TensorType>,
    ) {
        let op = operation.r#type.as_str();
        let name = operation.outputs.first().map_or(op, |output| output.name.as_str());
        let argument = |parameter: &str| operation.inputs.get(parameter)?.arguments.first()?.kind.as_ref();
        let argument_name = |parameter: &str| match argument(parameter) {
            Some(proto::BindingKind::Name(name)) => Some(name.as_str()),
            _ => None,
        };
        let argument_type = |parameter: &str| match argument(parameter)? {
            proto::BindingKind::Name(name) => types.get(name.as_str()).cloned(),
            proto::BindingKind::Value(value) => {
                Some(Type::try_from(value.r#type.as_ref()?).ok()?.inner().clone())
            }
        };
        let maker = |parameter: &str| {
            argument_name(parameter).and_then(|name| makers.get(name)).map(|op| op.r#type.as_str())
        };
        match op {
            "constexpr_blockwise_shift_scale" => {
                let table = maker("data") == Some("constexpr_lut_to_dense");
                let blocks =
                    argument_type("scale").is_some_and(|scale| scale.shape.iter().skip(1).any(|&n| n > 1));
                if table {
                    self.add(Limit::ScaledTable, name.to_owned());
                } else if blocks {
                    self.add(Limit::BlockScales, name.to_owned());
                } else {
                    self.add(Limit::PlainInt8, name.to_owned());
                }
            }
            "constexpr_lut_to_dense" if maker("lut") == Some("constexpr_blockwise_shift_scale") => {
                self.add(Limit::ScaledTable, name.to_owned());
            }
            "constexpr_affine_dequantize" => {
                let zero_point =
                    operation.attributes.get("zero_point").and_then(|v| crate::Value::try_from(v).ok());
                let signed = zero_point.as_ref().is_some_and(|v| v.ty.dtype == crate::DType::I8);
                let zero = zero_point.and_then(|v| v.as_ints()).is_some_and(|v| v.iter().all(|&v| v == 0));
                self.add(
                    if signed && zero { Limit::SignedZeroPoint } else { Limit::PlainInt8 },
                    name.to_owned(),
                );
            }
            "slice_update" => {
                let rows = argument_type("update").and_then(|update| match update.shape[..] {
                    [.., rows, _] => Some(rows),
                    _ => None,
                });
                let of_state = maker("x") == Some("read_state");
                if of_state && rows.is_some_and(|rows| rows > UPDATE_ROWS) {
                    self.add(Limit::WideUpdate, name.to_owned());
                }
            }
            "while_loop" | "cond" => self.add(Limit::ControlFlow, name.to_owned()),
            "cumsum" => self.add(Limit::Operators, name.to_owned()),
            "gather" if maker("x").is_some_and(|maker| maker.starts_with("constexpr_")) => {
                self.add(Limit::QuantizedGather, name.to_owned());
            }
            "reduce_argmax" | "topk" => {
                let x = argument_type("x");
                if x.is_some_and(|x| x.shape.iter().any(|&size| size > LARGEST_CHANNELS)) {
                    self.add(Limit::LargeIndices, name.to_owned());
                }
            }
            _ => {}
        }
        if op == "const" || op.starts_with("constexpr_") {
            return;
        }
        for output in &operation.outputs {
            let Some(ty) = types.get(output.name.as_str()) else { continue };
            if ty.dtype == crate::DType::F32 {
                self.add(Limit::Float32, format!("{op} {}", output.name));
            }
            if ty.rank() > 4 {
                self.add(Limit::Rank, format!("{op} {} {ty}", output.name));
            }
            // Channels are the third axis from the back; a matrix's rows and columns are height and width.
            let too_large = ty
                .shape
                .iter()
                .rev()
                .enumerate()
                .any(|(i, &size)| size > if i == 2 { LARGEST_CHANNELS } else { LARGEST_SIDE });
            if too_large {
                self.add(Limit::LargeDimension, format!("{op} {} {ty}", output.name));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::{Argument, FunctionBuilder, model};
    use crate::{DType, PackageWriter, Value};

    #[test]
    fn risks_name_operations_and_sources() {
        let dir = tempfile::tempdir().unwrap();
        let mut package = PackageWriter::create(dir.path()).unwrap();
        let weights = package.weights();
        let codes = weights.add(DType::I8, 64 * 64, &[1; 64 * 64]).unwrap();
        let scale = weights.add(DType::F16, 128, &[0; 256]).unwrap();
        let mut f = FunctionBuilder::new("main", weights);
        let x = f.input("x", TensorType::new(DType::F32, &[1, 48, 64])).unwrap();
        let state = f.state("memory", TensorType::new(DType::F16, &[48, 40])).unwrap();
        let other = f.state("other", TensorType::new(DType::F16, &[48, 64])).unwrap();
        let half = f.cast(&x, DType::F16).unwrap();
        let weight = f
            .op(
                "constexpr_blockwise_shift_scale",
                vec![
                    ("data", Argument::Value(Value::blob(TensorType::new(DType::I8, &[64, 64]), codes))),
                    ("scale", Argument::Value(Value::blob(TensorType::new(DType::F16, &[64, 2]), scale))),
                ],
            )
            .unwrap();
        let y = f.linear(&half, &weight, None).unwrap();
        let rows = f.reshape(&y, &[48, 64]).unwrap();
        let old = f.read_state(&other).unwrap();
        let begin = f.int_constant("begin", &[2], &[0, 0]).unwrap();
        let end = f.int_constant("end", &[2], &[48, 64]).unwrap();
        let new = f.slice_update(&old, &rows, &begin, &end).unwrap();
        f.write_state(&other, &new).unwrap();
        let memory = f.read_state(&state).unwrap();
        f.output(&memory, "z").unwrap();
        let y = f.cast(&y, DType::F32).unwrap();
        let y = f.reshape(&y, &[1, 1, 1, 48, 64]).unwrap();
        f.output(&y, "y").unwrap();
        let function = f.finish().unwrap();
        package.finish(&model(vec![function], proto::Metadata::default())).unwrap();

        let package = Package::open(dir.path()).unwrap();
        assert!(crate::check(&package).errors.is_empty());
        let found: BTreeMap<Limit, usize> =
            risks(&package).into_iter().map(|risk| (risk.limit, risk.count)).collect();
        let expected = [
            (Limit::ManyStates, 2),
            (Limit::StateWidth, 1),
            (Limit::WideUpdate, 1),
            (Limit::BlockScales, 1),
            (Limit::Float32, 2),
            (Limit::Rank, 1),
        ];
        assert_eq!(found, BTreeMap::from(expected));
        for limit in found.keys() {
            assert!(!limit.risk().is_empty() && !limit.source().is_empty());
        }
    }
}
