//! Execution of a compiled function over an array of slots.

use std::collections::BTreeMap;

use crate::ops::Call;
use crate::plan::{Action, Block, Function, Step};
use crate::rounding::{to_declared, to_port};
use crate::tensor::Tensor;
use crate::weight::Value;
use crate::{EvalError, Fault, Precision, State};

/// Limit of a loop's iterations; a longer loop is treated as endless.
const MAX_ITERATIONS: usize = 1 << 20;

/// Callback for the results of operations: name in the program and value.
pub type Watcher<'a> = dyn FnMut(&str, &Tensor) + 'a;

/// The execution of one call.
pub(crate) struct Run<'a, 'w> {
    pub(crate) function: &'a Function,
    pub(crate) precision: Precision,
    pub(crate) state: &'a mut State,
    pub(crate) watcher: Option<&'a mut Watcher<'w>>,
    pub(crate) slots: Vec<Option<Value>>,
}

impl Run<'_, '_> {
    /// Runs the function on inputs by name; returns outputs by name.
    pub(crate) fn call(
        &mut self,
        mut inputs: BTreeMap<String, Tensor>,
    ) -> Result<BTreeMap<String, Tensor>, EvalError> {
        let function = self.function;
        for (port, slot) in &function.inputs {
            let input = inputs.remove(&port.name);
            let found = input.as_ref().map_or_else(|| "nothing".to_owned(), Tensor::describe);
            let value = input.and_then(|tensor| to_port(tensor, &port.ty, self.precision));
            let value = value.ok_or_else(|| self.input(&port.name, port.ty.to_string(), found))?;
            self.slots[*slot] = Some(Value::Tensor(value));
        }
        if let Some((name, tensor)) = inputs.first_key_value() {
            return Err(self.input(name, "no such input".to_owned(), tensor.describe()));
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

    /// Runs a block's steps and returns its outputs.
    fn block(&mut self, block: &Block) -> Result<Vec<Value>, EvalError> {
        for step in &block.steps {
            self.step(step).map_err(|error| match error {
                Failure::Fault(fault) => self.fault(&step.name, &step.operator, fault),
                Failure::Error(error) => error,
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
        // Inputs used for the last time are moved into the call, so that operators may reuse their memory.
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
                    let value = to_declared(result, &output.port.ty, &step.operator, self.precision)?;
                    values.push(Value::Tensor(value));
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
                self.while_loop(&blocks[0], &blocks[1], start)?
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

    fn while_loop(
        &mut self,
        condition: &Block,
        body: &Block,
        start: Vec<Value>,
    ) -> Result<Vec<Value>, Failure> {
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
            let continues =
                self.block(condition)?.into_iter().next().ok_or_else(|| Fault::invalid("no condition"))?;
            condition.inputs.iter().for_each(|&slot| self.slots[slot] = None);
            match continues.into_dense()?.bools() {
                Some([true]) => {}
                Some([false]) => return Ok(carried),
                _ => return Err(Fault::invalid("the condition of a loop must be a single boolean").into()),
            }
            for (&slot, value) in body.inputs.iter().zip(carried) {
                self.slots[slot] = Some(value);
            }
            carried = self.block(body)?;
        }
        Err(Fault::invalid(format!("a loop of more than {MAX_ITERATIONS} iterations")).into())
    }
}

/// Failure of a step: a fault of its operation, or an error of an inner block that already names its operation.
enum Failure {
    Fault(Fault),
    Error(EvalError),
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<EvalError> for Failure {
    fn from(error: EvalError) -> Self {
        Self::Error(error)
    }
}
