//! Buffers that begin where a cache line does: a vector of 64 bytes that lies across two lines is two loads.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use bytemuck::{Pod, Zeroable};

#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Line([u8; 64]);

/// Numbers, or arrays of numbers, in whole cache lines. Kept from call to call, it only grows.
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
    /// Makes room for `length` elements. What was there stays; what is new holds anything that was here before, or zeros.
    pub fn resize(&mut self, length: usize) {
        let lines = (length * size_of::<T>()).div_ceil(64);
        if lines > self.lines.len() {
            self.lines.resize(lines, Line([0; 64]));
        }
        self.length = length;
    }

    /// Bytes held.
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
    fn buffers_begin_at_a_line_and_keep_what_they_hold() {
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
