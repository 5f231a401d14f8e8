//! Whoever executes a package.

use std::collections::BTreeMap;

use q35_mil_eval::{Port, Tensor};
use q35_model::ModelMemory;

use crate::PredictError;

/// A loaded package.
pub trait Predictor: Send + Sync {
    /// Who executes, for people: "evaluator, fp16".
    fn describe(&self) -> String;

    /// Its functions, ordered by name.
    fn signatures(&self) -> &[Signature];

    /// A run over fresh states, all zero.
    ///
    /// # Errors
    /// The states cannot be made.
    fn session(&self) -> Result<Box<dyn Session>, PredictError>;

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

/// Sees intermediate values by the names that the program gives them.
pub type Watcher<'a> = dyn FnMut(&str, &Tensor) + 'a;

/// Predictions that share states.
pub trait Session: Send {
    /// Calls a function with inputs by name; gives its outputs by name.
    ///
    /// # Errors
    /// Inputs that do not fit, or a failure of the execution; the states are undefined then.
    fn predict(
        &mut self,
        function: &str,
        inputs: BTreeMap<String, Tensor>,
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
