//! Run options: backend, device, precision.

use std::path::PathBuf;

use q35_backend_coreml::ComputeUnits;
use q35_inference::Device;

/// An implementation that executes a converted model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum Backend {
    /// The fastest that this build and machine have: MLX on Apple's GPU and Core ML on Apple's systems, q35's own code
    /// elsewhere and wherever exact arithmetic is requested
    #[default]
    Auto,
    /// q35's own code, the same on every system: the CPU backend for MLX models, the evaluator for Core ML packages
    Cpu,
    /// MLX, for MLX models (a build with the feature `mlx`)
    Mlx,
    /// Core ML, for Core ML packages: Apple's on Apple's systems, the evaluator elsewhere
    #[cfg_attr(feature = "clap", value(name = "coreml"))]
    CoreMl,
}

impl Backend {
    /// The backend's name for display.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "automatic",
            Self::Cpu => "CPU",
            Self::Mlx => "MLX",
            Self::CoreMl => "Core ML",
        }
    }
}

/// The arithmetic requested for activations. [`Activations`](crate::Activations) is the arithmetic found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum Precision {
    /// f32 throughout
    Exact,
    /// The arithmetic that the artefact was written for: f16 where a Core ML package declares it, for MLX models f32 on
    /// a CPU and the type of the scales on a GPU
    Declared,
    /// The backend's fastest: quantized activations on the CPU, otherwise as declared
    #[default]
    Fast,
}

/// Options for running a model. A backend ignores the options that do not concern it.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// The backend.
    pub backend: Backend,
    /// The device of MLX or of the float reference. `None`: MLX uses the GPU if there is one, the float reference the
    /// CPU.
    pub device: Option<Device>,
    /// The compute units that Apple's Core ML may use.
    pub compute_units: ComputeUnits,
    /// Threads of the CPU backend. `None`: one per processor.
    pub threads: Option<usize>,
    /// The arithmetic of activations.
    pub precision: Precision,
    /// Reads every page of an MLX model's weights while opening it, so that the first tokens do not wait for the disk.
    pub read_ahead: bool,
    /// Directory that caches packages compiled by Core ML. `None`: every opening compiles.
    pub compiled_cache: Option<PathBuf>,
}

impl RunOptions {
    /// Sets the backend.
    pub fn with_backend(mut self, backend: Backend) -> Self {
        self.backend = backend;
        self
    }

    /// Sets the precision.
    pub fn with_precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }
}
