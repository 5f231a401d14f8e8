//! Packages executed by q35's own evaluator.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use q35_inference::ModelMemory;
use q35_mil_eval::{Port, Precision, Program, State, Tensor};

use crate::PredictError;
use crate::predictor::{Call, Predictor, Session, Signature, Watcher};

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

    fn session(&self, kept: &[Port]) -> Result<Box<dyn Session>, PredictError> {
        let state = self.program.new_state();
        let program = Arc::clone(&self.program);
        Ok(Box::new(EvaluatorSession { program, state, ports: kept.to_vec(), kept: zeros(kept) }))
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

fn zeros(ports: &[Port]) -> BTreeMap<String, Tensor> {
    let zero = |port: &Port| Tensor::float(&port.ty.shape, vec![0.0; port.ty.count()]);
    ports.iter().map(|port| (port.name.clone(), zero(port))).collect()
}

struct EvaluatorSession {
    program: Arc<Program>,
    state: State,
    /// What is kept.
    ports: Vec<Port>,
    kept: BTreeMap<String, Tensor>,
}

impl Session for EvaluatorSession {
    fn predict(
        &mut self,
        call: Call<'_>,
        watcher: Option<&mut Watcher<'_>>,
    ) -> Result<BTreeMap<String, Tensor>, PredictError> {
        let Call { function, mut inputs, kept } = call;
        for value in kept {
            // Moved, not copied, so that the program may write in place.
            if let Some((name, tensor)) = self.kept.remove_entry(&value.input.name) {
                inputs.insert(name, tensor);
            }
        }
        let mut outputs = match watcher {
            Some(watcher) => self.program.run_watched(function, inputs, &mut self.state, watcher)?,
            None => self.program.run(function, inputs, &mut self.state)?,
        };
        for value in kept {
            let missing = || PredictError::Framework(format!("no output `{}`", value.output));
            let tensor = outputs.remove(&value.output).ok_or_else(missing)?;
            self.kept.insert(value.input.name.clone(), tensor);
        }
        Ok(outputs)
    }

    fn state(&self, name: &str) -> Result<Tensor, PredictError> {
        let state = self.kept.get(name).or_else(|| self.state.get(name));
        state.cloned().ok_or_else(|| PredictError::NoState(name.to_owned()))
    }

    fn set_state(&mut self, name: &str, value: Tensor) -> Result<(), PredictError> {
        if self.ports.iter().any(|port| port.name == name) {
            self.kept.insert(name.to_owned(), value);
            return Ok(());
        }
        Ok(self.state.set(name, value)?)
    }

    fn reset(&mut self) -> Result<(), PredictError> {
        self.state.reset();
        self.kept = zeros(&self.ports);
        Ok(())
    }

    fn state_bytes(&self) -> u64 {
        let kept: usize = self.kept.values().map(Tensor::size_bytes).sum();
        (kept + self.state.size_bytes()) as u64
    }
}
