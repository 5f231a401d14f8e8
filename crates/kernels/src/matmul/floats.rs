//! Stored floats: scales, biases and unquantized weights.

use half::{bf16, f16};
use q35_quant::FloatType;

use crate::simd::Simd;

/// Floats as little-endian bytes of any alignment.
#[derive(Clone, Copy, Debug)]
pub struct Floats<'a> {
    dtype: FloatType,
    bytes: &'a [u8],
}

impl<'a> Floats<'a> {
    /// The floats in `bytes`; an incomplete last element is ignored.
    pub fn new(dtype: FloatType, bytes: &'a [u8]) -> Self {
        Self { dtype, bytes: &bytes[..bytes.len() / dtype.size() * dtype.size()] }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.dtype.size()
    }

    /// True if there is no element.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Size of the bytes.
    pub(crate) fn size_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Bytes of one element.
    pub(crate) fn element_bytes(&self) -> usize {
        self.dtype.size()
    }

    /// Element `index` as f32.
    ///
    /// # Panics
    /// If `index` is out of bounds.
    pub fn get(&self, index: usize) -> f32 {
        let size = self.dtype.size();
        let bytes = &self.bytes[index * size..][..size];
        match self.dtype {
            FloatType::F32 => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            FloatType::F16 => f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
            FloatType::Bf16 => bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
        }
    }

    /// Copies elements `from..from + to.len()` to `to`.
    ///
    /// # Panics
    /// If the range is out of bounds.
    pub fn read(&self, from: usize, to: &mut [f32]) {
        for (offset, value) in to.iter_mut().enumerate() {
            *value = self.get(from + offset);
        }
    }

    /// Prefetches elements `from..from + count`, which may be out of bounds, into L2.
    #[inline(always)]
    pub(crate) fn prefetch<S: Simd>(&self, simd: S, from: usize, count: usize) {
        let size = self.dtype.size();
        for line in (0..count * size).step_by(64) {
            simd.prefetch_l2(self.bytes, from * size + line);
        }
    }

    /// Copies elements `from..from + count` to vectors, the last one zero-padded.
    #[inline(always)]
    pub(crate) fn read_vectors<S: Simd>(&self, simd: S, from: usize, count: usize, to: &mut [[f32; 16]]) {
        let size = self.dtype.size();
        let bytes = &self.bytes[from * size..][..count * size];
        let (whole, last) = to.split_at_mut(count / 16);
        match self.dtype {
            FloatType::F32 => {
                for (bytes, to) in bytes.as_chunks::<64>().0.iter().zip(whole) {
                    simd.store(simd.f32_from_bits(simd.as_words(simd.load_bytes(bytes))), to);
                }
            }
            FloatType::F16 => {
                for (bytes, to) in bytes.as_chunks::<32>().0.iter().zip(whole) {
                    simd.store(simd.load_f16(bytes), to);
                }
            }
            FloatType::Bf16 => {
                for (bytes, to) in bytes.as_chunks::<32>().0.iter().zip(whole) {
                    simd.store(simd.load_bf16(bytes), to);
                }
            }
        }
        if let Some(last) = last.first_mut() {
            let done = count / 16 * 16;
            simd.store(self.lanes(simd, from + done, count - done), last);
        }
    }

    /// Elements `from..from + 16`, with zeros from `from + count` on.
    #[inline(always)]
    pub(crate) fn lanes<S: Simd>(&self, simd: S, from: usize, count: usize) -> S::F32 {
        let start = from * self.dtype.size();
        match self.dtype {
            FloatType::F32 if count >= 16 => {
                simd.f32_from_bits(simd.as_words(simd.load_bytes(full(self.bytes, start))))
            }
            FloatType::F32 => {
                simd.f32_from_bits(simd.as_words(simd.load_bytes(&padded(self.bytes, start, count * 4))))
            }
            FloatType::F16 if count >= 16 => simd.load_f16(full(self.bytes, start)),
            FloatType::F16 => simd.load_f16(&padded(self.bytes, start, count * 2)),
            FloatType::Bf16 if count >= 16 => simd.load_bf16(full(self.bytes, start)),
            FloatType::Bf16 => simd.load_bf16(&padded(self.bytes, start, count * 2)),
        }
    }
}

/// Bytes `start..start + N`.
#[inline(always)]
fn full<const N: usize>(bytes: &[u8], start: usize) -> &[u8; N] {
    bytes[start..].first_chunk().expect("a full vector of elements")
}

/// Bytes `start..start + count`, zero-padded.
#[inline(always)]
fn padded<const N: usize>(bytes: &[u8], start: usize, count: usize) -> [u8; N] {
    let mut out = [0; N];
    let count = count.min(N);
    out[..count].copy_from_slice(&bytes[start..start + count]);
    out
}
