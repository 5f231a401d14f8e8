//! The units of a machine that Core ML may use, and means to use.

/// Which units of a machine Core ML may use. Only Apple's Core ML has several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ComputeUnits {
    /// All that there are.
    All,
    /// The processor.
    CpuOnly,
    /// Processor and GPU.
    CpuAndGpu,
    /// Processor and Neural Engine.
    #[default]
    CpuAndNeuralEngine,
}

impl ComputeUnits {
    /// Its name, for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::All => "all units",
            Self::CpuOnly => "CPU",
            Self::CpuAndGpu => "CPU and GPU",
            Self::CpuAndNeuralEngine => "CPU and Neural Engine",
        }
    }
}

/// What Core ML means to do with one operation of a package.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedOperation {
    /// The function that it belongs to.
    pub function: String,
    /// The operator, "ios18.linear".
    pub operator: String,
    /// Its first output.
    pub output: String,
    /// The unit that Core ML prefers: "CPU", "GPU", "Neural Engine"; nothing for constants.
    pub preferred: Option<&'static str>,
    /// Its share of the function's cost by Core ML's estimate, where it makes one.
    pub cost: Option<f64>,
}
