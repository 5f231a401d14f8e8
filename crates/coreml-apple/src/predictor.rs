//! A package in Core ML.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use block2::RcBlock;
use objc2::AnyThread;
use objc2::rc::Retained;
use objc2::runtime::{AnyObject, ProtocolObject};
use objc2_core_ml::{
    MLComputeUnits, MLDictionaryFeatureProvider, MLFeatureProvider, MLFeatureValue, MLModel,
    MLModelConfiguration, MLMultiArray, MLState,
};
use objc2_foundation::{NSDictionary, NSString};
use q35_coreml_backend::{
    Port, PredictError, Predictor, Session, Signature, Tensor, Watcher, package_signatures,
};
use q35_model::ModelMemory;

use crate::array::{fill, to_array, to_tensor};
use crate::compiled::{compiled, url};

/// Which units Core ML may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ComputeUnits {
    /// All that there are.
    All,
    /// The processor.
    CpuOnly,
    /// Processor and GPU.
    CpuAndGpu,
    /// Processor and Neural Engine.
    #[default]
    CpuAndNeuralEngine,
}

impl ComputeUnits {
    pub(crate) fn configuration(self, function: Option<&str>) -> Retained<MLModelConfiguration> {
        let units = match self {
            Self::All => MLComputeUnits::All,
            Self::CpuOnly => MLComputeUnits::CPUOnly,
            Self::CpuAndGpu => MLComputeUnits::CPUAndGPU,
            Self::CpuAndNeuralEngine => MLComputeUnits::CPUAndNeuralEngine,
        };
        // SAFETY: setters of a configuration that nobody else has.
        unsafe {
            let configuration = MLModelConfiguration::new();
            configuration.setComputeUnits(units);
            if let Some(function) = function {
                configuration.setFunctionName(Some(&NSString::from_str(function)));
            }
            configuration
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::All => "all units",
            Self::CpuOnly => "CPU",
            Self::CpuAndGpu => "CPU and GPU",
            Self::CpuAndNeuralEngine => "CPU and Neural Engine",
        }
    }
}

/// A loaded model of one function.
struct Loaded(Retained<MLModel>);

// SAFETY: Apple documents predictions of one MLModel as callable from several threads; nothing else is called on it
// after it is loaded but `newState`, which only allocates.
unsafe impl Send for Loaded {}
// SAFETY: as above.
unsafe impl Sync for Loaded {}

/// A package in Core ML, each function loaded as a model of its own.
pub struct ApplePredictor {
    functions: Arc<BTreeMap<String, Loaded>>,
    signatures: Arc<[Signature]>,
    units: ComputeUnits,
    weight_bytes: u64,
}

impl ApplePredictor {
    /// Compiles the package unless `cache` has it, and loads it.
    ///
    /// # Errors
    /// The package cannot be read, or Core ML refuses it.
    pub fn load(package: &Path, units: ComputeUnits, cache: &Path) -> Result<Self, PredictError> {
        let signatures = package_signatures(package)?;
        let compiled: PathBuf = compiled(package, cache)?;
        let several = signatures.len() > 1;
        let load = |signature: &Signature| {
            let configuration = units.configuration(several.then_some(signature.name.as_str()));
            // SAFETY: a compiled model's URL and a configuration of our own.
            let model = unsafe {
                MLModel::modelWithContentsOfURL_configuration_error(&url(&compiled), &configuration)
            };
            let model =
                model.map_err(|error| PredictError::Framework(error.localizedDescription().to_string()))?;
            Ok((signature.name.clone(), Loaded(model)))
        };
        let functions = signatures.iter().map(load).collect::<Result<_, PredictError>>()?;
        let weights = package.join("Data/com.apple.CoreML/weights/weight.bin");
        let weight_bytes = std::fs::metadata(weights).map_or(0, |file| file.len());
        Ok(Self { functions: Arc::new(functions), signatures: signatures.into(), units, weight_bytes })
    }
}

impl Predictor for ApplePredictor {
    fn describe(&self) -> String {
        format!("Core ML on {}", self.units.name())
    }

    fn signatures(&self) -> &[Signature] {
        &self.signatures
    }

    fn session(&self) -> Result<Box<dyn Session>, PredictError> {
        Ok(Box::new(AppleSession {
            functions: Arc::clone(&self.functions),
            signatures: Arc::clone(&self.signatures),
            states: BTreeMap::new(),
            current: None,
        }))
    }

    fn can_watch(&self) -> bool {
        false
    }

    fn memory(&self, _function: &str) -> ModelMemory {
        ModelMemory {
            mapped_bytes: self.weight_bytes,
            owned_bytes: 0,
            weight_bytes_per_token: self.weight_bytes,
        }
    }
}

struct AppleSession {
    functions: Arc<BTreeMap<String, Loaded>>,
    signatures: Arc<[Signature]>,
    /// One per function that was called: a state belongs to the model that made it.
    states: BTreeMap<String, Retained<MLState>>,
    /// The function whose state is the newest.
    current: Option<String>,
}

impl AppleSession {
    fn signature(&self, function: &str) -> Result<&Signature, PredictError> {
        let found = self.signatures.iter().find(|signature| signature.name == function);
        found.ok_or_else(|| PredictError::Framework(format!("no function `{function}`")))
    }

    /// Makes `function` the owner of the newest state, copying it from the last owner.
    fn switch_to(&mut self, function: &str) -> Result<(), PredictError> {
        let model = self.functions.get(function);
        let model = model.ok_or_else(|| PredictError::Framework(format!("no function `{function}`")))?;
        // SAFETY: allocates a state of zeros.
        let own =
            self.states.entry(function.to_owned()).or_insert_with(|| unsafe { model.0.newState() }).clone();
        let last = self.current.replace(function.to_owned()).filter(|last| last != function);
        if let Some(last) = last.and_then(|last| self.states.get(&last)) {
            for port in &self.signature(function)?.states {
                let value = read_state(last, &port.name)?;
                write_state(&own, &port.name, &value)?;
            }
        }
        Ok(())
    }

    fn newest(&mut self) -> Result<Retained<MLState>, PredictError> {
        if self.current.is_none() {
            let first = self.signatures.first().map(|signature| signature.name.clone());
            self.switch_to(&first.ok_or_else(|| PredictError::Framework("no functions".to_owned()))?)?;
        }
        let state = self.current.as_ref().and_then(|current| self.states.get(current));
        state.cloned().ok_or_else(|| PredictError::Framework("no state".to_owned()))
    }
}

impl Session for AppleSession {
    fn predict(
        &mut self,
        function: &str,
        inputs: BTreeMap<String, Tensor>,
        _watcher: Option<&mut Watcher<'_>>,
    ) -> Result<BTreeMap<String, Tensor>, PredictError> {
        self.switch_to(function)?;
        let signature = self.signature(function)?;
        let mut names = Vec::new();
        let mut values: Vec<Retained<AnyObject>> = Vec::new();
        for port in &signature.inputs {
            let given = inputs.get(&port.name);
            let given =
                given.ok_or_else(|| PredictError::Framework(format!("input `{}` is missing", port.name)))?;
            let array = to_array(port, given)?;
            names.push(NSString::from_str(&port.name));
            // SAFETY: wraps the array.
            let value = unsafe { MLFeatureValue::featureValueWithMultiArray(&array) };
            values.push(Retained::into_super(Retained::into_super(value)));
        }
        let keys: Vec<&NSString> = names.iter().map(|name| &**name).collect();
        let dictionary = NSDictionary::from_retained_objects(&keys, &values);
        let framework = |error: Retained<objc2_foundation::NSError>| {
            PredictError::Framework(error.localizedDescription().to_string())
        };
        let loaded = &self.functions[function];
        // SAFETY: every value is an MLFeatureValue; the state was made by this very model.
        let outputs = unsafe {
            let features = MLDictionaryFeatureProvider::initWithDictionary_error(
                MLDictionaryFeatureProvider::alloc(),
                &dictionary,
            )
            .map_err(framework)?;
            let features: &ProtocolObject<dyn MLFeatureProvider> = ProtocolObject::from_ref(&*features);
            match self.states.get(function).filter(|_| !signature.states.is_empty()) {
                Some(state) => loaded.0.predictionFromFeatures_usingState_error(features, state),
                None => loaded.0.predictionFromFeatures_error(features),
            }
        }
        .map_err(framework)?;
        let output = |port: &Port| {
            // SAFETY: plain getters.
            let array = unsafe {
                let value = outputs.featureValueForName(&NSString::from_str(&port.name));
                value.and_then(|value| value.multiArrayValue())
            };
            let array = array.ok_or_else(|| PredictError::Framework(format!("no output `{}`", port.name)))?;
            Ok((port.name.clone(), to_tensor(&array)?))
        };
        signature.outputs.iter().map(output).collect()
    }

    fn state(&self, name: &str) -> Result<Tensor, PredictError> {
        let newest = self.current.as_ref().and_then(|current| self.states.get(current));
        match newest {
            Some(state) => read_state(state, name),
            None => {
                let port =
                    self.signatures.iter().flat_map(|signature| &signature.states).find(|p| p.name == name);
                let port = port.ok_or_else(|| PredictError::NoState(name.to_owned()))?;
                Ok(Tensor::float(&port.ty.shape, vec![0.0; port.ty.count()]))
            }
        }
    }

    fn set_state(&mut self, name: &str, value: Tensor) -> Result<(), PredictError> {
        write_state(&*self.newest()?, name, &value)
    }

    fn reset(&mut self) -> Result<(), PredictError> {
        self.states.clear();
        self.current = None;
        Ok(())
    }

    fn state_bytes(&self) -> u64 {
        let one = |signature: &Signature| {
            signature.states.iter().map(|port| port.ty.packed_bytes() as u64).sum::<u64>()
        };
        self.signatures.iter().filter(|signature| self.states.contains_key(&signature.name)).map(one).sum()
    }
}

fn with_state_array<T>(
    state: &MLState,
    name: &str,
    visit: impl Fn(&MLMultiArray) -> Result<T, PredictError>,
) -> Result<T, PredictError> {
    let outcome = std::cell::RefCell::new(None);
    let block = RcBlock::new(|array: std::ptr::NonNull<MLMultiArray>| {
        // SAFETY: Core ML keeps the array alive for the duration of the block.
        *outcome.borrow_mut() = Some(visit(unsafe { array.as_ref() }));
    });
    // SAFETY: the block runs before this returns and keeps nothing.
    unsafe { state.getMultiArrayForStateNamed_handler(&NSString::from_str(name), &block) };
    drop(block);
    outcome.into_inner().unwrap_or_else(|| Err(PredictError::NoState(name.to_owned())))
}

fn read_state(state: &MLState, name: &str) -> Result<Tensor, PredictError> {
    with_state_array(state, name, to_tensor)
}

fn write_state(state: &MLState, name: &str, value: &Tensor) -> Result<(), PredictError> {
    with_state_array(state, name, |array| fill(array, value))
}
