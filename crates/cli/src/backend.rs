//! Who computes: the options that all commands which run models share.

use std::path::PathBuf;

use anyhow::bail;
use q35_backend::{Backend, ComputeUnits, Device, RunOptions};
use q35_reference::Device as ReferenceDevice;

/// Who computes what. What does not apply to a backend is not looked at.
#[derive(Clone, Copy, Debug, clap::Args)]
#[command(next_help_heading = "Backend")]
pub struct BackendArgs {
    /// Who runs a converted model [default: auto to chat, cpu to measure]
    #[arg(long, value_enum)]
    pub backend: Option<BackendName>,

    /// Where MLX computes, or the float reference [default: MLX takes the GPU where there is one]
    #[arg(long, value_enum, value_name = "DEVICE")]
    pub device: Option<DeviceName>,

    /// Which units Apple's Core ML may use
    #[arg(long, value_enum, default_value_t, value_name = "UNITS")]
    pub compute_units: UnitsName,
}

/// Who computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum BackendName {
    /// The fastest that this build and machine have
    Auto,
    /// This program's own code: the CPU for MLX models, the evaluator for Core ML packages
    Cpu,
    /// MLX, for MLX models (a build with the feature `mlx`)
    Mlx,
    /// Core ML, for Core ML packages: Apple's on Apple's systems, the evaluator elsewhere
    Coreml,
}

/// A device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum DeviceName {
    /// The processor
    Cpu,
    /// Apple's GPU, for the float model a build with the feature `candle-metal`
    #[value(alias = "gpu")]
    Metal,
    /// An NVIDIA GPU, for the float model (a build with the feature `cuda`)
    Cuda,
}

/// Units of a Mac that Core ML may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum UnitsName {
    /// All that there are
    All,
    /// The processor
    Cpu,
    /// Processor and GPU
    CpuAndGpu,
    /// Processor and Neural Engine
    #[default]
    CpuAndNe,
}

impl From<BackendName> for Backend {
    fn from(name: BackendName) -> Self {
        match name {
            BackendName::Auto => Self::Auto,
            BackendName::Cpu => Self::Cpu,
            BackendName::Mlx => Self::Mlx,
            BackendName::Coreml => Self::CoreMl,
        }
    }
}

impl From<UnitsName> for ComputeUnits {
    fn from(name: UnitsName) -> Self {
        match name {
            UnitsName::All => Self::All,
            UnitsName::Cpu => Self::CpuOnly,
            UnitsName::CpuAndGpu => Self::CpuAndGpu,
            UnitsName::CpuAndNe => Self::CpuAndNeuralEngine,
        }
    }
}

impl From<DeviceName> for ReferenceDevice {
    fn from(name: DeviceName) -> Self {
        match name {
            DeviceName::Cpu => Self::Cpu,
            DeviceName::Metal => Self::Metal,
            DeviceName::Cuda => Self::Cuda,
        }
    }
}

impl BackendArgs {
    /// Everything that a backend is told, `unsaid` being who computes if nothing is given.
    ///
    /// # Errors
    /// MLX is to compute where it cannot in any build of this program.
    pub fn options(
        &self,
        unsaid: Backend,
        threads: Option<usize>,
        exact: bool,
    ) -> anyhow::Result<RunOptions> {
        let backend = self.backend.map_or(unsaid, Backend::from);
        let device = match self.device {
            Some(DeviceName::Cpu) => Some(Device::Cpu),
            Some(DeviceName::Metal) => Some(Device::Gpu),
            Some(DeviceName::Cuda) if backend == Backend::Mlx => {
                bail!("--device cuda: MLX computes on cpu or metal here")
            }
            Some(DeviceName::Cuda) | None => None,
        };
        let compute_units = self.compute_units.into();
        Ok(RunOptions { backend, device, compute_units, threads, exact, compiled_cache: compiled_cache() })
    }

    /// Where the float reference computes.
    pub fn reference_device(&self) -> ReferenceDevice {
        self.device.map_or(ReferenceDevice::Cpu, ReferenceDevice::from)
    }
}

/// Where packages compiled by Apple's Core ML are kept: the system's place for what can be made again.
pub fn compiled_cache() -> Option<PathBuf> {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty())?;
    Some(PathBuf::from(home).join("Library/Caches/q35/coreml"))
}
