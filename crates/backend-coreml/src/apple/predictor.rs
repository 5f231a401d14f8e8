//! [`Predictor`] over Core ML.

use std::path::Path;
use std::sync::Arc;

use q35_inference::ModelMemory;

use super::model::LoadedPackage;
use super::session::AppleSession;
use crate::{ComputeUnits, Port, PredictError, Predictor, Session, Signature};

/// A package loaded into Core ML, one `MLModel` per function.
pub struct ApplePredictor {
    package: Arc<LoadedPackage>,
    units: ComputeUnits,
    weight_bytes: u64,
}

impl ApplePredictor {
    /// Loads a package, compiling it unless the directory `cache` holds its compiled form. Without `cache` it is
    /// compiled each time.
    ///
    /// # Errors
    /// The package cannot be read, or Core ML cannot compile or load it.
    pub fn load(package: &Path, units: ComputeUnits, cache: Option<&Path>) -> Result<Self, PredictError> {
        let loaded = LoadedPackage::load(package, units, cache)?;
        let weights = package.join("Data/com.apple.CoreML/weights/weight.bin");
        let weight_bytes = std::fs::metadata(weights).map_or(0, |file| file.len());
        Ok(Self { package: Arc::new(loaded), units, weight_bytes })
    }
}

impl Predictor for ApplePredictor {
    fn describe(&self) -> String {
        format!("Core ML on {}", self.units.name())
    }

    fn signatures(&self) -> &[Signature] {
        &self.package.signatures
    }

    fn session(&self, cache_inputs: &[Port]) -> Result<Box<dyn Session>, PredictError> {
        Ok(Box::new(AppleSession::new(Arc::clone(&self.package), cache_inputs)?))
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
