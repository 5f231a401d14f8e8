//! Opens MLX directories.

use std::sync::Arc;

use q35_backend_cpu::{CpuModel, CpuOptions, Mode};
use q35_format_mlx::MlxDirectory;

use crate::{Activations, Backend, BackendError, Device, Precision, RunOptions, Running};

/// Opens an MLX directory with the requested backend.
///
/// # Errors
/// The backend does not run MLX directories, is not in this build, or refuses this one.
pub fn open_mlx(directory: Arc<MlxDirectory>, options: &RunOptions) -> Result<Running, BackendError> {
    if options.read_ahead {
        directory.read_ahead();
    }
    let on_mlx = || match options.device {
        Some(device) if device != Device::Cpu && device != Device::GPU => {
            Err(BackendError::MlxDevice { device: device.name(), gpu: Device::GPU.name() })
        }
        _ => Ok(()),
    };
    match options.backend {
        Backend::Cpu => open_on_cpu(directory, options),
        Backend::Auto if options.precision == Precision::Exact || !framework::has_gpu() => {
            open_on_cpu(directory, options)
        }
        Backend::Auto | Backend::Mlx => on_mlx().and_then(|()| framework::open(directory, options)),
        Backend::CoreMl => {
            Err(BackendError::Unsuitable { backend: options.backend.name(), form: "an MLX model" })
        }
    }
}

fn open_on_cpu(directory: Arc<MlxDirectory>, options: &RunOptions) -> Result<Running, BackendError> {
    let (mode, activations) = match options.precision {
        Precision::Exact | Precision::Declared => (Mode::Exact, Activations::F32),
        Precision::Fast => (Mode::Fast, Activations::Quantized),
    };
    let mut cpu = CpuOptions::default().with_mode(mode);
    if let Some(threads) = options.threads {
        cpu = cpu.with_threads(threads);
    }
    Ok(Running { model: Box::new(CpuModel::open(directory, cpu)?), activations })
}

/// The MLX framework, in a build that has it.
#[cfg(feature = "mlx")]
mod framework {
    use super::*;
    use q35_backend_mlx::{MlxDevice, MlxModel};
    use q35_quant::FloatType;

    pub fn has_gpu() -> bool {
        MlxDevice::default() == MlxDevice::Gpu
    }

    pub fn open(directory: Arc<MlxDirectory>, options: &RunOptions) -> Result<Running, BackendError> {
        let device = match options.device {
            Some(Device::Cpu) => MlxDevice::Cpu,
            Some(Device::Metal | Device::Cuda) => MlxDevice::Gpu,
            // On the CPU MLX computes in f32.
            None if options.precision == Precision::Exact => MlxDevice::Cpu,
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

/// The MLX framework, in a build without it.
#[cfg(not(feature = "mlx"))]
mod framework {
    use super::*;

    pub fn has_gpu() -> bool {
        false
    }

    pub fn open(_: Arc<MlxDirectory>, _: &RunOptions) -> Result<Running, BackendError> {
        Err(BackendError::NoMlx)
    }
}
