//! A package in Core ML.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use crate::{ComputeUnits, Port, PredictError, Predictor, Session, Signature, package_signatures};
use objc2::rc::{Retained, autoreleasepool};
use objc2_core_ml::{MLComputeUnits, MLModel, MLModelConfiguration};
use objc2_foundation::NSString;
use q35_inference::ModelMemory;

use super::compiled::{compiled, in_words, url};
use super::session::AppleSession;

/// A package in Core ML, each function loaded as a model of its own.
pub struct ApplePredictor {
    package: Arc<Loaded>,
    units: ComputeUnits,
    weight_bytes: u64,
}

/// What the sessions of a package share.
pub(crate) struct Loaded {
    pub signatures: Vec<Signature>,
    models: BTreeMap<String, Model>,
}

/// A loaded model of one function.
struct Model(Retained<MLModel>);

// SAFETY: Apple documents predictions of one MLModel as callable from several threads; nothing else is called on it
// after it is loaded but `newState`, which only allocates.
unsafe impl Send for Model {}
// SAFETY: as above.
unsafe impl Sync for Model {}

impl Loaded {
    /// A function and its model.
    pub fn function(&self, name: &str) -> Result<(&Signature, &MLModel), PredictError> {
        let signature = self.signatures.iter().find(|signature| signature.name == name);
        let found = signature.zip(self.models.get(name));
        let (signature, model) =
            found.ok_or_else(|| PredictError::Framework(format!("no function `{name}`")))?;
        Ok((signature, &model.0))
    }
}

impl ApplePredictor {
    /// Loads a package, compiling it first unless `cache` has it compiled. Without a cache it is compiled each time.
    ///
    /// # Errors
    /// The package cannot be read, or Core ML refuses it.
    pub fn load(package: &Path, units: ComputeUnits, cache: Option<&Path>) -> Result<Self, PredictError> {
        let signatures = package_signatures(package)?;
        let load = |signature: &Signature| {
            let compiled = compiled(package, cache)?;
            let configuration = configuration(units, function_name(&signatures, signature));
            // SAFETY: a compiled model's URL and a configuration of our own.
            let model = unsafe {
                MLModel::modelWithContentsOfURL_configuration_error(&url(&compiled), &configuration)
            };
            Ok((signature.name.clone(), Model(model.map_err(in_words)?)))
        };
        let models: Result<_, PredictError> = autoreleasepool(|_| signatures.iter().map(load).collect());
        let models = models?;
        let weights = package.join("Data/com.apple.CoreML/weights/weight.bin");
        let weight_bytes = std::fs::metadata(weights).map_or(0, |file| file.len());
        Ok(Self { package: Arc::new(Loaded { signatures, models }), units, weight_bytes })
    }
}

/// How a function is named in a configuration: not at all where there is but one.
pub(crate) fn function_name<'a>(all: &[Signature], one: &'a Signature) -> Option<&'a str> {
    (all.len() > 1).then_some(one.name.as_str())
}

pub(crate) fn configuration(units: ComputeUnits, function: Option<&str>) -> Retained<MLModelConfiguration> {
    let units = match units {
        ComputeUnits::All => MLComputeUnits::All,
        ComputeUnits::CpuOnly => MLComputeUnits::CPUOnly,
        ComputeUnits::CpuAndGpu => MLComputeUnits::CPUAndGPU,
        ComputeUnits::CpuAndNeuralEngine => MLComputeUnits::CPUAndNeuralEngine,
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

impl Predictor for ApplePredictor {
    fn describe(&self) -> String {
        format!("Core ML on {}", self.units.name())
    }

    fn signatures(&self) -> &[Signature] {
        &self.package.signatures
    }

    fn session(&self, kept: &[Port]) -> Result<Box<dyn Session>, PredictError> {
        Ok(Box::new(AppleSession::new(Arc::clone(&self.package), kept)?))
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
