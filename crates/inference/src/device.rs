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
    /// Apple's GPU; `gpu` on Apple's systems. For the float model a build with the feature `candle-metal`
    #[cfg_attr(all(feature = "clap", target_vendor = "apple"), value(alias = "gpu"))]
    Metal,
    /// An NVIDIA GPU; `gpu` on other systems. For the float model a build with the feature `cuda`
    #[cfg_attr(all(feature = "clap", not(target_vendor = "apple")), value(alias = "gpu"))]
    Cuda,
}

impl Device {
    /// The system's kind of GPU: [`Device::Metal`] on Apple's systems, [`Device::Cuda`] elsewhere.
    pub const GPU: Self = if cfg!(target_vendor = "apple") { Self::Metal } else { Self::Cuda };

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
