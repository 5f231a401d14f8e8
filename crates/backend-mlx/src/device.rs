//! The device on which MLX computes.

use crate::error::MlxBackendError;

/// The device on which MLX computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MlxDevice {
    /// MLX's CPU backend, in f32.
    Cpu,
    /// The GPU, through Metal or CUDA, in the float type of the checkpoint's scales.
    Gpu,
}

/// The interface through which this build of MLX uses a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GpuApi {
    /// Apple's GPUs.
    Metal,
    /// NVIDIA's GPUs.
    Cuda,
}

impl GpuApi {
    /// Name for display.
    pub fn name(self) -> &'static str {
        match self {
            Self::Metal => "Metal",
            Self::Cuda => "CUDA",
        }
    }

    /// The interface to this machine's GPU; `None` if MLX has no usable GPU. To be checked before MLX's GPU device is
    /// used: MLX ends the process if there is none.
    pub fn available() -> Option<Self> {
        let (mut metal, mut cuda) = (false, false);
        // SAFETY: each call writes one bool, a local variable.
        let status = unsafe {
            (mlx_sys::mlx_metal_is_available(&raw mut metal), mlx_sys::mlx_cuda_is_available(&raw mut cuda))
        };
        match (status, metal, cuda) {
            ((0, _), true, _) => Some(Self::Metal),
            ((_, 0), _, true) => Some(Self::Cuda),
            _ => None,
        }
    }
}

impl Default for MlxDevice {
    /// The GPU if this build of MLX has a usable one, else the CPU.
    fn default() -> Self {
        if GpuApi::available().is_some() { Self::Gpu } else { Self::Cpu }
    }
}

impl MlxDevice {
    /// The GPU interface of this device, `None` for the CPU.
    ///
    /// # Errors
    /// [`MlxBackendError::NoGpu`] if the device is the GPU and there is none.
    pub(crate) fn gpu_api(self) -> Result<Option<GpuApi>, MlxBackendError> {
        match self {
            Self::Cpu => Ok(None),
            Self::Gpu => GpuApi::available().ok_or(MlxBackendError::NoGpu).map(Some),
        }
    }
}
