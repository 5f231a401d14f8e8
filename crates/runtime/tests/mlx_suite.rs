//! The backend tests on MLX's CPU device, in f32, and on a Mac on Metal. They run only with the feature `mlx` (see
//! `scripts/mlx/setup_linux.sh`).
#![cfg(feature = "mlx")]

mod support;

use q35_backend_tests::{Backend, nano_mlx};
use q35_runtime::{Backend as BackendChoice, Device, LoadOptions};
use support::backend;

fn mlx(device: Device) -> Backend {
    let options = LoadOptions::default().with_max_context(1024).with_backend(BackendChoice::Mlx);
    backend("MLX", nano_mlx()).with_options(options.with_device(device)).with_alignment(64).with_steps(8)
}

// On the CPU, MLX always computes in f32.
q35_backend_tests::backend_suite!(mlx_cpu_suite, super::mlx(Device::Cpu).with_always_exact());
#[cfg(target_vendor = "apple")]
q35_backend_tests::backend_suite!(mlx_metal_suite, super::mlx(Device::Metal));
