//! Where the reference computes.

use candle_core::utils::{cuda_is_available, metal_is_available};

use crate::sequence::in_words;

/// A device that candle was built for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The processor; with the feature `accelerate` through Apple's BLAS.
    #[default]
    Cpu,
    /// Apple's GPU; needs the feature `candle-metal`.
    Metal,
    /// An NVIDIA GPU, the first; needs the feature `cuda`.
    Cuda,
}

/// Why a device cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// candle was built without it.
    #[error(
        "cannot compute on {device}: this build has no support for it\nhint: build with the cargo feature `{feature}`"
    )]
    NotBuilt {
        /// Which.
        device: &'static str,
        /// What turns it on, in this crate and in those that run models.
        feature: &'static str,
    },
    /// There is none, or its driver refuses.
    #[error("cannot compute on {device}: {message}")]
    Unusable {
        /// Which.
        device: &'static str,
        /// candle's words.
        message: String,
    },
}

impl Device {
    /// candle's device.
    ///
    /// # Errors
    /// This build has no support for it, or there is none.
    pub fn open(self) -> Result<candle_core::Device, DeviceError> {
        let (built, feature, opened) = match self {
            Self::Cpu => return Ok(candle_core::Device::Cpu),
            Self::Metal => (metal_is_available(), "candle-metal", candle_core::Device::new_metal(0)),
            Self::Cuda => (cuda_is_available(), "cuda", candle_core::Device::new_cuda(0)),
        };
        let device = self.name();
        if !built {
            return Err(DeviceError::NotBuilt { device, feature });
        }
        opened.map_err(|error| DeviceError::Unusable { device, message: in_words(error) })
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
