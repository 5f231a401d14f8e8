//! The backend tests on Apple's Core ML, with each set of compute units. Not yet run: see `docs/apple.md`.
#![cfg(target_vendor = "apple")]

mod support;

use q35_backend_tests::{Backend, Reuse};
use q35_runtime::{Backend as BackendChoice, ComputeUnits, LoadOptions};
use support::{backend, nano_coreml};

fn coreml(units: ComputeUnits) -> Backend {
    let options = LoadOptions::default().with_max_context(512).with_backend(BackendChoice::CoreMl);
    backend("Core ML", nano_coreml())
        .with_options(options.with_compute_units(units))
        .with_reuse(Reuse::MeanKl(1e-6))
        .with_alignment(64)
        .with_steps(8)
}

q35_backend_tests::backend_suite!(cpu_suite, super::coreml(ComputeUnits::CpuOnly));
q35_backend_tests::backend_suite!(gpu_suite, super::coreml(ComputeUnits::CpuAndGpu));
q35_backend_tests::backend_suite!(neural_engine_suite, super::coreml(ComputeUnits::CpuAndNeuralEngine));
