//! Cache-line aligned buffers: a 64-byte vector across two lines costs two loads.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use bytemuck::{Pod, Zeroable};

#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Line([u8; 64]);

/// A growing buffer of numbers or arrays of numbers, aligned to a cache line and reused from call to call.
#[derive(Debug)]
pub(crate) struct Aligned<T> {
    lines: Vec<Line>,
    length: usize,
    of: PhantomData<T>,
}

impl<T> Default for Aligned<T> {
    fn default() -> Self {
        Self { lines: Vec::new(), length: 0, of: PhantomData }
    }
}

impl<T: Pod> Aligned<T> {
    /// Changes the length without clearing: new elements hold earlier contents of the buffer, or zeros.
    pub fn resize(&mut self, length: usize) {
        let lines = (length * size_of::<T>()).div_ceil(64);
        if lines > self.lines.len() {
            self.lines.resize(lines, Line([0; 64]));
        }
        self.length = length;
    }

    /// Allocated bytes.
    pub fn size_bytes(&self) -> usize {
        64 * self.lines.capacity()
    }
}

impl<T: Pod> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        let bytes: &[u8] = bytemuck::cast_slice(&self.lines);
        bytemuck::cast_slice(&bytes[..self.length * size_of::<T>()])
    }
}

impl<T: Pod> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut self.lines);
        bytemuck::cast_slice_mut(&mut bytes[..self.length * size_of::<T>()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_keep_their_contents() {
        let mut buffer = Aligned::<f32>::default();
        assert!(buffer.is_empty());
        for length in [1, 17, 16, 1000] {
            buffer.resize(length);
            assert_eq!((buffer.len(), buffer.as_ptr() as usize % 64), (length, 0));
            assert!(buffer.size_bytes() >= 4 * length);
            buffer[0] = 3.0;
        }
        assert_eq!(buffer[..2], [3.0, 0.0]);
        let mut arrays = Aligned::<[i8; 64]>::default();
        arrays.resize(3);
        assert_eq!(*arrays, [[0; 64]; 3]);
    }
}
