//! Opens Core ML packages.

use std::path::Path;

use q35_backend_coreml::{ComputeUnits, CoreMlModel, PlannedOperation, Precision as Rounding};

use crate::{Activations, Backend, BackendError, Precision, RunOptions, Running};

/// Opens a directory of Core ML packages with the requested backend. The evaluator rounds as the package declares,
/// except with [`Precision::Exact`].
///
/// # Errors
/// The backend does not run packages, or refuses these.
pub fn open_coreml(dir: &Path, options: &RunOptions) -> Result<Running, BackendError> {
    match options.backend {
        Backend::Cpu => open_in_evaluator(dir, options),
        Backend::Auto if options.precision == Precision::Exact => open_in_evaluator(dir, options),
        Backend::Auto | Backend::CoreMl => open_in_framework(dir, options),
        Backend::Mlx => {
            Err(BackendError::Unsuitable { backend: options.backend.name(), form: "Core ML packages" })
        }
    }
}

fn open_in_evaluator(dir: &Path, options: &RunOptions) -> Result<Running, BackendError> {
    let (rounding, activations) = match options.precision {
        Precision::Exact => (Rounding::Exact, Activations::F32),
        Precision::Declared | Precision::Fast => (Rounding::Half, Activations::F16),
    };
    Ok(Running { model: Box::new(CoreMlModel::open(dir, rounding)?), activations })
}

#[cfg(target_vendor = "apple")]
fn open_in_framework(dir: &Path, options: &RunOptions) -> Result<Running, BackendError> {
    use std::sync::Arc;

    use q35_backend_coreml::ApplePredictor;

    let model = CoreMlModel::open_with(dir, &|package| {
        let cache = options.compiled_cache.as_deref();
        Ok(Arc::new(ApplePredictor::load(package, options.compute_units, cache)?))
    })?;
    Ok(Running { model: Box::new(model), activations: Activations::F16 })
}

#[cfg(not(target_vendor = "apple"))]
fn open_in_framework(dir: &Path, options: &RunOptions) -> Result<Running, BackendError> {
    open_in_evaluator(dir, options)
}

/// The unit on which Apple's Core ML plans to run each operation of a package.
///
/// # Errors
/// This is no system of Apple's, or Core ML refuses the package.
#[cfg(target_vendor = "apple")]
pub fn compute_plan(
    package: &Path,
    units: ComputeUnits,
    compiled_cache: Option<&Path>,
) -> Result<Vec<PlannedOperation>, BackendError> {
    q35_backend_coreml::compute_plan(package, units, compiled_cache).map_err(|source| {
        BackendError::from(q35_backend_coreml::OpenError::Package { package: package.to_owned(), source })
    })
}

/// The unit on which Apple's Core ML plans to run each operation of a package.
///
/// # Errors
/// This is no system of Apple's, or Core ML refuses the package.
#[cfg(not(target_vendor = "apple"))]
pub fn compute_plan(
    _package: &Path,
    _units: ComputeUnits,
    _compiled_cache: Option<&Path>,
) -> Result<Vec<PlannedOperation>, BackendError> {
    Err(BackendError::NotApple)
}
