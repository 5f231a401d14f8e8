//! The suite over the backends of every build: the CPU on MLX weights, and the evaluator on Core ML packages.

use std::sync::{Mutex, Weak};

use q35_coreml::{Options, Provenance};
use q35_runtime::{Backend as Computes, Chat, LoadOptions, OpenError};
use q35_suite::{Backend, ModelFiles, nano_mlx, nano_source};
use tempfile::TempDir;

/// The suite's backend that opens `files`.
fn backend(name: &'static str, files: ModelFiles) -> Backend {
    Backend::new(name, move |options| Chat::open(files.path_str(), options, &|_| {}))
}

fn cpu_exact() -> Backend {
    backend("CPU, exact", nano_mlx()).with_exact()
}

fn cpu_fast() -> Backend {
    backend("CPU, fast", nano_mlx())
}

/// The embedded model as a Core ML package with 512 tokens of context.
fn nano_coreml() -> ModelFiles {
    static SHARED: Mutex<Weak<TempDir>> = Mutex::new(Weak::new());
    ModelFiles::shared(&SHARED, |dir| {
        let source = nano_source();
        let checkpoint = q35_checkpoint::Checkpoint::open(source.path()).unwrap();
        let options = Options { context: 512, ..Options::default() };
        q35_coreml::write(&checkpoint, &options, &Provenance::default(), dir, &|_| {}).unwrap();
    })
}

/// In half precision, as a device computes. It takes its time, so less is done.
fn coreml() -> Backend {
    backend("Core ML evaluator", nano_coreml())
        .with_options(LoadOptions::default().with_max_context(512).with_backend(Computes::CoreMl))
        .with_grid(64)
        .with_steps(8)
}

q35_suite::backend_suite!(cpu_exact_suite, super::cpu_exact());
q35_suite::backend_suite!(cpu_fast_suite, super::cpu_fast());
q35_suite::backend_suite!(coreml_suite, super::coreml());

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
    for (files, other) in [(nano_mlx(), Computes::CoreMl), (nano_coreml(), Computes::Cpu)] {
        let options = LoadOptions::default().with_backend(other);
        let Err(q35_runtime::ChatError::Open(error)) = Chat::open(files.path_str(), &options, &|_| {}) else {
            panic!("opened by {other:?}");
        };
        assert!(matches!(*error, OpenError::WrongBackend { .. }), "{error}");
    }
}
