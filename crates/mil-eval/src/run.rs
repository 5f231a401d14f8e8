//! Running a function: step by step over an environment of slots.

use std::collections::BTreeMap;
use std::sync::Arc;

use q35_format_mil::{DType, TensorType};

use crate::ops::{Call, only_moves};
use crate::plan::{Action, Block, Function, Step};
use crate::tensor::{Data, Tensor};
use crate::weight::Value;
use crate::{EvalError, Fault, Precision, State};

/// A loop that runs longer than this is taken to be endless.
const MAX_ITERATIONS: usize = 1 << 20;

/// Sees every value that an operation of a function results in: its name and the value.
pub type Watcher<'a> = dyn FnMut(&str, &Tensor) + 'a;

/// A call of a function.
pub(crate) struct Run<'a, 'w> {
    pub(crate) function: &'a Function,
    pub(crate) precision: Precision,
    pub(crate) state: &'a mut State,
    pub(crate) watcher: Option<&'a mut Watcher<'w>>,
    pub(crate) slots: Vec<Option<Value>>,
}

impl Run<'_, '_> {
    /// Runs the function's body on inputs by name.
    pub(crate) fn call(
        &mut self,
        mut inputs: BTreeMap<String, Tensor>,
    ) -> Result<BTreeMap<String, Tensor>, EvalError> {
        let function = self.function;
        for (port, slot) in &function.inputs {
            let given = inputs.remove(&port.name);
            let found = given.as_ref().map_or_else(|| "nothing".to_owned(), describe);
            let value = given.and_then(|tensor| accepted(tensor, &port.ty, self.precision));
            let value = value.ok_or_else(|| self.input(&port.name, port.ty.to_string(), found))?;
            self.slots[*slot] = Some(Value::Tensor(value));
        }
        if let Some((name, tensor)) = inputs.first_key_value() {
            return Err(self.input(name, "no such input".to_owned(), describe(tensor)));
        }
        if let Some(watcher) = &mut self.watcher {
            for (name, slot) in &function.folded {
                if let Some(Value::Tensor(tensor)) = &function.constants[*slot] {
                    watcher(name, tensor);
                }
            }
        }
        let results = self.block(&function.body)?;
        let mut outputs = BTreeMap::new();
        for (port, value) in function.outputs.iter().zip(results) {
            let tensor = value.into_dense().map_err(|fault| self.fault(&port.name, "output", fault))?;
            outputs.insert(port.name.clone(), tensor);
        }
        Ok(outputs)
    }

    fn input(&self, input: &str, expected: String, found: String) -> EvalError {
        EvalError::Input { function: self.function.name.clone(), input: input.to_owned(), expected, found }
    }

    fn fault(&self, operation: &str, operator: &str, fault: Fault) -> EvalError {
        EvalError::Operation {
            function: self.function.name.clone(),
            operation: operation.to_owned(),
            operator: operator.to_owned(),
            fault,
        }
    }

    fn value(&self, slot: usize) -> Option<&Value> {
        self.slots[slot].as_ref().or(self.function.constants[slot].as_ref())
    }

    /// Runs a block's steps and gives its outputs; the values of its own are gone afterwards.
    fn block(&mut self, block: &Block) -> Result<Vec<Value>, EvalError> {
        for step in &block.steps {
            self.step(step).map_err(|error| match error {
                Failure::Fault(fault) => self.fault(&step.name, &step.operator, fault),
                Failure::Whole(error) => error,
            })?;
        }
        let missing = || self.fault("output", "block", Fault::invalid("an output was never computed"));
        block.outputs.iter().map(|&slot| self.value(slot).cloned().ok_or_else(missing)).collect()
    }

    fn step(&mut self, step: &Step) -> Result<(), Failure> {
        let mut inputs = Vec::with_capacity(step.inputs.len());
        for (parameter, slots) in &step.inputs {
            let values: Option<Vec<Value>> = slots.iter().map(|&slot| self.value(slot).cloned()).collect();
            inputs.push((parameter.clone(), values.ok_or_else(|| Fault::Missing(parameter.clone()))?));
        }
        // Values that die here are handed over, so that operators may reuse their memory.
        let nested = matches!(step.action, Action::Cond(_) | Action::While(_));
        if !nested {
            step.last.iter().for_each(|&slot| self.slots[slot] = None);
        }
        let results = match &step.action {
            Action::Compute(operator) => {
                let results = operator(&mut Call::new(inputs, step.outputs.len()))?;
                if results.len() != step.outputs.len() {
                    let what = format!("{} results, {} are declared", results.len(), step.outputs.len());
                    return Err(Fault::invalid(what).into());
                }
                let mut values = Vec::with_capacity(results.len());
                for (result, output) in results.into_iter().zip(&step.outputs) {
                    values.push(Value::Tensor(stored(
                        result,
                        &output.port.ty,
                        &step.operator,
                        self.precision,
                    )?));
                }
                values
            }
            Action::Read { state, take } => vec![Value::Tensor(self.state.read(state, *take)?)],
            Action::Write { state } => {
                let mut call = Call::new(inputs, 0);
                self.state.write(state, call.take("data")?)?;
                Vec::new()
            }
            Action::Cond(blocks) => {
                let taken = Call::new(inputs, 0).bool_or("pred", false)?;
                self.block(&blocks[usize::from(!taken)])?
            }
            Action::While(blocks) => {
                let position = inputs.iter().position(|(name, _)| name == "loop_vars");
                let start = position.map(|at| inputs.swap_remove(at).1).unwrap_or_default();
                self.repeat(&blocks[0], &blocks[1], start)?
            }
        };
        if results.len() != step.outputs.len() {
            let what = format!("{} results, {} are declared", results.len(), step.outputs.len());
            return Err(Fault::invalid(what).into());
        }
        for (value, output) in results.into_iter().zip(&step.outputs) {
            if let (Some(watcher), Value::Tensor(tensor)) = (&mut self.watcher, &value) {
                watcher(&output.port.name, tensor);
            }
            if !step.last.contains(&output.slot) {
                self.slots[output.slot] = Some(value);
            }
        }
        if nested {
            step.last.iter().for_each(|&slot| self.slots[slot] = None);
        }
        Ok(())
    }

    fn repeat(&mut self, condition: &Block, body: &Block, start: Vec<Value>) -> Result<Vec<Value>, Failure> {
        let mut carried = start;
        for _ in 0..MAX_ITERATIONS {
            if carried.len() != condition.inputs.len() || carried.len() != body.inputs.len() {
                return Err(
                    Fault::invalid("the loop carries another number of values than it declares").into()
                );
            }
            for (&slot, value) in condition.inputs.iter().zip(&carried) {
                self.slots[slot] = Some(value.clone());
            }
            let verdict =
                self.block(condition)?.into_iter().next().ok_or_else(|| Fault::invalid("no condition"))?;
            condition.inputs.iter().for_each(|&slot| self.slots[slot] = None);
            match verdict.into_dense()?.bools() {
                Some([true]) => {}
                Some([false]) => return Ok(carried),
                _ => return Err(Fault::invalid("the condition of a loop must be one truth value").into()),
            }
            for (&slot, value) in body.inputs.iter().zip(carried) {
                self.slots[slot] = Some(value);
            }
            carried = self.block(body)?;
        }
        Err(Fault::invalid(format!("a loop of more than {MAX_ITERATIONS} rounds")).into())
    }
}

enum Failure {
    Fault(Fault),
    Whole(EvalError),
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<EvalError> for Failure {
    fn from(error: EvalError) -> Self {
        Self::Whole(error)
    }
}

fn describe(tensor: &Tensor) -> String {
    format!("{} {:?}", tensor.kind(), tensor.shape())
}

/// A caller's tensor as a value of type `ty`, if it fits.
pub(crate) fn accepted(tensor: Tensor, ty: &TensorType, precision: Precision) -> Option<Tensor> {
    let fits = matches!(
        (kind_of(ty.dtype)?, tensor.data()),
        (Kind::Float, Data::Float(_)) | (Kind::Int, Data::Int(_)) | (Kind::Bool, Data::Bool(_))
    );
    (fits && tensor.shape() == ty.shape).then(|| rounded(tensor, ty.dtype, precision))
}

#[derive(PartialEq)]
enum Kind {
    Float,
    Int,
    Bool,
}

fn kind_of(dtype: DType) -> Option<Kind> {
    match dtype {
        DType::F16 | DType::F32 => Some(Kind::Float),
        DType::I8 | DType::U8 | DType::I16 | DType::U16 | DType::I32 | DType::U32 => Some(Kind::Int),
        DType::Bool => Some(Kind::Bool),
        _ => None,
    }
}

fn rounded(tensor: Tensor, dtype: DType, precision: Precision) -> Tensor {
    if dtype != DType::F16 || precision == Precision::Exact {
        return tensor;
    }
    let shape = tensor.shape().to_vec();
    match tensor.into_parts().1 {
        Data::Float(mut values) => {
            let own: &mut Vec<f32> = Arc::make_mut(&mut values);
            precision.round(own);
            Tensor::float(&shape, Arc::unwrap_or_clone(values))
        }
        data => Tensor::from_parts(shape, data).unwrap_or_else(|_| Tensor::float(&[0], Vec::new())),
    }
}

/// An operator's result as the program declares it: its shape must be that, `cast` converts, and fp16 is rounded.
pub(crate) fn stored(
    result: Tensor,
    ty: &TensorType,
    operator: &str,
    precision: Precision,
) -> Result<Tensor, Fault> {
    let wrong = |result: &Tensor| Fault::Result { found: describe(result), declared: ty.to_string() };
    if result.shape() != ty.shape {
        return Err(wrong(&result));
    }
    let kind = kind_of(ty.dtype).ok_or_else(|| wrong(&result))?;
    let same = match result.data() {
        Data::Float(_) => kind == Kind::Float,
        Data::Int(_) => kind == Kind::Int,
        Data::Bool(_) => kind == Kind::Bool,
        Data::Text(_) => return Err(wrong(&result)),
    };
    if same && operator != "cast" {
        return Ok(if only_moves(operator) { result } else { rounded(result, ty.dtype, precision) });
    }
    if operator != "cast" {
        return Err(wrong(&result));
    }
    let shape = result.shape().to_vec();
    let converted = match (kind, result.data()) {
        (Kind::Float, Data::Float(_)) => return Ok(rounded(result, ty.dtype, precision)),
        (Kind::Float, _) => Tensor::float(&shape, result.to_floats().ok_or_else(|| wrong(&result))?),
        (Kind::Bool, Data::Float(values)) => Tensor::bool(&shape, values.iter().map(|&v| v != 0.0).collect()),
        (Kind::Bool, Data::Int(values)) => Tensor::bool(&shape, values.iter().map(|&v| v != 0).collect()),
        (Kind::Bool, _) => return Ok(result),
        (Kind::Int, data) => {
            let wrap = |value: i32| match ty.dtype {
                DType::I8 => i32::from(value as i8),
                DType::U8 => i32::from(value as u8),
                DType::I16 => i32::from(value as i16),
                DType::U16 => i32::from(value as u16),
                _ => value,
            };
            let values = match data {
                Data::Float(values) => values.iter().map(|&v| wrap(v as i32)).collect(),
                Data::Int(values) => values.iter().map(|&v| wrap(v)).collect(),
                Data::Bool(values) => values.iter().map(|&v| i32::from(v)).collect(),
                Data::Text(_) => return Err(wrong(&result)),
            };
            Tensor::int(&shape, values)
        }
    };
    Ok(rounded(converted, ty.dtype, precision))
}
