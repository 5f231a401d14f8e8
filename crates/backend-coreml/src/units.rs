//! The compute units that Core ML may use, and its plan of which operation runs on which unit.

/// The compute units that Core ML may use. Only Apple's Core ML has several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum ComputeUnits {
    /// All units of the machine
    All,
    /// The processor
    #[cfg_attr(feature = "clap", value(name = "cpu"))]
    CpuOnly,
    /// Processor and GPU
    CpuAndGpu,
    /// Processor and Neural Engine
    #[default]
    #[cfg_attr(feature = "clap", value(name = "cpu-and-ne"))]
    CpuAndNeuralEngine,
}

impl ComputeUnits {
    /// The units' name for display.
    pub fn name(self) -> &'static str {
        match self {
            Self::All => "all units",
            Self::CpuOnly => "CPU",
            Self::CpuAndGpu => "CPU and GPU",
            Self::CpuAndNeuralEngine => "CPU and Neural Engine",
        }
    }
}

/// Core ML's plan for one operation of a package.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedOperation {
    /// Name of the function that holds the operation.
    pub function: String,
    /// The operator, "ios18.linear".
    pub operator: String,
    /// Name of the first output.
    pub output: String,
    /// The unit that Core ML prefers: "CPU", "GPU", "Neural Engine"; `None` for constants.
    pub preferred: Option<&'static str>,
    /// Share of the function's cost by Core ML's estimate, where it makes one.
    pub cost: Option<f64>,
}
