//! The backend tests on the backends of every build: the CPU on MLX weights, and the evaluator on Core ML packages.

mod support;

use q35_backend_tests::{Backend, nano_mlx};
use q35_runtime::{ArtefactError, Backend as BackendChoice, Chat, LoadOptions, OpenError, Precision};
use support::{backend, nano_coreml};

fn on_cpu() -> LoadOptions {
    LoadOptions::default().with_max_context(1024).with_backend(BackendChoice::Cpu)
}

fn cpu_exact() -> Backend {
    backend("CPU, exact", nano_mlx()).with_options(on_cpu().with_precision(Precision::Exact))
}

fn cpu_fast() -> Backend {
    backend("CPU, fast", nano_mlx()).with_options(on_cpu())
}

/// In half precision, as a device computes. The evaluator is slow, so fewer steps are run.
fn coreml() -> Backend {
    let options = on_cpu().with_max_context(512);
    backend("Core ML evaluator", nano_coreml()).with_options(options).with_alignment(64).with_steps(8)
}

q35_backend_tests::backend_suite!(cpu_exact_suite, super::cpu_exact());
q35_backend_tests::backend_suite!(cpu_fast_suite, super::cpu_fast());
q35_backend_tests::backend_suite!(coreml_suite, super::coreml());

#[test]
fn a_model_that_cannot_fit_is_refused_with_numbers() {
    for files in [nano_mlx(), nano_coreml()] {
        let options = LoadOptions::default().with_memory_limit(1_000_000);
        let error = Chat::open(files.path_str(), &options, &|_| {}).err().unwrap().to_string();
        assert!(error.contains("MB needed (weights") && error.contains("limit:    1 MB"), "{error}");
    }
}

#[test]
fn a_backend_runs_only_its_own_files() {
    for (files, other) in [(nano_mlx(), BackendChoice::CoreMl), (nano_coreml(), BackendChoice::Mlx)] {
        let options = LoadOptions::default().with_backend(other);
        let Err(q35_runtime::ChatError::Open(error)) = Chat::open(files.path_str(), &options, &|_| {}) else {
            panic!("opened by {other:?}");
        };
        let OpenError::Artefact(error) = *error else { panic!("{error}") };
        assert!(matches!(*error, ArtefactError::Backend { .. }), "{error}");
    }
}
