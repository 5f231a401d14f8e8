//! Unpacking of codes of 2, 3, 5 or 6 bits: a little-endian bit stream, eight codes in as many bytes as a code has bits.

use crate::simd::{Simd, portable};

pub(crate) use portable::unpack_bits as unpack_scalar;

/// Unpacks `stream` to one code per byte; the number of codes is a multiple of eight.
#[inline(always)]
pub(crate) fn unpack<S: Simd>(simd: S, bits: usize, stream: &[u8], codes: &mut [u8]) {
    match bits {
        2 => unpack_bits::<S, 2>(simd, stream, codes),
        3 => unpack_bits::<S, 3>(simd, stream, codes),
        5 => unpack_bits::<S, 5>(simd, stream, codes),
        _ => unpack_bits::<S, 6>(simd, stream, codes),
    }
}

#[inline(always)]
fn unpack_bits<S: Simd, const BITS: u32>(simd: S, stream: &[u8], codes: &mut [u8]) {
    let (vectors, rest) = codes.as_chunks_mut::<64>();
    let step = 8 * BITS as usize;
    let done = step * vectors.len();
    for (packed, codes) in stream.chunks_exact(step).zip(vectors) {
        simd.store_bytes(simd.unpack::<BITS>(packed), codes);
    }
    unpack_scalar(BITS as usize, &stream[done..], rest);
}
