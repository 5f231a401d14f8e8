//! The backend tests on MLX's CPU device in f32, or on the GPU if the environment variable `Q35_MLX_DEVICE` is `gpu`; on a
//! Mac also on Metal. They run only with the feature `mlx` (see `scripts/mlx/setup_linux.sh`).
#![cfg(feature = "mlx")]

mod support;

use q35_backend_tests::{Backend, nano_mlx};
use q35_runtime::{Backend as BackendChoice, Device, LoadOptions};
use support::backend;

fn mlx(device: Device) -> Backend {
    let options = LoadOptions::default().with_max_context(1024).with_backend(BackendChoice::Mlx);
    let alignment = if device == Device::Cpu { 64 } else { 256 };
    let backend = backend("MLX", nano_mlx()).with_options(options.with_device(device));
    let backend = backend.with_alignment(alignment).with_steps(8);
    // On the CPU, MLX always computes in f32.
    if device == Device::Cpu { backend.with_always_exact() } else { backend }
}

fn device_under_test() -> Device {
    match std::env::var("Q35_MLX_DEVICE").as_deref() {
        Ok("gpu") => Device::GPU,
        _ => Device::Cpu,
    }
}

q35_backend_tests::backend_suite!(mlx_suite, super::mlx(super::device_under_test()));
#[cfg(target_vendor = "apple")]
q35_backend_tests::backend_suite!(mlx_metal_suite, super::mlx(Device::Metal));
