//! Where the reference computes.

/// A device that candle was built for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The processor; with the feature `accelerate` through Apple's BLAS.
    #[default]
    Cpu,
    /// Apple's GPU; needs the feature `metal`.
    Metal,
    /// An NVIDIA GPU, the first; needs the feature `cuda`.
    Cuda,
}

impl Device {
    /// candle's device.
    ///
    /// # Errors
    /// This build has no support for it, or there is none.
    pub fn open(self) -> candle_core::Result<candle_core::Device> {
        match self {
            Self::Cpu => Ok(candle_core::Device::Cpu),
            Self::Metal => candle_core::Device::new_metal(0),
            Self::Cuda => candle_core::Device::new_cuda(0),
        }
    }

    /// The name used on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Metal => "metal",
            Self::Cuda => "cuda",
        }
    }
}
