//! MLX directories.

use std::sync::Arc;

use q35_backend_cpu::{CpuModel, CpuOptions, Mode};
use q35_format_mlx::MlxDirectory;

use crate::{Activations, Backend, BackendError, RunOptions, Running};

/// Opens an MLX directory with the backend chosen.
///
/// # Errors
/// The backend does not run MLX directories, is not in this build, or refuses this one.
pub fn open_mlx(directory: Arc<MlxDirectory>, options: &RunOptions) -> Result<Running, BackendError> {
    match options.backend {
        Backend::Cpu => on_cpu(directory, options),
        Backend::Auto if options.exact || !by_mlx::has_gpu() => on_cpu(directory, options),
        Backend::Auto | Backend::Mlx => by_mlx::open(directory, options),
        Backend::CoreMl => {
            Err(BackendError::Unsuitable { backend: options.backend.name(), form: "an MLX model" })
        }
    }
}

fn on_cpu(directory: Arc<MlxDirectory>, options: &RunOptions) -> Result<Running, BackendError> {
    let (mode, activations) = match options.exact {
        true => (Mode::Exact, Activations::F32),
        false => (Mode::Fast, Activations::Integer),
    };
    let mut cpu = CpuOptions::default().with_mode(mode);
    if let Some(threads) = options.threads {
        cpu = cpu.with_threads(threads);
    }
    Ok(Running { model: Box::new(CpuModel::open(directory, cpu)?), activations })
}

#[cfg(feature = "mlx")]
mod by_mlx {
    use super::*;
    use crate::Device;
    use q35_backend_mlx::{MlxDevice, MlxModel};
    use q35_quant::FloatType;

    pub fn has_gpu() -> bool {
        MlxDevice::default() == MlxDevice::Gpu
    }

    pub fn open(directory: Arc<MlxDirectory>, options: &RunOptions) -> Result<Running, BackendError> {
        let device = match options.device {
            Some(Device::Cpu) => MlxDevice::Cpu,
            Some(Device::Gpu) => MlxDevice::Gpu,
            // On the CPU MLX computes in f32.
            None if options.exact => MlxDevice::Cpu,
            None => MlxDevice::default(),
        };
        let model = MlxModel::load(directory, device).map_err(|error| BackendError::Mlx(Box::new(error)))?;
        let activations = match model.activations() {
            FloatType::F32 => Activations::F32,
            FloatType::F16 => Activations::F16,
            FloatType::Bf16 => Activations::Bf16,
        };
        Ok(Running { model: Box::new(model), activations })
    }
}

#[cfg(not(feature = "mlx"))]
mod by_mlx {
    use super::*;

    pub fn has_gpu() -> bool {
        false
    }

    pub fn open(_: Arc<MlxDirectory>, _: &RunOptions) -> Result<Running, BackendError> {
        Err(BackendError::NoMlx)
    }
}
