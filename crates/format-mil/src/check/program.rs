//! The program: scopes, values, and comparison of operations with the table of operators.

use std::collections::{BTreeMap, HashMap};

use super::{Defect, Report};
use crate::ops::{Constant, Need, Operand, infer, signature};
use crate::{Data, Package, Type, Value, proto};

/// Operator sets and the specification versions that introduced them.
const OPSETS: [(i32, &str); 5] =
    [(6, "CoreML5"), (7, "CoreML6"), (8, "CoreML7"), (9, "CoreML8"), (10, "CoreML9")];
/// Largest number of elements of an immediate constant without a note.
const INLINE_ELEMENTS: usize = 1024;

pub(super) fn check(package: &Package, report: &mut Report) {
    let version = package.model().specification_version;
    let program = package.program();
    if program.version != 1 {
        report.error("program", Defect::ProgramVersion { found: program.version });
    }
    let newest = OPSETS.iter().find(|(v, _)| *v == version).map(|(_, opset)| *opset);
    if newest.is_none() {
        report.error("model", Defect::SpecificationVersion { found: version });
    }
    for (name, function) in &program.functions {
        if !is_identifier(name) {
            report.error(name, Defect::Identifier { name: name.clone() });
        }
        let opset = &function.opset;
        let known = OPSETS.iter().any(|(v, known)| *v <= version && known == opset);
        match newest {
            _ if !known => report.error(name, Defect::Opset { found: opset.clone(), version }),
            Some(allowed) if allowed != opset => {
                report.note(name, Defect::OlderOpset { found: opset.clone(), allowed });
            }
            _ => {}
        }
        let Some(block) = function.block_specializations.get(opset) else {
            report.error(name, Defect::NoBlock { opset: opset.clone() });
            continue;
        };
        let mut checker =
            ProgramChecker { package, report, version, scope: HashMap::new(), literals: Vec::new() };
        for input in &function.inputs {
            if let Some(ty) = checker.declared(input, name) {
                if matches!(ty, Type::State(_)) && version < 9 {
                    checker.too_old(name, "a state", 9);
                }
                checker.define(&input.name, ty, Knowledge::Runtime, name);
            }
        }
        checker.block(block, name);
    }
}

/// `[A-Za-z_][A-Za-z0-9_@]*`
fn is_identifier(name: &str) -> bool {
    let mut characters = name.chars();
    characters.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && characters.all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '@')
}

struct ProgramChecker<'a> {
    package: &'a Package,
    report: &'a mut Report,
    version: i32,
    scope: HashMap<String, (Type, Knowledge)>,
    literals: Vec<Value>,
}

/// Compile-time knowledge of a defined value.
#[derive(Clone, Copy)]
enum Knowledge {
    Runtime,
    Expression,
    /// A literal: index into the checker's literals.
    Literal(usize),
}

impl ProgramChecker<'_> {
    fn too_old(&mut self, place: &str, feature: &str, needed: i32) {
        let found = self.version;
        self.report.error(place, Defect::TooOld { feature: feature.to_owned(), needed, found });
    }

    fn declared(&mut self, value: &proto::NamedValueType, place: &str) -> Option<Type> {
        let converted = match &value.r#type {
            Some(ty) => Type::try_from(ty),
            None => Err(crate::TypeError::Missing),
        };
        converted
            .map_err(|source| self.report.error(place, Defect::Type { name: value.name.clone(), source }))
            .ok()
    }

    fn define(&mut self, name: &str, ty: Type, fact: Knowledge, place: &str) {
        if !is_identifier(name) {
            self.report.error(place, Defect::Identifier { name: name.to_owned() });
        }
        if self.scope.insert(name.to_owned(), (ty, fact)).is_some() {
            self.report.error(place, Defect::Duplicate { name: name.to_owned() });
        }
    }

    /// Checks a block and returns the types of its outputs; its names go out of scope.
    fn block(&mut self, block: &proto::Block, place: &str) -> Vec<Option<Type>> {
        let mut defined = Vec::new();
        for input in &block.inputs {
            if let Some(ty) = self.declared(input, place) {
                self.define(&input.name, ty, Knowledge::Runtime, place);
                defined.push(input.name.as_str());
            }
        }
        for operation in &block.operations {
            self.operation(operation, place);
            defined.extend(operation.outputs.iter().map(|output| output.name.as_str()));
        }
        let mut types = Vec::new();
        for name in &block.outputs {
            types.push(self.scope.get(name).map(|(ty, _)| ty.clone()));
            if types.last() == Some(&None) {
                self.report.error(place, Defect::UndefinedOutput { name: name.clone() });
            }
        }
        defined.into_iter().for_each(|name| {
            self.scope.remove(name);
        });
        types
    }

    fn operation(&mut self, operation: &proto::Operation, function: &str) {
        let op = operation.r#type.as_str();
        let place = match operation.outputs.first() {
            Some(output) => format!("{function}/{}", output.name),
            None => format!("{function}/{op}"),
        };
        if !operation.attributes.contains_key("name") {
            self.report.note(&place, Defect::Unnamed);
        }
        let mut attributes = BTreeMap::new();
        for (key, value) in &operation.attributes {
            if let Some(value) = self.value(value, key, &place) {
                attributes.insert(key.as_str(), value);
            }
        }
        let mut declared = Vec::new();
        for output in &operation.outputs {
            declared.push(self.declared(output, &place));
        }
        if op == "const" {
            let fact = self.constant(operation, attributes.remove("val"), declared.first(), &place);
            self.define_results(operation, declared, fact, &place);
            return;
        }
        let arguments = self.arguments(operation, &place);
        for inner in &operation.blocks {
            self.block(inner, &place);
        }
        self.versions(op, &attributes, &place);
        let fact = if op.starts_with("constexpr_") { Knowledge::Expression } else { Knowledge::Runtime };
        if op == "cond" || op == "while_loop" {
            if operation.blocks.len() != 2 {
                let found = operation.blocks.len();
                self.report.error(&place, Defect::Blocks { found, expected: 2 });
            }
        } else if let Some(arguments) = arguments {
            let inferred = self.inferred(op, &arguments, &attributes);
            self.compare(operation, inferred, &declared, &place);
            self.omissions(op, operation, &place);
        }
        self.define_results(operation, declared, fact, &place);
    }

    fn define_results(
        &mut self,
        operation: &proto::Operation,
        types: Vec<Option<Type>>,
        fact: Knowledge,
        place: &str,
    ) {
        for (output, ty) in operation.outputs.iter().zip(types) {
            if let Some(ty) = ty {
                self.define(&output.name, ty, fact, place);
            }
        }
    }

    /// Checks a value and its weight record; `None` if the value is malformed.
    fn value(&mut self, value: &proto::Value, parameter: &str, place: &str) -> Option<Value> {
        let value = match Value::try_from(value) {
            Ok(value) => value,
            Err(source) => {
                self.report.error(place, Defect::Value { parameter: parameter.to_owned(), source });
                return None;
            }
        };
        match &value.data {
            Data::Blob(blob) => match self.package.weight_files().get(&blob.file) {
                Some(file) => {
                    if let Err(error) = file.data(blob.offset, &value.ty) {
                        self.report.error(place, error);
                    }
                }
                None => self.report.error(place, Defect::Reference { file: blob.file.clone() }),
            },
            Data::Immediate(_) => {
                let (count, dtype) = (value.ty.count(), value.ty.dtype);
                if dtype.blob_code().is_some() && count > INLINE_ELEMENTS {
                    self.report.note(place, Defect::Inline { count, dtype });
                }
            }
        }
        Some(value)
    }

    fn constant(
        &mut self,
        operation: &proto::Operation,
        value: Option<Value>,
        declared: Option<&Option<Type>>,
        place: &str,
    ) -> Knowledge {
        let well_formed = operation.outputs.len() == 1
            && operation.inputs.is_empty()
            && operation.attributes.contains_key("val")
            && operation.blocks.is_empty();
        if !well_formed {
            self.report.error(place, Defect::Const);
        }
        let Some(value) = value else { return Knowledge::Runtime };
        if let Some(Some(declared)) = declared {
            let actual = Type::Tensor(value.ty.clone());
            if actual != *declared {
                self.report.error(place, Defect::ConstType { declared: declared.clone(), value: actual });
                // The contents do not fit the declared type, so they are treated as unknown.
                return Knowledge::Expression;
            }
        }
        self.literals.push(value);
        Knowledge::Literal(self.literals.len() - 1)
    }

    /// Types and compile-time knowledge of all arguments; `None` after a report that one is malformed.
    fn arguments(
        &mut self,
        operation: &proto::Operation,
        place: &str,
    ) -> Option<BTreeMap<String, Vec<(Type, Knowledge)>>> {
        let mut complete = true;
        let mut arguments = BTreeMap::new();
        for (parameter, argument) in &operation.inputs {
            let mut values = Vec::new();
            for binding in &argument.arguments {
                let found = match &binding.kind {
                    Some(proto::BindingKind::Name(name)) => {
                        let found = self.scope.get(name).cloned();
                        if found.is_none() {
                            let (parameter, name) = (parameter.clone(), name.clone());
                            self.report.error(place, Defect::Undefined { parameter, name });
                        }
                        found
                    }
                    Some(proto::BindingKind::Value(value)) => {
                        self.value(value, parameter, place).map(|value| {
                            let ty = Type::Tensor(value.ty.clone());
                            self.literals.push(value);
                            (ty, Knowledge::Literal(self.literals.len() - 1))
                        })
                    }
                    None => {
                        self.report.error(place, Defect::EmptyArgument { parameter: parameter.clone() });
                        None
                    }
                };
                complete &= found.is_some();
                values.extend(found);
            }
            arguments.insert(parameter.clone(), values);
        }
        complete.then_some(arguments)
    }

    fn inferred(
        &self,
        op: &str,
        arguments: &BTreeMap<String, Vec<(Type, Knowledge)>>,
        attributes: &BTreeMap<&str, Value>,
    ) -> Result<Vec<Type>, crate::ops::InferError> {
        if op == "constexpr_lut_to_dense"
            && let (Some(lut), Some(shape)) = (attributes.get("lut"), attributes.get("shape"))
        {
            // iOS 16: flat indices and table, with the shape as a separate attribute.
            let shape = shape.as_ints().unwrap_or_default();
            let shape: Vec<usize> = shape.iter().map(|&size| size as usize).collect();
            return Ok(vec![Type::tensor(lut.ty.dtype, &shape)]);
        }
        let types: BTreeMap<&str, Type> =
            attributes.iter().map(|(key, value)| (*key, Type::Tensor(value.ty.clone()))).collect();
        let mut operands: BTreeMap<String, Vec<Operand<'_>>> = BTreeMap::new();
        for (parameter, values) in arguments {
            let operand = |(ty, fact)| Operand {
                ty,
                constant: match fact {
                    Knowledge::Runtime => Constant::Runtime,
                    Knowledge::Expression => Constant::Expression,
                    Knowledge::Literal(index) => Constant::Value(&self.literals[index]),
                },
            };
            operands
                .insert(parameter.clone(), values.iter().map(|(ty, fact)| operand((ty, *fact))).collect());
        }
        if signature(op).is_some_and(|signature| signature.in_attributes) {
            for (&key, value) in attributes.iter().filter(|(key, _)| **key != "name") {
                let operand = Operand { ty: &types[key], constant: Constant::Value(value) };
                operands.insert(key.to_owned(), vec![operand]);
            }
        }
        infer(op, &operands)
    }

    fn compare(
        &mut self,
        operation: &proto::Operation,
        inferred: Result<Vec<Type>, crate::ops::InferError>,
        declared: &[Option<Type>],
        place: &str,
    ) {
        let inferred = match inferred {
            Ok(inferred) => inferred,
            Err(error) => return self.report.error(place, error),
        };
        if inferred.len() != declared.len() {
            let (declared, inferred) = (declared.len(), inferred.len());
            return self.report.error(place, Defect::ResultCount { declared, inferred });
        }
        for ((output, declared), inferred) in operation.outputs.iter().zip(declared).zip(inferred) {
            if let Some(declared) = declared
                && *declared != inferred
            {
                let (name, declared) = (output.name.clone(), declared.clone());
                self.report.error(place, Defect::Declared { name, declared, inferred });
            }
        }
    }

    /// Notes absent parameters whose default coremltools writes explicitly.
    fn omissions(&mut self, op: &str, operation: &proto::Operation, place: &str) {
        let Some(signature) = signature(op) else { return };
        let omitted: Vec<&str> = signature
            .parameters
            .iter()
            .filter(|parameter| matches!(parameter.need, Need::Default(_)))
            .map(|parameter| parameter.name)
            .filter(|name| !operation.inputs.contains_key(*name) && !operation.attributes.contains_key(*name))
            .collect();
        if !omitted.is_empty() {
            self.report.note(place, Defect::Omitted { parameters: omitted.join(", ") });
        }
    }

    /// Checks the specification version that an operator needs.
    fn versions(&mut self, op: &str, attributes: &BTreeMap<&str, Value>, place: &str) {
        let needed = match op {
            "constexpr_lut_to_dense" if attributes.contains_key("lut") => 7,
            "constexpr_affine_dequantize" | "constexpr_cast" | "constexpr_sparse_to_dense" => 7,
            "constexpr_blockwise_shift_scale"
            | "constexpr_lut_to_dense"
            | "read_state"
            | "write_state"
            | "scaled_dot_product_attention"
            | "slice_update" => 9,
            _ => 6,
        };
        if self.version < needed {
            self.too_old(place, op, needed);
        }
    }
}
