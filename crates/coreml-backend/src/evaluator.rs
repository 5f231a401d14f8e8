//! Packages executed by q35's own evaluator.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use q35_mil_eval::{Precision, Program, State, Tensor};
use q35_model::ModelMemory;

use crate::PredictError;
use crate::predictor::{Predictor, Session, Signature, Watcher};

/// A package in the evaluator.
pub struct EvaluatorPredictor {
    program: Arc<Program>,
    signatures: Vec<Signature>,
}

impl EvaluatorPredictor {
    /// Loads the package in a directory.
    ///
    /// # Errors
    /// The package is malformed, or has an operation that is not supported.
    pub fn load(package: &Path, precision: Precision) -> Result<Self, PredictError> {
        let program = Program::load(package, precision)?;
        let signatures = program
            .functions()
            .map(|function| Signature {
                name: function.name().to_owned(),
                inputs: function.inputs().cloned().collect(),
                outputs: function.outputs().to_vec(),
                states: function.states().to_vec(),
            })
            .collect();
        Ok(Self { program: Arc::new(program), signatures })
    }
}

impl Predictor for EvaluatorPredictor {
    fn describe(&self) -> String {
        match self.program.precision() {
            Precision::Exact => "evaluator, f32".to_owned(),
            Precision::Half => "evaluator, fp16 as declared".to_owned(),
        }
    }

    fn signatures(&self) -> &[Signature] {
        &self.signatures
    }

    fn session(&self) -> Result<Box<dyn Session>, PredictError> {
        let state = self.program.new_state();
        Ok(Box::new(EvaluatorSession { program: Arc::clone(&self.program), state }))
    }

    fn can_watch(&self) -> bool {
        true
    }

    fn memory(&self, function: &str) -> ModelMemory {
        let all = self.program.weight_bytes();
        let one = self.program.function_weight_bytes(function).unwrap_or(all);
        ModelMemory {
            mapped_bytes: all.mapped,
            owned_bytes: all.owned,
            weight_bytes_per_token: one.mapped + one.owned,
        }
    }
}

struct EvaluatorSession {
    program: Arc<Program>,
    state: State,
}

impl Session for EvaluatorSession {
    fn predict(
        &mut self,
        function: &str,
        inputs: BTreeMap<String, Tensor>,
        watcher: Option<&mut Watcher<'_>>,
    ) -> Result<BTreeMap<String, Tensor>, PredictError> {
        Ok(match watcher {
            Some(watcher) => self.program.run_watched(function, inputs, &mut self.state, watcher)?,
            None => self.program.run(function, inputs, &mut self.state)?,
        })
    }

    fn state(&self, name: &str) -> Result<Tensor, PredictError> {
        self.state.get(name).cloned().ok_or_else(|| PredictError::NoState(name.to_owned()))
    }

    fn set_state(&mut self, name: &str, value: Tensor) -> Result<(), PredictError> {
        Ok(self.state.set(name, value)?)
    }

    fn reset(&mut self) -> Result<(), PredictError> {
        self.state.reset();
        Ok(())
    }

    fn state_bytes(&self) -> u64 {
        self.state.size_bytes() as u64
    }
}
