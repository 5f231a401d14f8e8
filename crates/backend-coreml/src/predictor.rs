//! The interface to an executor of packages.

use std::collections::BTreeMap;

use q35_inference::ModelMemory;
use q35_mil_eval::{Port, Tensor};

use crate::PredictError;

/// A loaded package.
pub trait Predictor: Send + Sync {
    /// Name of the executor and its arithmetic for display, e.g. "evaluator, f32".
    fn describe(&self) -> String;

    /// Its functions, ordered by name.
    fn signatures(&self) -> &[Signature];

    /// Starts a session whose states and `cache_inputs` are all zero.
    ///
    /// # Errors
    /// The states cannot be allocated.
    fn session(&self, cache_inputs: &[Port]) -> Result<Box<dyn Session>, PredictError>;

    /// True if intermediate values can be observed; [`Session::predict`] ignores its watcher otherwise.
    fn can_watch(&self) -> bool;

    /// Memory of the weights; `function` is the one used for decoding.
    fn memory(&self, function: &str) -> ModelMemory;
}

/// A function's inputs, outputs and states.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// The function's name.
    pub name: String,
    /// Inputs other than states.
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

/// A cache that is passed to a function as an input and returned, updated, as an output. The session stores it between
/// calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheIo {
    /// Input that receives the current value.
    pub input: Port,
    /// Name of the output with the next value.
    pub output: String,
}

/// A call of a function.
pub struct Call<'a> {
    /// The function.
    pub function: &'a str,
    /// The function's inputs by name, caches excluded.
    pub inputs: BTreeMap<String, Tensor>,
    /// The function's caches: the session supplies the inputs and stores the outputs instead of returning them.
    pub caches: &'a [CacheIo],
}

/// Callback for intermediate values, called with a value's name in the program and its contents.
pub type Watcher<'a> = dyn FnMut(&str, &Tensor) + 'a;

/// A series of predictions over the same states. The value of a cache input counts as a state with the input's name.
pub trait Session: Send {
    /// Calls a function and returns its outputs by name.
    ///
    /// # Errors
    /// The inputs do not fit or the execution fails; the states are undefined afterwards.
    fn predict(
        &mut self,
        call: Call<'_>,
        watcher: Option<&mut Watcher<'_>>,
    ) -> Result<BTreeMap<String, Tensor>, PredictError>;

    /// Copies a state out.
    ///
    /// # Errors
    /// The package has no such state, or it cannot be read.
    fn state(&self, name: &str) -> Result<Tensor, PredictError>;

    /// Replaces a state.
    ///
    /// # Errors
    /// The package has no such state, or the value does not fit.
    fn set_state(&mut self, name: &str, value: Tensor) -> Result<(), PredictError>;

    /// Sets all states to zero.
    ///
    /// # Errors
    /// The states cannot be written.
    fn reset(&mut self) -> Result<(), PredictError>;

    /// Size of the states in bytes.
    fn state_bytes(&self) -> u64;
}
