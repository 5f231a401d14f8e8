//! The backend that runs an MLX directory, and the errors of requests that cannot be met.

use std::sync::Arc;

use q35_backend::{Activations, Backend, BackendError, Device, Precision, RunOptions, Running, open_mlx};
use q35_checkpoint::Checkpoint;
use q35_format_mlx::{MlxDirectory, RoundToNearest, WriteOptions};
use q35_quant::affine::AffineSpec;
use q35_testkit::TinyCheckpoint;

fn directory() -> Arc<MlxDirectory> {
    let home = tempfile::tempdir().unwrap();
    let (from, to) = (home.path().join("source"), home.path().join("mlx"));
    TinyCheckpoint::new().write_to(&from);
    std::fs::create_dir(&to).unwrap();
    let recipe = RoundToNearest(AffineSpec::new(4, 64).unwrap());
    q35_format_mlx::write(&Checkpoint::open(&from).unwrap(), &recipe, &WriteOptions::default(), &to, &|_| {})
        .unwrap();
    // The files stay mapped when their names are gone.
    Arc::new(MlxDirectory::open(&to).unwrap())
}

fn open(backend: Backend, device: Option<Device>, precision: Precision) -> Result<Running, BackendError> {
    let options = RunOptions { backend, device, precision, threads: Some(1), ..RunOptions::default() };
    open_mlx(directory(), &options)
}

#[test]
fn the_cpu_is_exact_when_that_is_asked_for() {
    for (precision, activations, mode) in [
        (Precision::Exact, Activations::F32, "exact"),
        (Precision::Declared, Activations::F32, "exact"),
        (Precision::Fast, Activations::Quantized, "fast"),
    ] {
        let running = open(Backend::Cpu, None, precision).unwrap();
        assert_eq!(running.activations, activations);
        assert!(running.model.describe().ends_with(mode), "{}", running.model.describe());
    }
    assert_eq!(open(Backend::Auto, None, Precision::Exact).unwrap().activations, Activations::F32);
}

#[test]
fn core_ml_does_not_run_mlx_directories() {
    let error = open(Backend::CoreMl, None, Precision::Fast).err().unwrap().to_string();
    assert_eq!(error, "the Core ML backend cannot run an MLX model");
}

#[test]
fn mlx_does_not_compute_on_another_systems_gpu() {
    let (other, gpu) = match Device::GPU {
        Device::Metal => (Device::Cuda, "metal"),
        _ => (Device::Metal, "cuda"),
    };
    let error = open(Backend::Mlx, Some(other), Precision::Fast).err().unwrap().to_string();
    assert!(error.contains(other.name()) && error.contains(&format!("cpu or {gpu}")), "{error}");
}

#[cfg(not(feature = "mlx"))]
#[test]
fn a_build_without_mlx_says_how_to_have_it() {
    let error = open(Backend::Mlx, None, Precision::Fast).err().unwrap().to_string();
    assert!(error.contains("built without MLX") && error.contains("--features mlx"), "{error}");
    assert!(open(Backend::Auto, None, Precision::Fast).unwrap().model.describe().starts_with("CPU"));
}

#[cfg(feature = "mlx")]
#[test]
fn mlx_computes_where_it_is_told_to() {
    let running = open(Backend::Mlx, Some(Device::Cpu), Precision::Fast).unwrap();
    assert_eq!(running.model.describe(), "MLX on the CPU, f32");
    assert_eq!(running.activations, Activations::F32);
    assert_eq!(open(Backend::Mlx, None, Precision::Exact).unwrap().activations, Activations::F32);
    let automatic = open(Backend::Auto, None, Precision::Fast).unwrap().model.describe();
    match open(Backend::Mlx, Some(Device::GPU), Precision::Fast) {
        Ok(running) => {
            assert!(running.model.describe().starts_with("MLX on the GPU"), "{}", running.model.describe());
            assert!(automatic.starts_with("MLX on the GPU"), "{automatic}");
        }
        Err(error) => {
            let error = error.to_string();
            assert!(error.starts_with("MLX has no GPU here"), "{error}");
            // q35's own kernels are faster than MLX's CPU backend.
            assert!(automatic.starts_with("CPU"), "{automatic}");
        }
    }
}
