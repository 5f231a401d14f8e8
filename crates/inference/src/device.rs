//! The device on which a backend computes.

use std::fmt;

/// A device on which the float reference or MLX computes. A backend that cannot use a device returns an error when it
/// is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum Device {
    /// The processor
    #[default]
    Cpu,
    /// Apple's GPU; for the float model a build with the feature `candle-metal`
    #[cfg_attr(feature = "clap", value(alias = "gpu"))]
    Metal,
    /// An NVIDIA GPU, for the float model (a build with the feature `cuda`)
    Cuda,
}

impl Device {
    /// The device's name on the command line and in manifests.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Metal => "metal",
            Self::Cuda => "cuda",
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
