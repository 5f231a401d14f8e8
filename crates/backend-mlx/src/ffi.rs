//! The two things that mlx-rs does not offer and MLX does.

use mlx_rs::Array;

/// Whether this build of MLX has a GPU on this machine. MLX has to be asked before its GPU is named: without one it
/// ends the process.
pub(crate) fn gpu_is_available() -> bool {
    let mut available = false;
    // SAFETY: writes one bool, which lives here.
    let status = unsafe { mlx_sys::mlx_metal_is_available(&raw mut available) };
    status == 0 && available
}

/// A token id in a graph that is built before the id is known.
pub(crate) struct TokenSlot {
    ids: Array,
}

impl TokenSlot {
    pub fn new() -> Self {
        Self { ids: Array::from_slice(&[0u32], &[1]) }
    }

    /// The id as an array of one, to build graphs with. They may not be evaluated before [`Self::fill`].
    pub fn ids(&self) -> &Array {
        &self.ids
    }

    /// Puts the id in. The slot is used up: what was computed with it must not change its meaning.
    pub fn fill(self, id: u32) {
        // SAFETY: an array made from a slice owns evaluated memory for one u32, which no Rust reference points at;
        // MLX reads it when a graph is evaluated, and no graph with this slot has been.
        unsafe {
            let place = mlx_sys::mlx_array_data_uint32(self.ids.as_ptr()).cast_mut();
            assert!(!place.is_null(), "an array made from a slice has memory");
            place.write(id);
        }
    }
}
