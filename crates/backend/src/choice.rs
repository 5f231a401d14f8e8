//! What can be chosen.

use std::path::PathBuf;

use q35_backend_coreml::ComputeUnits;

/// Who computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// The fastest that this build and machine have: MLX on Apple's GPU and Core ML on Apple's systems, this project's
    /// own code elsewhere, and wherever exact arithmetic is asked for.
    #[default]
    Auto,
    /// This project's own code, the same on every system: MLX directories on the CPU, Core ML packages in the evaluator.
    Cpu,
    /// MLX, on MLX directories.
    Mlx,
    /// Core ML, on Core ML packages: Apple's on Apple's systems, the evaluator elsewhere.
    CoreMl,
}

impl Backend {
    /// Its name, for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "automatic",
            Self::Cpu => "CPU",
            Self::Mlx => "MLX",
            Self::CoreMl => "Core ML",
        }
    }
}

/// Where MLX computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// MLX's CPU backend.
    Cpu,
    /// Apple's GPU.
    Gpu,
}

/// How a model is to be run. What does not apply to a backend is not looked at.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// Who computes.
    pub backend: Backend,
    /// Where MLX computes; the GPU where there is one if nothing is said.
    pub device: Option<Device>,
    /// Which units Core ML may use.
    pub compute_units: ComputeUnits,
    /// Threads of the CPU backend; as many as there are processors if nothing is said.
    pub threads: Option<usize>,
    /// f32 activations throughout.
    pub exact: bool,
    /// Where packages compiled by Core ML are kept; if nothing is said each opening compiles anew.
    pub compiled_cache: Option<PathBuf>,
}
