//! Codes of 2, 3, 5 or 6 bits: a little-endian bit stream, eight codes in as many bytes as a code has bits.

use crate::simd::Simd;

/// Takes `stream` apart to one code per byte; `codes` are a multiple of eight.
#[inline(always)]
pub(crate) fn unpack<S: Simd>(simd: S, bits: usize, stream: &[u8], codes: &mut [u8]) {
    match bits {
        2 => whole::<S, 2>(simd, stream, codes),
        3 => whole::<S, 3>(simd, stream, codes),
        5 => whole::<S, 5>(simd, stream, codes),
        _ => whole::<S, 6>(simd, stream, codes),
    }
}

#[inline(always)]
fn whole<S: Simd, const BITS: u32>(simd: S, stream: &[u8], codes: &mut [u8]) {
    let (vectors, rest) = codes.as_chunks_mut::<64>();
    let step = 8 * BITS as usize;
    let done = step * vectors.len();
    for (packed, codes) in stream.chunks_exact(step).zip(vectors) {
        simd.store_bytes(simd.unpack::<BITS>(packed), codes);
    }
    unpack_plain(BITS as usize, &stream[done..], rest);
}

/// [`unpack`] by plain arithmetic.
#[inline(always)]
pub(crate) fn unpack_plain(bits: usize, stream: &[u8], codes: &mut [u8]) {
    let mask = (1u64 << bits) - 1;
    for (packed, codes) in stream.chunks(bits).zip(codes.chunks_mut(8)) {
        let mut word = [0; 8];
        word[..packed.len()].copy_from_slice(packed);
        let word = u64::from_le_bytes(word);
        for (at, code) in codes.iter_mut().enumerate() {
            *code = (word >> (at * bits) & mask) as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bit_stream_is_read_from_the_lowest_bit_on() {
        for bits in [2, 3, 5, 6] {
            let codes: Vec<u8> = (0..32).map(|i| (i * 7 + 3) as u8 & ((1 << bits) - 1)).collect();
            let mut stream = vec![0u8; 32 * bits / 8];
            for (i, &code) in codes.iter().enumerate() {
                for bit in 0..bits {
                    stream[(i * bits + bit) / 8] |= (code >> bit & 1) << ((i * bits + bit) % 8);
                }
            }
            let mut read = vec![0; 32];
            unpack_plain(bits, &stream, &mut read);
            assert_eq!(read, codes, "{bits} bits");
        }
    }
}
