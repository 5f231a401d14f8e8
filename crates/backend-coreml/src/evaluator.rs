//! [`Predictor`] over q35's evaluator of MIL programs.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use q35_inference::ModelMemory;
use q35_mil_eval::{Port, Precision, Program, State, Tensor};

use crate::PredictError;
use crate::predictor::{Call, Predictor, Session, Signature, Watcher};

/// A package loaded into the evaluator.
pub struct EvaluatorPredictor {
    program: Arc<Program>,
    signatures: Vec<Signature>,
}

impl EvaluatorPredictor {
    /// Loads a `.mlpackage` directory.
    ///
    /// # Errors
    /// The package is malformed, or contains an operation that the evaluator does not support.
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

    fn session(&self, cache_inputs: &[Port]) -> Result<Box<dyn Session>, PredictError> {
        let state = self.program.new_state();
        let program = Arc::clone(&self.program);
        let caches = zeros(cache_inputs);
        Ok(Box::new(EvaluatorSession { program, state, cache_inputs: cache_inputs.to_vec(), caches }))
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
    cache_inputs: Vec<Port>,
    /// Values of the cache inputs, by name.
    caches: BTreeMap<String, Tensor>,
}

impl Session for EvaluatorSession {
    fn predict(
        &mut self,
        call: Call<'_>,
        watcher: Option<&mut Watcher<'_>>,
    ) -> Result<BTreeMap<String, Tensor>, PredictError> {
        let Call { function, mut inputs, caches } = call;
        for cache in caches {
            // Moved, not copied, so that the program may write in place.
            if let Some((name, tensor)) = self.caches.remove_entry(&cache.input.name) {
                inputs.insert(name, tensor);
            }
        }
        let mut outputs = match watcher {
            Some(watcher) => self.program.run_watched(function, inputs, &mut self.state, watcher)?,
            None => self.program.run(function, inputs, &mut self.state)?,
        };
        for cache in caches {
            let missing = || PredictError::Framework(format!("no output `{}`", cache.output));
            let tensor = outputs.remove(&cache.output).ok_or_else(missing)?;
            self.caches.insert(cache.input.name.clone(), tensor);
        }
        Ok(outputs)
    }

    fn state(&self, name: &str) -> Result<Tensor, PredictError> {
        let state = self.caches.get(name).or_else(|| self.state.get(name));
        state.cloned().ok_or_else(|| PredictError::NoState(name.to_owned()))
    }

    fn set_state(&mut self, name: &str, value: Tensor) -> Result<(), PredictError> {
        if self.cache_inputs.iter().any(|port| port.name == name) {
            self.caches.insert(name.to_owned(), value);
            return Ok(());
        }
        Ok(self.state.set(name, value)?)
    }

    fn reset(&mut self) -> Result<(), PredictError> {
        self.state.reset();
        self.caches = zeros(&self.cache_inputs);
        Ok(())
    }

    fn state_bytes(&self) -> u64 {
        let caches: usize = self.caches.values().map(Tensor::size_bytes).sum();
        (caches + self.state.size_bytes()) as u64
    }
}
