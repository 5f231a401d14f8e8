//! Compilation of a function: names are resolved to slots, constants decoded and folded, operators looked up, and the
//! last use of each value is determined.

use std::collections::HashMap;

use q35_format_mil::proto;
use q35_format_mil::{Package, TensorType, Type, Value as Literal};

use crate::constant::{self, Constant, ConstantError, Records};
use crate::ops::{self, Call, Operator};
use crate::rounding::to_declared;
use crate::tensor::MAX_ELEMENTS;
use crate::weight::Value;
use crate::{EvalError, Fault, Precision};

/// Largest operand or result of a folded operation, in elements.
const FOLDED_ELEMENTS: usize = 1 << 20;

/// Index of a value during execution.
pub(crate) type Slot = usize;

/// A named input, output or state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Name in the function's signature.
    pub name: String,
    /// Element type and shape.
    pub ty: TensorType,
}

/// A compiled function.
pub struct Function {
    pub(crate) name: String,
    pub(crate) inputs: Vec<(Port, Slot)>,
    pub(crate) states: Vec<Port>,
    pub(crate) outputs: Vec<Port>,
    pub(crate) body: Block,
    /// Values of constants by slot; `None` for computed values.
    pub(crate) constants: Vec<Option<Value>>,
    /// Names and slots of folded values, for watchers.
    pub(crate) folded: Vec<(String, Slot)>,
}

/// Steps in order of execution.
pub(crate) struct Block {
    pub(crate) inputs: Vec<Slot>,
    pub(crate) steps: Vec<Step>,
    pub(crate) outputs: Vec<Slot>,
}

/// One operation.
pub(crate) struct Step {
    pub(crate) action: Action,
    pub(crate) operator: String,
    pub(crate) name: String,
    pub(crate) inputs: Vec<(String, Vec<Slot>)>,
    pub(crate) outputs: Vec<Output>,
    /// Slots whose last use is this step.
    pub(crate) last: Vec<Slot>,
}

pub(crate) struct Output {
    pub(crate) slot: Slot,
    pub(crate) port: Port,
}

pub(crate) enum Action {
    Compute(Operator),
    /// Reads a state. `take` moves the value out, because the state is written before it is read again.
    Read {
        state: String,
        take: bool,
    },
    Write {
        state: String,
    },
    Cond(Vec<Block>),
    While(Vec<Block>),
}

impl Function {
    /// The function's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Inputs other than states, in declared order.
    pub fn inputs(&self) -> impl Iterator<Item = &Port> {
        self.inputs.iter().map(|(port, _)| port)
    }

    /// States that the function reads or writes.
    pub fn states(&self) -> &[Port] {
        &self.states
    }

    /// Outputs, in declared order.
    pub fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    /// Number of operations that each call executes at top level.
    pub fn steps(&self) -> usize {
        self.body.steps.len()
    }

    /// Calls `visit` with each of the function's constants.
    pub(crate) fn weights<'a>(&'a self, mut visit: impl FnMut(&'a Value)) {
        self.constants.iter().flatten().for_each(&mut visit);
    }
}

/// Compiles one function of a package.
pub(crate) fn compile(
    package: &Package,
    name: &str,
    function: &proto::Function,
    precision: Precision,
    records: &mut Records,
) -> Result<Function, EvalError> {
    let mut compiler =
        Compiler { package, function: name, precision, records, slots: Vec::new(), folded: Vec::new() };
    let block = function
        .block_specializations
        .get(&function.opset)
        .ok_or_else(|| compiler.wrong(format!("no block for the operator set {:?}", function.opset)))?;
    let (mut inputs, mut states, mut scope) = (Vec::new(), Vec::new(), HashMap::new());
    for input in &function.inputs {
        match compiler.value_type(input)? {
            Type::Tensor(ty) => {
                let slot = compiler.slot(None);
                inputs.push((Port { name: input.name.clone(), ty }, slot));
                scope.insert(input.name.clone(), Name::Slot(slot));
            }
            Type::State(ty) => {
                states.push(Port { name: input.name.clone(), ty });
                scope.insert(input.name.clone(), Name::State(input.name.clone()));
            }
        }
    }
    let (mut body, types) = compiler.block(block, &mut scope)?;
    mark_taken_states(&mut body);
    let outputs = block.outputs.iter().cloned().zip(types).map(|(name, ty)| Port { name, ty }).collect();
    // An input that is an output has no operation that would give it a type.
    let constants = compiler.slots.into_iter().map(|slot| slot.value).collect();
    Ok(Function { name: name.to_owned(), inputs, states, outputs, body, constants, folded: compiler.folded })
}

struct Compiler<'a> {
    package: &'a Package,
    function: &'a str,
    precision: Precision,
    records: &'a mut Records,
    slots: Vec<SlotInfo>,
    folded: Vec<(String, Slot)>,
}

#[derive(Default)]
struct SlotInfo {
    /// The decoded constant, once an operation uses it.
    value: Option<Value>,
    /// The constant before decoding.
    constant: Option<Constant>,
    ty: Option<TensorType>,
}

#[derive(Clone)]
enum Name {
    Slot(Slot),
    State(String),
}

type Scope = HashMap<String, Name>;

impl Compiler<'_> {
    fn wrong(&self, what: String) -> EvalError {
        EvalError::Program { function: self.function.to_owned(), what }
    }

    fn fault(&self, operation: &str, operator: &str, fault: Fault) -> EvalError {
        EvalError::Operation {
            function: self.function.to_owned(),
            operation: operation.to_owned(),
            operator: operator.to_owned(),
            fault,
        }
    }

    fn constant_error(&self, operation: &str, operator: &str, error: ConstantError) -> EvalError {
        match error {
            ConstantError::Read(error) => *error,
            ConstantError::Fault(fault) => self.fault(operation, operator, fault),
        }
    }

    fn slot(&mut self, constant: Option<Constant>) -> Slot {
        self.slots.push(SlotInfo { constant, ..SlotInfo::default() });
        self.slots.len() - 1
    }

    fn value_type(&self, value: &proto::NamedValueType) -> Result<Type, EvalError> {
        let ty = value.r#type.as_ref().ok_or_else(|| self.wrong(format!("`{}` has no type", value.name)))?;
        let ty = Type::try_from(ty).map_err(|error| self.wrong(format!("`{}`: {error}", value.name)))?;
        if ty.inner().count() > MAX_ELEMENTS {
            return Err(self.wrong(format!("`{}` has {} elements", value.name, ty.inner().count())));
        }
        Ok(ty)
    }

    fn tensor_type(&self, value: &proto::NamedValueType) -> Result<TensorType, EvalError> {
        match self.value_type(value)? {
            Type::Tensor(ty) => Ok(ty),
            Type::State(_) => Err(self.wrong(format!("`{}` is a state made by an operation", value.name))),
        }
    }

    /// Compiles a block; also returns the types of its outputs.
    fn block(
        &mut self,
        block: &proto::Block,
        scope: &mut Scope,
    ) -> Result<(Block, Vec<TensorType>), EvalError> {
        let first_slot = self.slots.len();
        let mut inputs = Vec::new();
        for input in &block.inputs {
            let ty = self.tensor_type(input)?;
            let slot = self.slot(None);
            self.slots[slot].ty = Some(ty);
            inputs.push(slot);
            scope.insert(input.name.clone(), Name::Slot(slot));
        }
        let mut steps = Vec::new();
        for operation in &block.operations {
            steps.extend(self.operation(operation, scope)?);
        }
        let (mut outputs, mut types) = (Vec::new(), Vec::new());
        for name in &block.outputs {
            match scope.get(name) {
                Some(&Name::Slot(slot)) => {
                    self.materialize(slot, name, "output")?;
                    types.push(match &self.slots[slot].ty {
                        Some(ty) => ty.clone(),
                        None => return Err(self.wrong(format!("the output `{name}` is an input"))),
                    });
                    outputs.push(slot);
                }
                Some(Name::State(_)) => return Err(self.wrong(format!("the output `{name}` is a state"))),
                None => return Err(self.wrong(format!("the output `{name}` is undefined"))),
            }
        }
        // The block's names go out of scope; the checker has verified that they shadow no outer ones.
        let inner = block.operations.iter().flat_map(|operation| &operation.outputs);
        block.inputs.iter().chain(inner).for_each(|value| {
            scope.remove(&value.name);
        });
        let mut block = Block { inputs, steps, outputs };
        self.mark_last_uses(&mut block, first_slot);
        Ok((block, types))
    }

    fn operation(
        &mut self,
        operation: &proto::Operation,
        scope: &mut Scope,
    ) -> Result<Option<Step>, EvalError> {
        let operator = operation.r#type.as_str();
        let name = display_name(operation);
        let mut outputs = Vec::new();
        for output in &operation.outputs {
            outputs.push(Port { name: output.name.clone(), ty: self.tensor_type(output)? });
        }
        if operator == "const" || operator.starts_with("constexpr_") {
            let constant = self.constant(operation, operator, &name, scope, &outputs)?;
            let Some(output) = outputs.first() else {
                return Err(self.wrong(format!("the constant `{name}` has no output")));
            };
            let slot = self.slot(Some(constant));
            self.slots[slot].ty = Some(output.ty.clone());
            scope.insert(output.name.clone(), Name::Slot(slot));
            return Ok(None);
        }
        let action = match operator {
            "read_state" => Action::Read { state: self.state(operation, scope, &name)?, take: false },
            "write_state" => Action::Write { state: self.state(operation, scope, &name)? },
            "cond" | "while_loop" => {
                let mut blocks = Vec::new();
                for inner in &operation.blocks {
                    blocks.push(self.block(inner, scope)?.0);
                }
                if blocks.len() != 2 {
                    return Err(
                        self.wrong(format!("`{name}` has {} blocks, {operator} takes 2", blocks.len()))
                    );
                }
                if operator == "cond" { Action::Cond(blocks) } else { Action::While(blocks) }
            }
            _ => match ops::operator(operator) {
                Some(operator) => Action::Compute(operator),
                None => {
                    return Err(EvalError::Unsupported {
                        function: self.function.to_owned(),
                        operation: name,
                        operator: operator.to_owned(),
                    });
                }
            },
        };
        let mut inputs = Vec::new();
        for (parameter, argument) in &operation.inputs {
            let mut slots = Vec::new();
            for binding in &argument.arguments {
                match &binding.kind {
                    Some(proto::BindingKind::Name(used)) => match scope.get(used) {
                        Some(&Name::Slot(slot)) => slots.push(slot),
                        Some(Name::State(_)) => {}
                        None => {
                            return Err(
                                self.wrong(format!("`{name}` uses `{used}`, which is not defined before it"))
                            );
                        }
                    },
                    Some(proto::BindingKind::Value(value)) => {
                        let literal = self.literal(value, &name)?;
                        slots.push(self.slot(Some(Constant::Literal(literal))));
                    }
                    None => {
                        return Err(self.wrong(format!("`{name}`: an argument of `{parameter}` is empty")));
                    }
                }
            }
            for &slot in &slots {
                self.materialize(slot, &name, operator)?;
            }
            if !slots.is_empty() {
                inputs.push((parameter.clone(), slots));
            }
        }
        if let Action::Compute(compute) = action
            && let Some(values) = self.fold(compute, operator, &inputs, &outputs)
        {
            for (port, value) in outputs.into_iter().zip(values) {
                let slot = self.slot(None);
                self.slots[slot].value = Some(value);
                self.slots[slot].ty = Some(port.ty);
                self.folded.push((port.name.clone(), slot));
                scope.insert(port.name, Name::Slot(slot));
            }
            return Ok(None);
        }
        let mut placed = Vec::new();
        for port in outputs {
            let slot = self.slot(None);
            self.slots[slot].ty = Some(port.ty.clone());
            scope.insert(port.name.clone(), Name::Slot(slot));
            placed.push(Output { slot, port });
        }
        Ok(Some(Step {
            action,
            operator: operator.to_owned(),
            name,
            inputs,
            outputs: placed,
            last: Vec::new(),
        }))
    }

    fn literal(&self, value: &proto::Value, operation: &str) -> Result<Literal, EvalError> {
        Literal::try_from(value).map_err(|error| self.wrong(format!("`{operation}`: {error}")))
    }

    /// The constant that a `const` or `constexpr_*` operation defines.
    fn constant(
        &mut self,
        operation: &proto::Operation,
        operator: &str,
        name: &str,
        scope: &Scope,
        outputs: &[Port],
    ) -> Result<Constant, EvalError> {
        if operator == "const" {
            let value = operation.attributes.get("val");
            let value = value.ok_or_else(|| self.wrong(format!("the constant `{name}` has no value")))?;
            return Ok(Constant::Literal(self.literal(value, name)?));
        }
        let mut arguments: HashMap<&str, Constant> = HashMap::new();
        // The iOS 16 operators have their arguments among the attributes.
        for (key, value) in operation.attributes.iter().filter(|(key, _)| *key != "name") {
            arguments.insert(key, Constant::Literal(self.literal(value, name)?));
        }
        for (parameter, argument) in &operation.inputs {
            let [binding] = &argument.arguments[..] else {
                return Err(self.wrong(format!("`{name}`: `{parameter}` needs one value")));
            };
            let constant = match &binding.kind {
                Some(proto::BindingKind::Value(value)) => Some(Constant::Literal(self.literal(value, name)?)),
                Some(proto::BindingKind::Name(used)) => match scope.get(used) {
                    Some(&Name::Slot(slot)) => self.slots[slot].constant.clone(),
                    _ => None,
                },
                None => None,
            };
            let constant =
                constant.ok_or_else(|| self.wrong(format!("`{name}`: `{parameter}` is not a constant")))?;
            arguments.insert(parameter, constant);
        }
        let half = outputs.first().is_some_and(|port| port.ty.dtype == q35_format_mil::DType::F16);
        let round = if half { self.precision } else { Precision::Exact };
        match constant::expression(self.package, operator, &arguments, round) {
            Some(value) => {
                Ok(Constant::Weight(value.map_err(|error| self.constant_error(name, operator, error))?))
            }
            None => Err(EvalError::Unsupported {
                function: self.function.to_owned(),
                operation: name.to_owned(),
                operator: operator.to_owned(),
            }),
        }
    }

    /// Decodes a slot's constant, if it has one.
    fn materialize(&mut self, slot: Slot, operation: &str, operator: &str) -> Result<(), EvalError> {
        if self.slots[slot].value.is_some() {
            return Ok(());
        }
        let value = match &self.slots[slot].constant {
            None => return Ok(()),
            Some(Constant::Weight(value)) => value.clone(),
            Some(Constant::Literal(literal)) => constant::value(self.package, literal, self.records)
                .map_err(|error| self.constant_error(operation, operator, error))?,
        };
        self.slots[slot].value = Some(value);
        Ok(())
    }

    /// Constant folding: the results of an operation whose inputs are all small constants. `None` if it is not foldable
    /// or fails; a failing operation then reports its error when the function runs.
    fn fold(
        &self,
        compute: Operator,
        operator: &str,
        inputs: &[(String, Vec<Slot>)],
        outputs: &[Port],
    ) -> Option<Vec<Value>> {
        let size: usize = outputs.iter().map(|port| port.ty.count()).sum();
        if size > FOLDED_ELEMENTS {
            return None;
        }
        let mut arguments = Vec::new();
        for (parameter, slots) in inputs {
            let values: Option<Vec<Value>> =
                slots.iter().map(|&slot| self.slots[slot].value.clone()).collect();
            let values = values?;
            if values.iter().any(|value| value.shape().iter().product::<usize>() > FOLDED_ELEMENTS) {
                return None;
            }
            arguments.push((parameter.clone(), values));
        }
        let mut call = Call::new(arguments, outputs.len());
        let results = compute(&mut call).ok().filter(|results| results.len() == outputs.len())?;
        results
            .into_iter()
            .zip(outputs)
            .map(|(result, port)| {
                to_declared(result, &port.ty, operator, self.precision).ok().map(Value::Tensor)
            })
            .collect()
    }

    /// The state that an operation reads or writes.
    fn state(&self, operation: &proto::Operation, scope: &Scope, name: &str) -> Result<String, EvalError> {
        let bindings = operation.inputs.get("input").map(|argument| &argument.arguments[..]);
        if let Some([binding]) = bindings
            && let Some(proto::BindingKind::Name(used)) = &binding.kind
            && let Some(Name::State(state)) = scope.get(used)
        {
            return Ok(state.clone());
        }
        Err(self.wrong(format!("`{name}`: `input` is not a state")))
    }

    /// Liveness: records at each step the block's own values that no later step uses.
    fn mark_last_uses(&self, block: &mut Block, first_slot: Slot) {
        let is_own = |slot: Slot| slot >= first_slot && self.slots[slot].value.is_none();
        let mut seen: std::collections::HashSet<Slot> = block.outputs.iter().copied().collect();
        for step in block.steps.iter_mut().rev() {
            let mut used = Vec::new();
            used_slots(step, &mut used);
            used.extend(step.outputs.iter().map(|output| output.slot));
            for slot in used {
                if is_own(slot) && seen.insert(slot) {
                    step.last.push(slot);
                }
            }
        }
    }
}

/// Slots that a step reads, including those that its inner blocks read.
fn used_slots(step: &Step, used: &mut Vec<Slot>) {
    used.extend(step.inputs.iter().flat_map(|(_, slots)| slots));
    if let Action::Cond(blocks) | Action::While(blocks) = &step.action {
        for block in blocks {
            used.extend(&block.outputs);
            block.steps.iter().for_each(|step| used_slots(step, used));
        }
    }
}

/// Makes a `read_state` move the value out if the state's next use is a `write_state`: the value then has no other
/// reference, and `slice_update` can update it in place.
fn mark_taken_states(body: &mut Block) {
    fn touched(blocks: &[Block], states: &mut Vec<String>) {
        for step in blocks.iter().flat_map(|block| &block.steps) {
            match &step.action {
                Action::Read { state, .. } | Action::Write { state } => states.push(state.clone()),
                Action::Cond(blocks) | Action::While(blocks) => touched(blocks, states),
                Action::Compute(_) => {}
            }
        }
    }
    // True if the next use of a state, scanning backwards, is a write.
    let mut written_next: HashMap<String, bool> = HashMap::new();
    for step in body.steps.iter_mut().rev() {
        match &mut step.action {
            Action::Read { state, take } => {
                *take = written_next.get(state) == Some(&true);
                written_next.insert(state.clone(), false);
            }
            Action::Write { state } => {
                written_next.insert(state.clone(), true);
            }
            Action::Cond(blocks) | Action::While(blocks) => {
                let mut states = Vec::new();
                touched(blocks, &mut states);
                states.into_iter().for_each(|state| {
                    written_next.insert(state, false);
                });
            }
            Action::Compute(_) => {}
        }
    }
}

/// Name of an operation for messages: its `name` attribute, or its first result.
fn display_name(operation: &proto::Operation) -> String {
    let attribute = operation.attributes.get("name").and_then(|value| Literal::try_from(value).ok());
    match attribute.as_ref().and_then(Literal::as_str) {
        Some(name) => name.to_owned(),
        None => {
            operation.outputs.first().map_or_else(|| operation.r#type.clone(), |output| output.name.clone())
        }
    }
}
