//! Whoever executes a package.

use std::collections::BTreeMap;

use q35_inference::ModelMemory;
use q35_mil_eval::{Port, Tensor};

use crate::PredictError;

/// A loaded package.
pub trait Predictor: Send + Sync {
    /// Who executes, for people: "evaluator, fp16".
    fn describe(&self) -> String;

    /// Its functions, ordered by name.
    fn signatures(&self) -> &[Signature];

    /// A run over fresh states, all zero, that keeps values for these inputs of its functions besides.
    ///
    /// # Errors
    /// The states cannot be made.
    fn session(&self, kept: &[Port]) -> Result<Box<dyn Session>, PredictError>;

    /// Whether intermediate values can be watched; [`Session::predict`] ignores its watcher otherwise.
    fn can_watch(&self) -> bool;

    /// What the weights occupy; `function` is the one that decodes.
    fn memory(&self, function: &str) -> ModelMemory;
}

/// What a function takes and gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// Its name.
    pub name: String,
    /// Inputs that are no states.
    pub inputs: Vec<Port>,
    /// Outputs.
    pub outputs: Vec<Port>,
    /// States.
    pub states: Vec<Port>,
}

impl Signature {
    /// The input of that name.
    pub fn input(&self, name: &str) -> Option<&Port> {
        self.inputs.iter().find(|port| port.name == name)
    }

    /// The output of that name.
    pub fn output(&self, name: &str) -> Option<&Port> {
        self.outputs.iter().find(|port| port.name == name)
    }
}

/// A value that a function takes and whose successor it gives, so that a session keeps it from call to call: a cache
/// that is no state of the package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The input that takes it.
    pub input: Port,
    /// The output that gives its successor.
    pub output: String,
}

/// A call of a function.
pub struct Call<'a> {
    /// The function.
    pub function: &'a str,
    /// Its inputs by name, but for those kept.
    pub inputs: BTreeMap<String, Tensor>,
    /// The inputs that the session has kept; their outputs are kept in turn and not given.
    pub kept: &'a [Kept],
}

/// Sees intermediate values by the names that the program gives them.
pub type Watcher<'a> = dyn FnMut(&str, &Tensor) + 'a;

/// Predictions that share states. What is kept for inputs counts as a state of the input's name.
pub trait Session: Send {
    /// Calls a function; gives its outputs by name.
    ///
    /// # Errors
    /// Inputs that do not fit, or a failure of the execution; the states are undefined then.
    fn predict(
        &mut self,
        call: Call<'_>,
        watcher: Option<&mut Watcher<'_>>,
    ) -> Result<BTreeMap<String, Tensor>, PredictError>;

    /// A copy of a state.
    ///
    /// # Errors
    /// There is no such state, or it cannot be read.
    fn state(&self, name: &str) -> Result<Tensor, PredictError>;

    /// Replaces a state.
    ///
    /// # Errors
    /// There is no such state, or the value does not fit.
    fn set_state(&mut self, name: &str, value: Tensor) -> Result<(), PredictError>;

    /// All states zero again.
    ///
    /// # Errors
    /// The states cannot be written.
    fn reset(&mut self) -> Result<(), PredictError>;

    /// Bytes that the states occupy.
    fn state_bytes(&self) -> u64;
}
