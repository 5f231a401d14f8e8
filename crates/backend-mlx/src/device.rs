//! The device on which MLX computes.

/// The device on which MLX computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MlxDevice {
    /// MLX's CPU backend, in f32.
    Cpu,
    /// Apple's GPU through Metal, in the float type of the checkpoint's scales.
    Gpu,
}

impl Default for MlxDevice {
    /// The GPU if this build of MLX has a usable one, else the CPU.
    fn default() -> Self {
        if gpu_is_available() { Self::Gpu } else { Self::Cpu }
    }
}

/// True if this build of MLX has a GPU on this machine. To be called before MLX's GPU device is used: MLX ends the
/// process if there is none.
pub(crate) fn gpu_is_available() -> bool {
    let mut available = false;
    // SAFETY: writes one bool, a local variable.
    let status = unsafe { mlx_sys::mlx_metal_is_available(&raw mut available) };
    status == 0 && available
}
