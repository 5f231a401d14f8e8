//! Packing of codes, one per byte, into a bit stream, and back. Eight codes are handled as one `u64`: three steps merge
//! (or split) neighbouring fields, so that no code is processed alone.

/// Mask of the lowest `width` bits of every field of `lane` bits.
const fn field_mask(lane: u32, width: u32) -> u64 {
    let mut mask = 0;
    let mut start = 0;
    while start < 64 {
        mask |= ((1u64 << width) - 1) << start;
        start += lane;
    }
    mask
}

/// Moves the second of every two `width`-bit fields, which begin `lane` bits apart, next to the first.
#[inline(always)]
const fn join(x: u64, lane: u32, width: u32) -> u64 {
    let first = field_mask(2 * lane, width);
    (x & first) | (x & first << lane) >> (lane - width)
}

/// Inverse of [`join`].
#[inline(always)]
const fn separate(x: u64, lane: u32, width: u32) -> u64 {
    let first = field_mask(2 * lane, width);
    (x & first) | (x & first << width) << (lane - width)
}

/// Packs eight codes of `BITS` bits into `8 * BITS` bits, the first code lowest.
#[inline(always)]
fn merge<const BITS: u32>(codes: [u8; 8]) -> u64 {
    let x = u64::from_le_bytes(codes);
    if BITS == 8 { x } else { join(join(join(x, 8, BITS), 16, 2 * BITS), 32, 4 * BITS) }
}

/// Inverse of [`merge`].
#[inline(always)]
fn split<const BITS: u32>(x: u64) -> [u8; 8] {
    let x = if BITS == 8 { x } else { separate(separate(separate(x, 32, 4 * BITS), 16, 2 * BITS), 8, BITS) };
    x.to_le_bytes()
}

#[inline(always)]
pub(crate) fn pack<const BITS: u32>(codes: &[u8], out: &mut [u8]) {
    let (eights, _) = codes.as_chunks::<8>();
    for (codes, bytes) in eights.iter().zip(out.chunks_exact_mut(BITS as usize)) {
        bytes.copy_from_slice(&merge::<BITS>(*codes).to_le_bytes()[..BITS as usize]);
    }
}

#[inline(always)]
pub(crate) fn unpack<const BITS: u32>(packed: &[u8], out: &mut [u8]) {
    let (eights, _) = out.as_chunks_mut::<8>();
    for (codes, bytes) in eights.iter_mut().zip(packed.chunks_exact(BITS as usize)) {
        let mut stream = [0; 8];
        stream[..BITS as usize].copy_from_slice(bytes);
        *codes = split::<BITS>(u64::from_le_bytes(stream));
    }
}

/// Dispatches to `$function::<BITS>` for a number of bits at run time.
macro_rules! for_bits {
    ($bits:expr, $function:ident $(::<$($generic:ty),+>)?, ($($argument:expr),* $(,)?)) => {
        match $bits {
            2 => $function::<$($($generic,)+)? 2>($($argument),*),
            3 => $function::<$($($generic,)+)? 3>($($argument),*),
            4 => $function::<$($($generic,)+)? 4>($($argument),*),
            5 => $function::<$($($generic,)+)? 5>($($argument),*),
            6 => $function::<$($($generic,)+)? 6>($($argument),*),
            8 => $function::<$($($generic,)+)? 8>($($argument),*),
            other => unreachable!("AffineSpec admits no {other} bits"),
        }
    };
}
pub(crate) use for_bits;

/// Packs `codes`, one per byte and each below `2^bits`, into MLX's bit stream, the first code lowest.
///
/// # Panics
/// If the length of `codes` is not a multiple of 8, the length of `out` not `codes.len() * bits / 8`, or `bits` not in
/// [`super::AffineSpec::BITS`].
pub fn pack_codes(bits: u32, codes: &[u8], out: &mut [u8]) {
    assert!(codes.len().is_multiple_of(8) && out.len() == codes.len() / 8 * bits as usize);
    for_bits!(bits, pack, (codes, out));
}

/// Unpacks the output of [`pack_codes`].
///
/// # Panics
/// As [`pack_codes`], with the lengths exchanged.
pub fn unpack_codes(bits: u32, packed: &[u8], out: &mut [u8]) {
    assert!(out.len().is_multiple_of(8) && packed.len() == out.len() / 8 * bits as usize);
    for_bits!(bits, unpack, (packed, out));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn code_i_sits_at_bit_i_times_bits(bits in prop::sample::select(super::super::AffineSpec::BITS.to_vec()), seed in prop::collection::vec(any::<u8>(), 64)) {
            let codes: Vec<u8> = seed.iter().map(|code| code & ((1u32 << bits) - 1) as u8).collect();
            let mut packed = vec![0; 8 * bits as usize];
            pack_codes(bits, &codes, &mut packed);
            let bit = |at: usize| packed[at / 8] >> (at % 8) & 1;
            for (i, code) in codes.iter().enumerate() {
                let found = (0..bits as usize).map(|b| bit(i * bits as usize + b) << b).sum::<u8>();
                prop_assert_eq!(found, *code);
            }
            let mut back = vec![0xaa; 64];
            unpack_codes(bits, &packed, &mut back);
            prop_assert_eq!(back, codes);
        }
    }
}
