//! [`Program`]: a loaded package.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use q35_format_mil::{CheckError, Package, TensorType, check};

use crate::constant::Records;
use crate::plan::{Function, compile};
use crate::run::{Run, Watcher};
use crate::weight::Value;
use crate::{EvalError, Precision, State, Tensor};

/// A package's compiled functions. Threads may run them concurrently, each with its own [`State`].
pub struct Program {
    functions: BTreeMap<String, Function>,
    states: BTreeMap<String, TensorType>,
    precision: Precision,
    default: String,
}

/// Memory of a program's weights, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WeightBytes {
    /// Packed weights in the mapped file.
    pub mapped: u64,
    /// Decoded constants, scales and tables in process memory.
    pub owned: u64,
}

impl Program {
    /// Reads, checks and compiles the `.mlpackage` directory `dir`.
    ///
    /// # Errors
    /// The package cannot be read, is malformed, or contains an unsupported operation.
    pub fn load(dir: &Path, precision: Precision) -> Result<Self, EvalError> {
        Self::new(&Package::open(dir)?, precision)
    }

    /// Checks and compiles an opened package.
    ///
    /// # Errors
    /// The package is malformed or contains an unsupported operation.
    pub fn new(package: &Package, precision: Precision) -> Result<Self, EvalError> {
        // Operators that the checker does not know may still be implemented; compilation rejects them otherwise.
        let findings: Vec<_> =
            check(package).errors.into_iter().filter(|found| !found.defect.is_unknown_operator()).collect();
        if !findings.is_empty() {
            return Err(CheckError { findings }.into());
        }
        let mut records = Records::new();
        let (mut functions, mut states) = (BTreeMap::new(), BTreeMap::new());
        for (name, function) in &package.program().functions {
            let function = compile(package, name, function, precision, &mut records)?;
            for port in &function.states {
                let declared = states.entry(port.name.clone()).or_insert_with(|| port.ty.clone());
                if *declared != port.ty {
                    let (state, expected, found) =
                        (port.name.clone(), declared.to_string(), port.ty.to_string());
                    return Err(EvalError::State { state, expected, found });
                }
            }
            functions.insert(name.clone(), function);
        }
        let described = package.model().description.as_ref().map(|d| d.default_function_name.clone());
        let default = described.filter(|name| !name.is_empty()).unwrap_or_else(|| "main".to_owned());
        Ok(Self { functions, states, precision, default })
    }

    /// The functions, ordered by name.
    pub fn functions(&self) -> impl Iterator<Item = &Function> {
        self.functions.values()
    }

    /// The function named `name`.
    ///
    /// # Errors
    /// [`EvalError::NoFunction`] if there is none.
    pub fn function(&self, name: &str) -> Result<&Function, EvalError> {
        self.functions.get(name).ok_or_else(|| EvalError::NoFunction {
            requested: name.to_owned(),
            existing: self.functions.keys().map(String::as_str).collect::<Vec<_>>().join(", "),
        })
    }

    /// Name of the function that Core ML runs by default.
    pub fn default_function(&self) -> &str {
        &self.default
    }

    /// Representation of fp16 values.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Creates zeroed states for all functions.
    pub fn new_state(&self) -> State {
        State::zeros(&self.states, self.precision)
    }

    /// Calls a function with inputs by name and returns its outputs by name; reads and updates `state`.
    ///
    /// # Errors
    /// The function does not exist, an input does not fit, or an operation fails, for example by an index out of bounds.
    /// A failed operation leaves the states as updated so far.
    pub fn run(
        &self,
        function: &str,
        inputs: BTreeMap<String, Tensor>,
        state: &mut State,
    ) -> Result<BTreeMap<String, Tensor>, EvalError> {
        self.execute(function, inputs, state, None)
    }

    /// Like [`Program::run`], and calls `watcher` with each operation's results and their names in the program.
    ///
    /// # Errors
    /// As [`Program::run`].
    pub fn run_watched(
        &self,
        function: &str,
        inputs: BTreeMap<String, Tensor>,
        state: &mut State,
        watcher: &mut Watcher<'_>,
    ) -> Result<BTreeMap<String, Tensor>, EvalError> {
        self.execute(function, inputs, state, Some(watcher))
    }

    fn execute<'a, 'w>(
        &'a self,
        function: &str,
        inputs: BTreeMap<String, Tensor>,
        state: &'a mut State,
        watcher: Option<&'a mut Watcher<'w>>,
    ) -> Result<BTreeMap<String, Tensor>, EvalError> {
        let function = self.function(function)?;
        let slots = vec![None; function.constants.len()];
        Run { function, precision: self.precision, state, watcher, slots }.call(inputs)
    }

    /// Memory of all functions' weights; shared weights count once.
    pub fn weight_bytes(&self) -> WeightBytes {
        self.weight_bytes_of(self.functions.values())
    }

    /// Memory of one function's weights, approximately what one call reads.
    ///
    /// # Errors
    /// [`EvalError::NoFunction`] if there is no such function.
    pub fn function_weight_bytes(&self, function: &str) -> Result<WeightBytes, EvalError> {
        Ok(self.weight_bytes_of([self.function(function)?].into_iter()))
    }

    fn weight_bytes_of<'a>(&self, functions: impl Iterator<Item = &'a Function>) -> WeightBytes {
        let (mut bytes, mut seen) = (WeightBytes::default(), HashSet::new());
        for function in functions {
            function.weights(|value| match value {
                Value::Weight(weight) => {
                    if seen.insert(Arc::as_ptr(weight).addr()) {
                        bytes.owned += weight.owned_bytes() as u64;
                    }
                    let codes = weight.codes();
                    if seen.insert(codes.as_ptr().addr()) {
                        bytes.mapped += codes.len() as u64;
                    }
                }
                Value::Tensor(tensor) => bytes.owned += tensor.size_bytes() as u64,
            });
        }
        bytes
    }
}
