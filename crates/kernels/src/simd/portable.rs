//! Portable form on arrays, the definition of every [`Simd`] operation.

use half::f16;

use super::{Kernel, Simd, every_second, word};

#[derive(Clone, Copy)]
pub(super) struct Portable(());

pub(super) fn enter<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Portable(()))
}

type F32 = [f32; 16];
type I32 = [i32; 16];
type U8 = [u8; 64];

#[inline(always)]
fn lanes<T, const N: usize>(value: impl FnMut(usize) -> T) -> [T; N] {
    std::array::from_fn(value)
}

fn quad_sum<T: Copy + std::ops::Add<Output = T>>(lanes: &[T; 16], quad: usize) -> T {
    (lanes[4 * quad] + lanes[4 * quad + 2]) + (lanes[4 * quad + 1] + lanes[4 * quad + 3])
}

fn add_quad_pairs<T: Copy + std::ops::Add<Output = T>>(a: &[T; 16], b: &[T; 16]) -> [T; 16] {
    lanes(|lane| {
        let from = if lane < 8 { a } else { b };
        let at = lane / 4 % 2 * 8 + lane % 4;
        from[at] + from[at + 4]
    })
}

fn word_reader(a: &U8) -> impl Fn(usize) -> u32 + '_ {
    |lane| u32::from_le_bytes(lanes(|byte| a[4 * lane + byte]))
}

impl Simd for Portable {
    type F32 = F32;
    type I32 = I32;
    type U8 = U8;
    type Activations = [i16; 64];
    type Dot = I32;
    type TileCodes = U8;
    type TileActivations = [i16; 4];
    type TileDot = I32;
    type Int4Codes = U8;
    /// Activations of low nibbles, then of high ones.
    type Int4Activations = [[i16; 64]; 2];
    type Int4Dot = I32;

    const TILE_TOKENS: usize = 8;
    const INT4_TILE_TOKENS: usize = 8;
    const TILES_PER_PASS: usize = 2;
    const QUERY_HEADS_PER_PASS: usize = 4;
    const CODE_OFFSET: i32 = 0;

    fn pack_tile_activations(upper: [i8; 4], lower: [i8; 4]) -> [i32; 2] {
        [word(upper), word(lower)]
    }
    fn pack_int4_tile_activations(upper: [i8; 8], lower: [i8; 8]) -> [i32; 4] {
        let [low, high] = [0, 1]
            .map(|from| Self::pack_tile_activations(every_second(upper, from), every_second(lower, from)));
        [low[0], low[1], high[0], high[1]]
    }

    fn splat(self, value: f32) -> F32 {
        [value; 16]
    }
    fn load(self, from: &[f32; 16]) -> F32 {
        *from
    }
    fn store(self, value: F32, to: &mut [f32; 16]) {
        *to = value;
    }
    fn add(self, a: F32, b: F32) -> F32 {
        lanes(|i| a[i] + b[i])
    }
    fn sub(self, a: F32, b: F32) -> F32 {
        lanes(|i| a[i] - b[i])
    }
    fn mul(self, a: F32, b: F32) -> F32 {
        lanes(|i| a[i] * b[i])
    }
    fn div(self, a: F32, b: F32) -> F32 {
        lanes(|i| a[i] / b[i])
    }
    fn fma(self, a: F32, b: F32, c: F32) -> F32 {
        lanes(|i| a[i].mul_add(b[i], c[i]))
    }
    fn max(self, a: F32, b: F32) -> F32 {
        lanes(|i| a[i].max(b[i]))
    }
    fn min(self, a: F32, b: F32) -> F32 {
        lanes(|i| a[i].min(b[i]))
    }
    fn abs(self, a: F32) -> F32 {
        a.map(f32::abs)
    }
    fn round_to_i32(self, a: F32) -> I32 {
        a.map(|value| value.round_ties_even() as i32)
    }
    fn to_f32(self, a: I32) -> F32 {
        a.map(|value| value as f32)
    }
    fn f32_to_bits(self, a: F32) -> I32 {
        a.map(|value| value.to_bits() as i32)
    }
    fn f32_from_bits(self, a: I32) -> F32 {
        a.map(|value| f32::from_bits(value as u32))
    }
    fn exp2i(self, n: I32) -> F32 {
        n.map(|n| f32::from_bits(((n + 127) as u32) << 23))
    }
    fn load_bf16(self, from: &[u8; 32]) -> F32 {
        lanes(|i| f32::from_bits(u32::from(u16::from_le_bytes([from[2 * i], from[2 * i + 1]])) << 16))
    }
    fn load_f16(self, from: &[u8; 32]) -> F32 {
        lanes(|i| f16::from_le_bytes([from[2 * i], from[2 * i + 1]]).to_f32())
    }
    fn round_to_f16(self, a: F32) -> F32 {
        a.map(|value| f16::from_f32(value).to_f32())
    }
    fn reduce_add(self, a: F32) -> f32 {
        (quad_sum(&a, 0) + quad_sum(&a, 1)) + (quad_sum(&a, 2) + quad_sum(&a, 3))
    }
    fn reduce_max(self, a: F32) -> f32 {
        a.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
    fn quad_sums(self, vectors: [F32; 4]) -> F32 {
        lanes(|lane| quad_sum(&vectors[lane % 4], lane / 4))
    }
    fn add_quad_pairs(self, a: F32, b: F32) -> F32 {
        add_quad_pairs(&a, &b)
    }
    fn transpose_quads(self, a: F32) -> F32 {
        lanes(|lane| a[lane % 4 * 4 + lane / 4])
    }
    fn zip_quads(self, a: F32) -> F32 {
        lanes(|lane| a[lane / 8 * 8 + lane % 2 * 4 + lane / 2 % 4])
    }

    fn int_splat(self, value: i32) -> I32 {
        [value; 16]
    }
    fn int_load(self, from: &[i32; 16]) -> I32 {
        *from
    }
    fn int_store(self, value: I32, to: &mut [i32; 16]) {
        *to = value;
    }
    fn int_add(self, a: I32, b: I32) -> I32 {
        lanes(|i| a[i].wrapping_add(b[i]))
    }
    fn int_sub(self, a: I32, b: I32) -> I32 {
        lanes(|i| a[i].wrapping_sub(b[i]))
    }
    fn int_and(self, a: I32, b: I32) -> I32 {
        lanes(|i| a[i] & b[i])
    }
    fn int_shl<const BITS: u32>(self, a: I32) -> I32 {
        a.map(|value| value << BITS)
    }
    fn int_shr<const BITS: u32>(self, a: I32) -> I32 {
        a.map(|value| value >> BITS)
    }
    fn int_quad_sums(self, vectors: [I32; 4]) -> I32 {
        lanes(|lane| quad_sum(&vectors[lane % 4], lane / 4))
    }
    fn int_add_quad_pairs(self, a: I32, b: I32) -> I32 {
        add_quad_pairs(&a, &b)
    }
    fn int_transpose_quads(self, a: I32) -> I32 {
        lanes(|lane| a[lane % 4 * 4 + lane / 4])
    }
    fn int_zip_quads(self, a: I32) -> I32 {
        lanes(|lane| a[lane / 8 * 8 + lane % 2 * 4 + lane / 2 % 4])
    }
    fn swap_pairs(self, a: I32) -> I32 {
        lanes(|lane| a[lane ^ 1])
    }
    fn int_transpose(self, rows: &mut [I32; 16]) {
        let before = *rows;
        *rows = lanes(|column| lanes(|row| before[row][column]));
    }
    fn store_low_bytes(self, a: I32, to: &mut [i8; 16]) {
        *to = a.map(|value| value as i8);
    }

    fn load_bytes(self, from: &[u8; 64]) -> U8 {
        *from
    }
    fn store_bytes(self, value: U8, to: &mut [u8; 64]) {
        *to = value;
    }
    fn low_nibbles(self, a: U8) -> U8 {
        a.map(|byte| byte & 15)
    }
    fn high_nibbles(self, a: U8) -> U8 {
        a.map(|byte| byte >> 4)
    }
    fn flip_sign(self, a: U8) -> U8 {
        a.map(|byte| byte ^ 128)
    }
    fn load_activations(self, upper: &[i8; 64], lower: &[i8; 64]) -> [i16; 64] {
        lanes(|i| 256 * i16::from(upper[i]) + i16::from(lower[i]))
    }
    fn broadcast_activations(self, upper: [i8; 4], lower: [i8; 4]) -> [i16; 64] {
        lanes(|i| 256 * i16::from(upper[i % 4]) + i16::from(lower[i % 4]))
    }
    fn zero_dot(self) -> I32 {
        [0; 16]
    }
    fn add_dot(self, sum: I32, a: U8, x: [i16; 64]) -> I32 {
        lanes(|lane| {
            (4 * lane..4 * lane + 4).fold(sum[lane], |sum, i| sum + i32::from(a[i]) * i32::from(x[i]))
        })
    }
    fn dot_to_i32(self, sum: I32) -> I32 {
        sum
    }
    fn broadcast_tile_activations(self, quad: &[i32; 2]) -> [i16; 4] {
        let [upper, lower] = quad.map(i32::to_le_bytes);
        lanes(|i| 256 * i16::from(upper[i] as i8) + i16::from(lower[i] as i8))
    }
    fn widen_codes(self, codes: U8) -> U8 {
        codes
    }
    fn zero_tile_dot(self) -> I32 {
        self.zero_dot()
    }
    fn add_tile_dot(self, sum: I32, codes: U8, x: [i16; 4]) -> I32 {
        self.add_dot(sum, codes, lanes(|i| x[i % 4]))
    }
    fn tile_dot_to_i32(self, sum: I32) -> I32 {
        sum
    }
    fn pack_int4_activations(self, _x: &mut [[i8; 64]; 4]) {}
    fn load_int4_activations(self, x: &[[i8; 64]; 4]) -> [[i16; 64]; 2] {
        [self.load_activations(&x[0], &x[1]), self.load_activations(&x[2], &x[3])]
    }
    fn broadcast_int4_activations(self, eight: &[i32; 4]) -> [[i16; 64]; 2] {
        [[eight[0], eight[1]], [eight[2], eight[3]]].map(|quad| {
            let quad = self.broadcast_tile_activations(&quad);
            lanes(|i| quad[i % 4])
        })
    }
    fn split_nibbles(self, a: U8) -> U8 {
        a
    }
    fn zero_int4_dot(self) -> I32 {
        self.zero_dot()
    }
    fn add_int4_dot(self, sum: I32, codes: U8, x: [[i16; 64]; 2]) -> I32 {
        let sum = self.add_dot(sum, self.low_nibbles(codes), x[0]);
        self.add_dot(sum, self.high_nibbles(codes), x[1])
    }
    fn int4_dot_to_i32(self, sum: I32) -> I32 {
        sum
    }
    fn as_words(self, a: U8) -> I32 {
        let word = word_reader(&a);
        lanes(|lane| word(lane) as i32)
    }
    fn as_bytes(self, a: I32) -> U8 {
        lanes(|byte| a[byte / 4].to_le_bytes()[byte % 4])
    }
    fn nibble_to_f32<const J: u32>(self, a: I32) -> F32 {
        a.map(|word| (word as u32 >> (4 * J) & 15) as f32)
    }
    fn byte_to_f32<const J: u32>(self, a: I32) -> F32 {
        a.map(|word| (word as u32 >> (8 * J) & 255) as f32)
    }
    fn signed_byte_to_f32<const J: u32>(self, a: I32) -> F32 {
        a.map(|word| (word as u32 >> (8 * J)) as u8 as i8 as f32)
    }
    fn prefetch_l2(self, _of: &[u8], _offset: usize) {}
    fn prefetch_l1(self, _of: &[u8], _offset: usize) {}
}

/// Unpacks a little-endian bit stream of `bits` per code to one code per byte.
#[inline(always)]
pub(crate) fn unpack_bits(bits: usize, stream: &[u8], codes: &mut [u8]) {
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
            let mut unpacked = vec![0; 32];
            unpack_bits(bits, &stream, &mut unpacked);
            assert_eq!(unpacked, codes, "{bits} bits");
        }
    }
}
