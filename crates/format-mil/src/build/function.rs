//! Builder of one function.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Seek, Write};

use half::f16;
use prost::Message;

use super::model::{Feature, FinishedFunction};
use crate::ops::{self, Constant, Default as DefaultValue, InferError, Need, Operand, signature};
use crate::proto::{self, Elements};
use crate::{DType, Data, TensorType, Type, Value, WeightWriteError, WeightWriter};

/// Operator set of built functions: iOS 18 / macOS 15.
pub const OPSET: &str = "CoreML8";

/// Constants of at least this many elements are stored in the weight file, as by coremltools.
const BLOB_FROM: usize = 10;

/// A value of the builder that created it.
#[derive(Clone, Debug)]
pub struct Tensor {
    id: usize,
    ty: Type,
}

impl Tensor {
    /// Dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.ty.inner().shape
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.ty.inner().dtype
    }
}

/// Argument of an operation.
#[derive(Clone, Debug)]
pub enum Argument {
    /// A value.
    Tensor(Tensor),
    /// Several values, for a variadic parameter.
    Tensors(Vec<Tensor>),
    /// A constant, which becomes a `const` operation.
    Value(Value),
}

impl From<&Tensor> for Argument {
    fn from(tensor: &Tensor) -> Self {
        Self::Tensor(tensor.clone())
    }
}

impl From<Value> for Argument {
    fn from(value: Value) -> Self {
        Self::Value(value)
    }
}

/// Failure to build a function.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// An operation is invalid.
    #[error("{function}/{name}: {source}")]
    Operation {
        /// The function.
        function: String,
        /// Name of the operation.
        name: String,
        /// The defect.
        source: Box<InferError>,
    },
    /// A name is not an identifier, or is in use.
    #[error("{function}: `{name}` {reason}")]
    Name {
        /// The function.
        function: String,
        /// The name.
        name: String,
        /// The defect.
        reason: &'static str,
    },
    /// An argument is a value of another function.
    #[error("{function}: a value of another function is used")]
    Foreign {
        /// The function.
        function: String,
    },
    /// The number of elements differs from the shape's.
    #[error("{function}/{name}: {found} elements for {ty}")]
    Elements {
        /// The function.
        function: String,
        /// The constant.
        name: String,
        /// Declared type.
        ty: TensorType,
        /// Number of elements found.
        found: usize,
    },
    /// The weight file could not be written.
    #[error(transparent)]
    Weights(#[from] WeightWriteError),
}

/// A value of the function.
#[derive(Debug)]
struct ValueInfo {
    name: String,
    ty: Type,
    constant: CompileTime,
}

/// Compile-time contents of a value.
#[derive(Debug)]
enum CompileTime {
    Unknown,
    Expression,
    Value(Value),
}

/// An operation whose values are referenced by index; names are final only in [`FunctionBuilder::finish`].
#[derive(Debug)]
struct Pending {
    op: String,
    arguments: Vec<(String, Vec<usize>)>,
    /// Immediate arguments: attributes, or blobs of a `constexpr_*`.
    inline: Vec<(String, Value)>,
    results: Vec<usize>,
    /// The name of an operation without results.
    name: Option<String>,
}

/// Builds one function; see [the module](super).
///
/// ```
/// use q35_format_mil::{DType, TensorType, WeightWriter, build::FunctionBuilder};
///
/// let mut weights = WeightWriter::new(std::io::Cursor::new(Vec::new()))?;
/// let mut f = FunctionBuilder::new("main", &mut weights);
/// let x = f.input("x", TensorType::new(DType::F16, &[1, 4]))?;
/// let weight = f.constant("weight", DType::F16, &[3, 4], &[0.5; 12])?;
/// let y = f.linear(&x, &weight, None)?;
/// let y = f.silu(&y)?;
/// f.output(&y, "y")?;
/// assert!(f.add(&x, &y).unwrap_err().to_string().starts_with("main/add: `add`(x: fp16[1, 4], y: fp16[1, 3])"));
/// let function = f.finish()?;
/// assert_eq!(function.outputs[0].name, "y");
/// # Ok::<(), q35_format_mil::build::BuildError>(())
/// ```
#[derive(Debug)]
pub struct FunctionBuilder<'w, W> {
    name: String,
    weights: &'w mut WeightWriter<W>,
    scope: String,
    values: Vec<ValueInfo>,
    names: BTreeSet<String>,
    next_suffix: BTreeMap<String, usize>,
    inputs: Vec<usize>,
    operations: Vec<Pending>,
    outputs: Vec<usize>,
    constants: BTreeMap<Vec<u8>, usize>,
}

impl<'w, W: Write + Seek> FunctionBuilder<'w, W> {
    /// Starts an empty function that stores large constants in `weights`.
    pub fn new(name: &str, weights: &'w mut WeightWriter<W>) -> Self {
        Self {
            name: name.to_owned(),
            weights,
            scope: String::new(),
            values: Vec::new(),
            names: BTreeSet::new(),
            next_suffix: BTreeMap::new(),
            inputs: Vec::new(),
            operations: Vec::new(),
            outputs: Vec::new(),
            constants: BTreeMap::new(),
        }
    }

    /// Writer of the weight file.
    pub fn weights(&mut self) -> &mut WeightWriter<W> {
        self.weights
    }

    /// Sets the prefix of generated names.
    pub fn set_scope(&mut self, scope: &str) {
        self.scope = scope.to_owned();
    }

    /// Adds an input.
    ///
    /// # Errors
    /// The name is invalid or in use.
    pub fn input(&mut self, name: &str, ty: TensorType) -> Result<Tensor, BuildError> {
        self.parameter(name, Type::Tensor(ty))
    }

    /// Adds a state.
    ///
    /// # Errors
    /// The name is invalid or in use.
    pub fn state(&mut self, name: &str, ty: TensorType) -> Result<Tensor, BuildError> {
        self.parameter(name, Type::State(ty))
    }

    fn parameter(&mut self, name: &str, ty: Type) -> Result<Tensor, BuildError> {
        self.claim(name)?;
        let tensor = self.value(name.to_owned(), ty, CompileTime::Unknown);
        self.inputs.push(tensor.id);
        Ok(tensor)
    }

    /// Makes `tensor` the next output of the function, named `name`.
    ///
    /// # Errors
    /// The name is invalid or in use, or the value is already an input or an output.
    pub fn output(&mut self, tensor: &Tensor, name: &str) -> Result<(), BuildError> {
        self.check_owned(tensor)?;
        if self.inputs.contains(&tensor.id) || self.outputs.contains(&tensor.id) {
            let reason = "is an input or an output already and cannot get a second name";
            return Err(BuildError::Name { function: self.name.clone(), name: name.to_owned(), reason });
        }
        self.rename(tensor, name)?;
        self.outputs.push(tensor.id);
        Ok(())
    }

    /// Renames a value.
    ///
    /// # Errors
    /// The name is invalid or in use.
    pub fn rename(&mut self, tensor: &Tensor, name: &str) -> Result<(), BuildError> {
        self.check_owned(tensor)?;
        self.claim(name)?;
        let old = std::mem::replace(&mut self.values[tensor.id].name, name.to_owned());
        self.names.remove(&old);
        Ok(())
    }

    /// Adds a float constant with `values` rounded to `dtype` (fp16 or fp32).
    ///
    /// # Errors
    /// The number of elements differs from the shape's, the name is invalid or in use, or the weight file cannot be
    /// written.
    pub fn constant(
        &mut self,
        name: &str,
        dtype: DType,
        shape: &[usize],
        values: &[f32],
    ) -> Result<Tensor, BuildError> {
        let value = self.float_value(name, dtype, shape, values)?;
        self.claim(name)?;
        Ok(self.push_constant(name.to_owned(), value))
    }

    /// Like [`Self::constant`], but equal constants share the first one's operation, and the name is made unique.
    ///
    /// # Errors
    /// The number of elements differs from the shape's, or the weight file cannot be written.
    pub fn shared_constant(
        &mut self,
        name: &str,
        dtype: DType,
        shape: &[usize],
        values: &[f32],
    ) -> Result<Tensor, BuildError> {
        let value = self.float_value(name, dtype, shape, values)?;
        self.value_constant(name, value)
    }

    fn float_value(
        &mut self,
        name: &str,
        dtype: DType,
        shape: &[usize],
        values: &[f32],
    ) -> Result<Value, BuildError> {
        let bytes: Vec<u8> = match dtype {
            DType::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        };
        let ty = TensorType::new(if dtype == DType::F16 { dtype } else { DType::F32 }, shape);
        self.stored_value(name, ty, values.len(), &bytes, |dtype| match dtype {
            DType::F16 => Elements::Bytes(proto::RepeatedBytes { values: bytes.clone() }),
            _ => Elements::Floats(proto::RepeatedFloats { values: values.to_vec() }),
        })
    }

    /// Adds an int32 constant, shared like [`Self::shared_constant`].
    ///
    /// # Errors
    /// The number of elements differs from the shape's, or the weight file cannot be written.
    pub fn int_constant(
        &mut self,
        name: &str,
        shape: &[usize],
        values: &[i32],
    ) -> Result<Tensor, BuildError> {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let ty = TensorType::new(DType::I32, shape);
        let elements = || Elements::Ints(proto::RepeatedInts { values: values.to_vec() });
        let value = self.stored_value(name, ty, values.len(), &bytes, |_| elements())?;
        self.value_constant(name, value)
    }

    fn stored_value(
        &mut self,
        name: &str,
        ty: TensorType,
        found: usize,
        bytes: &[u8],
        elements: impl Fn(DType) -> Elements,
    ) -> Result<Value, BuildError> {
        if found != ty.count() {
            let (function, name) = (self.name.clone(), name.to_owned());
            return Err(BuildError::Elements { function, name, ty, found });
        }
        if found < BLOB_FROM {
            let data = Data::Immediate(elements(ty.dtype));
            return Ok(Value { ty, data });
        }
        let offset = self.weights.add(ty.dtype, found, bytes)?;
        Ok(Value::blob(ty, offset))
    }

    /// Adds a constant of any type. Equal constants share the first one's operation and name.
    ///
    /// # Errors
    /// The name is invalid.
    pub fn value_constant(&mut self, name: &str, value: Value) -> Result<Tensor, BuildError> {
        let key = proto::Value::from(&value).encode_to_vec();
        if let Some(&id) = self.constants.get(&key) {
            return Ok(Tensor { id, ty: self.values[id].ty.clone() });
        }
        let name = self.unique(name)?;
        let tensor = self.push_constant(name, value);
        self.constants.insert(key, tensor.id);
        Ok(tensor)
    }

    fn push_constant(&mut self, name: String, value: Value) -> Tensor {
        let ty = Type::Tensor(value.ty.clone());
        let tensor = self.value(name, ty, CompileTime::Value(value.clone()));
        self.operations.push(Pending {
            op: "const".into(),
            arguments: Vec::new(),
            inline: vec![("val".into(), value)],
            results: vec![tensor.id],
            name: None,
        });
        tensor
    }

    /// Adds an operation with one result.
    ///
    /// # Errors
    /// The operation is invalid, or its constants cannot be stored.
    pub fn op(&mut self, op: &str, arguments: Vec<(&str, Argument)>) -> Result<Tensor, BuildError> {
        let mut results = self.op_many(op, arguments)?;
        match (results.pop(), results.len()) {
            (Some(result), 0) => Ok(result),
            _ => self.wrong(op, ops::Problem::Shape("it does not have one result".into())),
        }
    }

    /// Adds an operation with any number of results.
    ///
    /// # Errors
    /// The operation is invalid, or its constants cannot be stored.
    pub fn op_many(&mut self, op: &str, arguments: Vec<(&str, Argument)>) -> Result<Vec<Tensor>, BuildError> {
        let Some(signature) = signature(op) else { return self.wrong(op, ops::Problem::Operator) };
        // Arguments of constexpr operations stay immediate; others become const operations.
        let in_place = op.starts_with("constexpr_");
        let mut inline: Vec<(String, Value)> = Vec::new();
        let mut bound: Vec<(String, Vec<usize>)> = Vec::new();
        let first = |arguments: &[(&str, Argument)], name: &str| {
            arguments.iter().find(|(other, _)| *other == name).and_then(|(_, argument)| match argument {
                Argument::Tensor(tensor) => Some(tensor.ty.inner().clone()),
                _ => None,
            })
        };
        let (x, weight) = (first(&arguments, "x"), first(&arguments, "weight"));
        let missing = signature.parameters.iter().filter_map(|parameter| match parameter.need {
            Need::Default(default) if arguments.iter().all(|(name, _)| *name != parameter.name) => {
                Some((parameter.name, default))
            }
            _ => None,
        });
        let defaults: Vec<(&str, DefaultValue)> = missing.collect();
        for (name, argument) in arguments {
            match argument {
                Argument::Value(value) if in_place => inline.push((name.to_owned(), value)),
                Argument::Value(value) => {
                    let constant = self.value_constant(name, value)?;
                    bound.push((name.to_owned(), vec![constant.id]));
                }
                Argument::Tensor(tensor) => {
                    self.check_owned(&tensor)?;
                    bound.push((name.to_owned(), vec![tensor.id]));
                }
                Argument::Tensors(tensors) => {
                    tensors.iter().try_for_each(|tensor| self.check_owned(tensor))?;
                    bound.push((name.to_owned(), tensors.iter().map(|tensor| tensor.id).collect()));
                }
            }
        }
        for (name, default) in defaults {
            let constant = match default_value(default, x.as_ref(), weight.as_ref()) {
                Some(DefaultArgument::Value(value)) => self.value_constant(name, value)?,
                Some(DefaultArgument::Zeros(dtype, count)) => {
                    self.shared_constant("zeros", dtype, &[count], &vec![0.0; count])?
                }
                None => continue,
            };
            bound.push((name.to_owned(), vec![constant.id]));
        }
        let types = self.infer(op, &bound, &inline)?;
        let stored = || if in_place { CompileTime::Expression } else { CompileTime::Unknown };
        let mut results = Vec::with_capacity(types.len());
        for ty in &types {
            let name = self.unique_in_scope(op)?;
            results.push(self.value(name, ty.clone(), stored()));
        }
        let name = if types.is_empty() { Some(self.unique_in_scope(op)?) } else { None };
        let ids = results.iter().map(|result| result.id).collect();
        self.operations.push(Pending { op: op.to_owned(), arguments: bound, inline, results: ids, name });
        Ok(results)
    }

    fn infer(
        &self,
        op: &str,
        bound: &[(String, Vec<usize>)],
        inline: &[(String, Value)],
    ) -> Result<Vec<Type>, BuildError> {
        let inline_types: Vec<Type> =
            inline.iter().map(|(_, value)| Type::Tensor(value.ty.clone())).collect();
        let mut operands: BTreeMap<String, Vec<Operand<'_>>> = BTreeMap::new();
        for (name, ids) in bound {
            let operand = |&id: &usize| Operand {
                ty: &self.values[id].ty,
                constant: match &self.values[id].constant {
                    CompileTime::Unknown => Constant::Runtime,
                    CompileTime::Expression => Constant::Expression,
                    CompileTime::Value(value) => Constant::Value(value),
                },
            };
            operands.insert(name.clone(), ids.iter().map(operand).collect());
        }
        for ((name, value), ty) in inline.iter().zip(&inline_types) {
            operands.insert(name.clone(), vec![Operand { ty, constant: Constant::Value(value) }]);
        }
        ops::infer(op, &operands).map_err(|error| BuildError::Operation {
            function: self.name.clone(),
            name: self.scoped(op),
            source: Box::new(error),
        })
    }

    fn wrong<T>(&self, op: &str, problem: ops::Problem) -> Result<T, BuildError> {
        let source = Box::new(InferError { op: op.to_owned(), inputs: String::new(), problem });
        Err(BuildError::Operation { function: self.name.clone(), name: self.scoped(op), source })
    }

    /// Completes the function.
    ///
    /// # Errors
    /// The function has no output.
    pub fn finish(self) -> Result<FinishedFunction, BuildError> {
        if self.outputs.is_empty() {
            let reason = "has no outputs";
            return Err(BuildError::Name { function: self.name.clone(), name: self.name, reason });
        }
        let named = |&id: &usize| proto::NamedValueType {
            name: self.values[id].name.clone(),
            r#type: Some((&self.values[id].ty).into()),
        };
        let feature =
            |&id: &usize| Feature { name: self.values[id].name.clone(), ty: self.values[id].ty.clone() };
        let operations = self.operations.iter().map(|pending| self.operation(pending)).collect();
        let outputs = self.outputs.iter().map(|&id| self.values[id].name.clone()).collect();
        let block = proto::Block { outputs, operations, ..Default::default() };
        let function = proto::Function {
            inputs: self.inputs.iter().map(named).collect(),
            opset: OPSET.to_owned(),
            block_specializations: BTreeMap::from([(OPSET.to_owned(), block)]),
            attributes: BTreeMap::new(),
        };
        Ok(FinishedFunction {
            inputs: self.inputs.iter().map(feature).collect(),
            outputs: self.outputs.iter().map(feature).collect(),
            name: self.name,
            function,
        })
    }

    fn operation(&self, pending: &Pending) -> proto::Operation {
        let binding = |kind| proto::Binding { kind: Some(kind) };
        let mut inputs = BTreeMap::new();
        for (name, ids) in &pending.arguments {
            let by_name = |&id: &usize| binding(proto::BindingKind::Name(self.values[id].name.clone()));
            inputs.insert(name.clone(), proto::Argument { arguments: ids.iter().map(by_name).collect() });
        }
        let own_name = match (&pending.name, pending.results.first()) {
            (Some(name), _) => name,
            (None, Some(&id)) => &self.values[id].name,
            (None, None) => &pending.op,
        };
        let mut attributes = BTreeMap::from([("name".to_owned(), (&Value::string(own_name)).into())]);
        let as_attributes = pending.op == "const" || signature(&pending.op).is_some_and(|s| s.in_attributes);
        for (name, value) in &pending.inline {
            if as_attributes {
                attributes.insert(name.clone(), value.into());
            } else {
                let arguments = vec![binding(proto::BindingKind::Value(value.into()))];
                inputs.insert(name.clone(), proto::Argument { arguments });
            }
        }
        let outputs = pending.results.iter().map(|&id| proto::NamedValueType {
            name: self.values[id].name.clone(),
            r#type: Some((&self.values[id].ty).into()),
        });
        proto::Operation {
            r#type: pending.op.clone(),
            inputs,
            outputs: outputs.collect(),
            blocks: Vec::new(),
            attributes,
        }
    }

    fn value(&mut self, name: String, ty: Type, constant: CompileTime) -> Tensor {
        self.values.push(ValueInfo { name, ty: ty.clone(), constant });
        Tensor { id: self.values.len() - 1, ty }
    }

    fn check_owned(&self, tensor: &Tensor) -> Result<(), BuildError> {
        match self.values.get(tensor.id) {
            Some(value) if value.ty == tensor.ty => Ok(()),
            _ => Err(BuildError::Foreign { function: self.name.clone() }),
        }
    }

    fn claim(&mut self, name: &str) -> Result<(), BuildError> {
        let invalid =
            |reason| Err(BuildError::Name { function: self.name.clone(), name: name.to_owned(), reason });
        if !is_identifier(name) {
            return invalid("is not an identifier");
        }
        if !self.names.insert(name.to_owned()) {
            return invalid("is in use");
        }
        Ok(())
    }

    fn scoped(&self, name: &str) -> String {
        if self.scope.is_empty() { name.to_owned() } else { format!("{}_{name}", self.scope) }
    }

    fn unique_in_scope(&mut self, name: &str) -> Result<String, BuildError> {
        self.unique(&self.scoped(name))
    }

    fn unique(&mut self, name: &str) -> Result<String, BuildError> {
        if !self.names.contains(name) {
            self.claim(name)?;
            return Ok(name.to_owned());
        }
        loop {
            let suffix = self.next_suffix.entry(name.to_owned()).or_insert(0);
            *suffix += 1;
            let candidate = format!("{name}_{suffix}");
            if !self.names.contains(&candidate) {
                self.claim(&candidate)?;
                return Ok(candidate);
            }
        }
    }
}

/// A default value to write.
enum DefaultArgument {
    Value(Value),
    Zeros(DType, usize),
}

fn default_value(
    default: DefaultValue,
    x: Option<&TensorType>,
    weight: Option<&TensorType>,
) -> Option<DefaultArgument> {
    let spatial = x.map_or(0, |x| x.rank().saturating_sub(2));
    Some(DefaultArgument::Value(match default {
        DefaultValue::Bool(value) => Value::bool(value),
        DefaultValue::Int(value) => Value::int(value),
        DefaultValue::Text(text) => Value::string(text),
        DefaultValue::Float(value) => Value::float(x.map_or(DType::F32, |x| x.dtype), value)?,
        DefaultValue::SpatialOnes => Value::ints(&vec![1; spatial]),
        DefaultValue::SpatialZeroPairs => Value::ints(&vec![0; 2 * spatial]),
        DefaultValue::AllAxes => Value::ints(&(0..x?.rank() as i32).collect::<Vec<_>>()),
        DefaultValue::ZeroBias => {
            let weight = weight?;
            return Some(DefaultArgument::Zeros(weight.dtype, *weight.shape.first()?));
        }
    }))
}

/// True if Core ML accepts `name` as an identifier: `[A-Za-z_][A-Za-z0-9_@]*`.
pub fn is_identifier(name: &str) -> bool {
    let mut characters = name.chars();
    characters.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && characters.all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '@')
}
