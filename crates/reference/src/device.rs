//! The devices on which candle computes.

use candle_core::utils::{cuda_is_available, metal_is_available};
use q35_inference::Device;

use crate::error::message;

/// A device that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// candle was built without support for it.
    #[error(
        "cannot compute on {device}: this build has no support for it\nhint: build with the cargo feature `{feature}`"
    )]
    NotBuilt {
        /// The device's name.
        device: &'static str,
        /// The feature that adds it, in this crate and in those that run models.
        feature: &'static str,
    },
    /// The machine has no such device, or its driver refuses.
    #[error("cannot compute on {device}: {message}")]
    Unusable {
        /// The device's name.
        device: &'static str,
        /// candle's message.
        message: String,
    },
}

/// Opens candle's device: the processor (with the feature `accelerate` through Apple's BLAS), Apple's GPU (feature
/// `candle-metal`), or the first NVIDIA GPU (feature `cuda`).
///
/// # Errors
/// This build has no support for it, or the machine has none.
pub fn open_device(device: Device) -> Result<candle_core::Device, DeviceError> {
    let (built, feature, opened) = match device {
        Device::Cpu => return Ok(candle_core::Device::Cpu),
        Device::Metal => (metal_is_available(), "candle-metal", candle_core::Device::new_metal(0)),
        Device::Cuda => (cuda_is_available(), "cuda", candle_core::Device::new_cuda(0)),
    };
    let device = device.name();
    if !built {
        return Err(DeviceError::NotBuilt { device, feature });
    }
    opened.map_err(|error| DeviceError::Unusable { device, message: message(error) })
}
