//! A token id that a graph is built with before it is known.

use mlx_rs::Array;

/// A token id in a graph that is built before the id is known.
pub(crate) struct TokenSlot {
    ids: Array,
}

impl TokenSlot {
    pub fn new() -> Self {
        Self { ids: Array::from_slice(&[0u32], &[1]) }
    }

    /// The id as an array [1], u32, to build graphs with. They must not be evaluated before [`Self::fill`].
    pub fn ids(&self) -> &Array {
        &self.ids
    }

    /// Stores the id. Consumes the slot, because arrays computed from it must not change their meaning afterwards.
    pub fn fill(self, id: u32) {
        // SAFETY: an array made from a slice owns evaluated memory for one u32 to which no Rust reference exists; MLX
        // reads it when a graph is evaluated, and no graph with this slot has been evaluated yet.
        unsafe {
            let data = mlx_sys::mlx_array_data_uint32(self.ids.as_ptr()).cast_mut();
            assert!(!data.is_null(), "an array made from a slice has memory");
            data.write(id);
        }
    }
}
