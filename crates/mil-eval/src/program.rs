//! A package, loaded.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use q35_format_mil::{CheckError, Package, TensorType, check};

use crate::constant::Records;
use crate::plan::{Function, compile};
use crate::run::{Run, Watcher};
use crate::weight::Value;
use crate::{EvalError, Precision, State, Tensor};

/// A package's functions, ready to run. Any number of threads may run them, each with a [`State`] of its own.
pub struct Program {
    functions: BTreeMap<String, Function>,
    states: BTreeMap<String, TensorType>,
    precision: Precision,
    default: String,
}

/// What a program's weights occupy, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WeightBytes {
    /// Packed, in the mapped file.
    pub mapped: u64,
    /// In memory of the process's own: decoded constants, scales, tables.
    pub owned: u64,
}

impl Program {
    /// Reads, checks and prepares the package in the directory `dir`.
    ///
    /// # Errors
    /// The package cannot be read, is malformed, or has an operation that is not supported.
    pub fn load(dir: &Path, precision: Precision) -> Result<Self, EvalError> {
        Self::new(&Package::open(dir)?, precision)
    }

    /// Checks and prepares a package that was read.
    ///
    /// # Errors
    /// The package is malformed, or has an operation that is not supported.
    pub fn new(package: &Package, precision: Precision) -> Result<Self, EvalError> {
        // Operators that the checker does not know are the evaluator's own question.
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
                let known = states.entry(port.name.clone()).or_insert_with(|| port.ty.clone());
                if *known != port.ty {
                    let (state, expected, found) =
                        (port.name.clone(), known.to_string(), port.ty.to_string());
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

    /// The function of that name.
    ///
    /// # Errors
    /// There is none.
    pub fn function(&self, name: &str) -> Result<&Function, EvalError> {
        self.functions.get(name).ok_or_else(|| EvalError::NoFunction {
            asked: name.to_owned(),
            known: self.functions.keys().map(String::as_str).collect::<Vec<_>>().join(", "),
        })
    }

    /// The function that Core ML runs when none is named.
    pub fn default_function(&self) -> &str {
        &self.default
    }

    /// How fp16 values are kept.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Fresh states of all functions, zero.
    pub fn new_state(&self) -> State {
        State::zeros(&self.states, self.precision)
    }

    /// Calls a function with inputs by name; `state` is read and changed as the program says.
    ///
    /// # Errors
    /// No such function, inputs that do not fit, or an operation that fails (an index outside of its axis); then the
    /// states are as far as the function had come.
    pub fn run(
        &self,
        function: &str,
        inputs: BTreeMap<String, Tensor>,
        state: &mut State,
    ) -> Result<BTreeMap<String, Tensor>, EvalError> {
        self.start(function, inputs, state, None)
    }

    /// The same, and shows every value that an operation results in to `watcher`, by the name the program gives it.
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
        self.start(function, inputs, state, Some(watcher))
    }

    fn start<'a, 'w>(
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

    /// What the weights of all functions occupy; what functions share counts once.
    pub fn weight_bytes(&self) -> WeightBytes {
        self.bytes_of(self.functions.values())
    }

    /// What the weights of one function occupy: about what one call reads.
    ///
    /// # Errors
    /// There is no such function.
    pub fn function_weight_bytes(&self, function: &str) -> Result<WeightBytes, EvalError> {
        Ok(self.bytes_of([self.function(function)?].into_iter()))
    }

    fn bytes_of<'a>(&self, functions: impl Iterator<Item = &'a Function>) -> WeightBytes {
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
