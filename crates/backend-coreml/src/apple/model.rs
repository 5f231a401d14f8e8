//! A package's functions as `MLModel`s.

use std::collections::BTreeMap;
use std::path::Path;

use objc2::rc::{Retained, autoreleasepool};
use objc2_core_ml::{MLComputeUnits, MLModel, MLModelConfiguration};
use objc2_foundation::NSString;

use super::compile::{compile, file_url};
use super::error::framework_error;
use crate::{ComputeUnits, PredictError, Signature, package_signatures};

/// A loaded package: one `MLModel` per function.
pub(crate) struct LoadedPackage {
    pub signatures: Vec<Signature>,
    models: BTreeMap<String, FunctionModel>,
}

/// The `MLModel` of one function.
struct FunctionModel(Retained<MLModel>);

// SAFETY: Apple documents predictions of one MLModel as callable from several threads; the only other call after loading
// is `newState`, which only allocates.
unsafe impl Send for FunctionModel {}
// SAFETY: as above.
unsafe impl Sync for FunctionModel {}

impl LoadedPackage {
    /// Compiles the package, unless `cache` holds its compiled form, and loads all functions.
    pub fn load(package: &Path, units: ComputeUnits, cache: Option<&Path>) -> Result<Self, PredictError> {
        let signatures = package_signatures(package)?;
        let load = |signature: &Signature| {
            let compiled = compile(package, cache)?;
            let configuration = configuration(units, function_name(&signatures, signature));
            // SAFETY: the arguments are a compiled model's URL and a new configuration.
            let model = unsafe {
                MLModel::modelWithContentsOfURL_configuration_error(&file_url(&compiled), &configuration)
            };
            Ok((signature.name.clone(), FunctionModel(model.map_err(framework_error)?)))
        };
        let models: Result<_, PredictError> = autoreleasepool(|_| signatures.iter().map(load).collect());
        let models = models?;
        Ok(Self { signatures, models })
    }

    /// A function's signature and model.
    pub fn function(&self, name: &str) -> Result<(&Signature, &MLModel), PredictError> {
        let signature = self.signatures.iter().find(|signature| signature.name == name);
        let found = signature.zip(self.models.get(name));
        let (signature, model) =
            found.ok_or_else(|| PredictError::Framework(format!("no function `{name}`")))?;
        Ok((signature, &model.0))
    }
}

/// The function name for a configuration: `None` for the only function of a package.
pub(crate) fn function_name<'a>(all: &[Signature], function: &'a Signature) -> Option<&'a str> {
    (all.len() > 1).then_some(function.name.as_str())
}

pub(crate) fn configuration(units: ComputeUnits, function: Option<&str>) -> Retained<MLModelConfiguration> {
    let units = match units {
        ComputeUnits::All => MLComputeUnits::All,
        ComputeUnits::CpuOnly => MLComputeUnits::CPUOnly,
        ComputeUnits::CpuAndGpu => MLComputeUnits::CPUAndGPU,
        ComputeUnits::CpuAndNeuralEngine => MLComputeUnits::CPUAndNeuralEngine,
    };
    // SAFETY: setters of a new, unshared configuration.
    unsafe {
        let configuration = MLModelConfiguration::new();
        configuration.setComputeUnits(units);
        if let Some(function) = function {
            configuration.setFunctionName(Some(&NSString::from_str(function)));
        }
        configuration
    }
}
