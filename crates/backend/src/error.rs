//! Errors of opening a model with a backend.

use q35_backend_coreml::OpenError;
use q35_backend_cpu::CpuError;

/// A model that a backend cannot open. Causes are boxed: they are large.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// The backend does not run models of this form.
    #[error("the {backend} backend cannot run {form}")]
    Unsuitable {
        /// The requested backend.
        backend: &'static str,
        /// The model's form.
        form: &'static str,
    },
    /// This build has no MLX.
    #[error(
        "this program was built without MLX\n\
         hint: build it with `--features mlx`; off Apple's systems run scripts/mlx/setup_linux.sh first and add \
         `--config .mlx/cargo.toml`"
    )]
    NoMlx,
    /// MLX does not compute on the requested device.
    #[error(
        "MLX cannot compute on {device}\nhint: MLX computes on cpu or {gpu} (also called gpu) on this system"
    )]
    MlxDevice {
        /// The requested device's name.
        device: &'static str,
        /// Name of the system's kind of GPU.
        gpu: &'static str,
    },
    /// Only Apple's Core ML has a compute plan.
    #[error("only Apple's Core ML can say where it would run what, and this is no system of Apple's")]
    NotApple,
    /// MLX refused.
    #[error(transparent)]
    Mlx(Box<dyn std::error::Error + Send + Sync>),
    /// The CPU backend refused.
    #[error(transparent)]
    Cpu(Box<CpuError>),
    /// The packages cannot be run.
    #[error(transparent)]
    CoreMl(Box<OpenError>),
}

impl From<CpuError> for BackendError {
    fn from(cause: CpuError) -> Self {
        Self::Cpu(Box::new(cause))
    }
}

impl From<OpenError> for BackendError {
    fn from(cause: OpenError) -> Self {
        Self::CoreMl(Box::new(cause))
    }
}
