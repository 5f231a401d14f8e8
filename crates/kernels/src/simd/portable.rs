//! Plain Rust on arrays: what every other instruction set is defined by.

use half::f16;

use super::{Kernel, Simd, every_second, word};

#[derive(Clone, Copy)]
pub(super) struct Portable(());

pub(super) fn enter<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Portable(()))
}

type F = [f32; 16];
type I = [i32; 16];
type B = [u8; 64];

#[inline(always)]
fn lanes<T, const N: usize>(of: impl FnMut(usize) -> T) -> [T; N] {
    std::array::from_fn(of)
}

fn quad_sum<T: Copy + std::ops::Add<Output = T>>(of: &[T; 16], quad: usize) -> T {
    (of[4 * quad] + of[4 * quad + 2]) + (of[4 * quad + 1] + of[4 * quad + 3])
}

fn pair_quads<T: Copy + std::ops::Add<Output = T>>(a: &[T; 16], b: &[T; 16]) -> [T; 16] {
    lanes(|lane| {
        let from = if lane < 8 { a } else { b };
        let at = lane / 4 % 2 * 8 + lane % 4;
        from[at] + from[at + 4]
    })
}

fn words_of(a: &B) -> impl Fn(usize) -> u32 + '_ {
    |lane| u32::from_le_bytes(lanes(|byte| a[4 * lane + byte]))
}

impl Simd for Portable {
    type F = F;
    type I = I;
    type B = B;
    type X = [i16; 64];
    type Sum = I;
    type Wide = B;
    type Quad = [i16; 4];
    type WideSum = I;
    type Nibbles = B;
    /// Of low nibbles, then of high ones.
    type NibbleX = [[i16; 64]; 2];
    type NibbleSum = I;

    const TILE_TOKENS: usize = 8;
    const NIBBLE_TILE_TOKENS: usize = 8;
    const TILES: usize = 2;
    const HEADS: usize = 4;
    const OFFSET: i32 = 0;

    fn quad(upper: [i8; 4], lower: [i8; 4]) -> [i32; 2] {
        [word(upper), word(lower)]
    }
    fn eight(upper: [i8; 8], lower: [i8; 8]) -> [i32; 4] {
        let [low, high] = [0, 1].map(|from| Self::quad(every_second(upper, from), every_second(lower, from)));
        [low[0], low[1], high[0], high[1]]
    }

    fn splat(self, value: f32) -> F {
        [value; 16]
    }
    fn load(self, from: &[f32; 16]) -> F {
        *from
    }
    fn store(self, value: F, to: &mut [f32; 16]) {
        *to = value;
    }
    fn add(self, a: F, b: F) -> F {
        lanes(|i| a[i] + b[i])
    }
    fn sub(self, a: F, b: F) -> F {
        lanes(|i| a[i] - b[i])
    }
    fn mul(self, a: F, b: F) -> F {
        lanes(|i| a[i] * b[i])
    }
    fn div(self, a: F, b: F) -> F {
        lanes(|i| a[i] / b[i])
    }
    fn fma(self, a: F, b: F, c: F) -> F {
        lanes(|i| a[i].mul_add(b[i], c[i]))
    }
    fn max(self, a: F, b: F) -> F {
        lanes(|i| a[i].max(b[i]))
    }
    fn min(self, a: F, b: F) -> F {
        lanes(|i| a[i].min(b[i]))
    }
    fn abs(self, a: F) -> F {
        a.map(f32::abs)
    }
    fn round(self, a: F) -> I {
        a.map(|value| value.round_ties_even() as i32)
    }
    fn float(self, a: I) -> F {
        a.map(|value| value as f32)
    }
    fn float_bits(self, a: F) -> I {
        a.map(|value| value.to_bits() as i32)
    }
    fn float_of_bits(self, a: I) -> F {
        a.map(|value| f32::from_bits(value as u32))
    }
    fn exp2i(self, n: I) -> F {
        n.map(|n| f32::from_bits(((n + 127) as u32) << 23))
    }
    fn load_bf16(self, from: &[u8; 32]) -> F {
        lanes(|i| f32::from_bits(u32::from(u16::from_le_bytes([from[2 * i], from[2 * i + 1]])) << 16))
    }
    fn load_f16(self, from: &[u8; 32]) -> F {
        lanes(|i| f16::from_le_bytes([from[2 * i], from[2 * i + 1]]).to_f32())
    }
    fn round_to_f16(self, a: F) -> F {
        a.map(|value| f16::from_f32(value).to_f32())
    }
    fn sum(self, a: F) -> f32 {
        (quad_sum(&a, 0) + quad_sum(&a, 1)) + (quad_sum(&a, 2) + quad_sum(&a, 3))
    }
    fn largest(self, a: F) -> f32 {
        a.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
    fn quad_sums(self, of: [F; 4]) -> F {
        lanes(|lane| quad_sum(&of[lane % 4], lane / 4))
    }
    fn pair_quads(self, a: F, b: F) -> F {
        pair_quads(&a, &b)
    }
    fn transpose_quads(self, a: F) -> F {
        lanes(|lane| a[lane % 4 * 4 + lane / 4])
    }
    fn zip_quads(self, a: F) -> F {
        lanes(|lane| a[lane / 8 * 8 + lane % 2 * 4 + lane / 2 % 4])
    }

    fn int_splat(self, value: i32) -> I {
        [value; 16]
    }
    fn int_load(self, from: &[i32; 16]) -> I {
        *from
    }
    fn int_store(self, value: I, to: &mut [i32; 16]) {
        *to = value;
    }
    fn int_add(self, a: I, b: I) -> I {
        lanes(|i| a[i].wrapping_add(b[i]))
    }
    fn int_sub(self, a: I, b: I) -> I {
        lanes(|i| a[i].wrapping_sub(b[i]))
    }
    fn int_and(self, a: I, b: I) -> I {
        lanes(|i| a[i] & b[i])
    }
    fn int_shl<const BITS: u32>(self, a: I) -> I {
        a.map(|value| value << BITS)
    }
    fn int_shr<const BITS: u32>(self, a: I) -> I {
        a.map(|value| value >> BITS)
    }
    fn int_quad_sums(self, of: [I; 4]) -> I {
        lanes(|lane| quad_sum(&of[lane % 4], lane / 4))
    }
    fn int_pair_quads(self, a: I, b: I) -> I {
        pair_quads(&a, &b)
    }
    fn int_transpose_quads(self, a: I) -> I {
        lanes(|lane| a[lane % 4 * 4 + lane / 4])
    }
    fn int_zip_quads(self, a: I) -> I {
        lanes(|lane| a[lane / 8 * 8 + lane % 2 * 4 + lane / 2 % 4])
    }
    fn swap_pairs(self, a: I) -> I {
        lanes(|lane| a[lane ^ 1])
    }
    fn int_transpose(self, rows: &mut [I; 16]) {
        let before = *rows;
        *rows = lanes(|column| lanes(|row| before[row][column]));
    }
    fn store_low_bytes(self, a: I, to: &mut [i8; 16]) {
        *to = a.map(|value| value as i8);
    }

    fn load_bytes(self, from: &[u8; 64]) -> B {
        *from
    }
    fn store_bytes(self, value: B, to: &mut [u8; 64]) {
        *to = value;
    }
    fn low_nibbles(self, a: B) -> B {
        a.map(|byte| byte & 15)
    }
    fn high_nibbles(self, a: B) -> B {
        a.map(|byte| byte >> 4)
    }
    fn flip_sign(self, a: B) -> B {
        a.map(|byte| byte ^ 128)
    }
    fn arranged(self, upper: &[i8; 64], lower: &[i8; 64]) -> [i16; 64] {
        lanes(|i| 256 * i16::from(upper[i]) + i16::from(lower[i]))
    }
    fn repeat_arranged(self, upper: [i8; 4], lower: [i8; 4]) -> [i16; 64] {
        lanes(|i| 256 * i16::from(upper[i % 4]) + i16::from(lower[i % 4]))
    }
    fn no_sum(self) -> I {
        [0; 16]
    }
    fn add_products(self, sum: I, a: B, x: [i16; 64]) -> I {
        lanes(|lane| {
            (4 * lane..4 * lane + 4).fold(sum[lane], |sum, i| sum + i32::from(a[i]) * i32::from(x[i]))
        })
    }
    fn end_sum(self, sum: I) -> I {
        sum
    }
    fn repeat(self, quad: &[i32; 2]) -> [i16; 4] {
        let [upper, lower] = quad.map(i32::to_le_bytes);
        lanes(|i| 256 * i16::from(upper[i] as i8) + i16::from(lower[i] as i8))
    }
    fn widen(self, codes: B) -> B {
        codes
    }
    fn no_wide_sum(self) -> I {
        self.no_sum()
    }
    fn add_wide_products(self, sum: I, codes: B, x: [i16; 4]) -> I {
        self.add_products(sum, codes, lanes(|i| x[i % 4]))
    }
    fn end_wide_sum(self, sum: I) -> I {
        sum
    }
    fn arrange_for_nibbles(self, _x: &mut [[i8; 64]; 4]) {}
    fn nibble_x(self, x: &[[i8; 64]; 4]) -> [[i16; 64]; 2] {
        [self.arranged(&x[0], &x[1]), self.arranged(&x[2], &x[3])]
    }
    fn repeat_eight(self, eight: &[i32; 4]) -> [[i16; 64]; 2] {
        [[eight[0], eight[1]], [eight[2], eight[3]]].map(|quad| {
            let quad = self.repeat(&quad);
            lanes(|i| quad[i % 4])
        })
    }
    fn nibbles(self, a: B) -> B {
        a
    }
    fn no_nibble_sum(self) -> I {
        self.no_sum()
    }
    fn add_nibble_products(self, sum: I, codes: B, x: [[i16; 64]; 2]) -> I {
        let sum = self.add_products(sum, self.low_nibbles(codes), x[0]);
        self.add_products(sum, self.high_nibbles(codes), x[1])
    }
    fn end_nibble_sum(self, sum: I) -> I {
        sum
    }
    fn words(self, a: B) -> I {
        let word = words_of(&a);
        lanes(|lane| word(lane) as i32)
    }
    fn bytes(self, a: I) -> B {
        lanes(|byte| a[byte / 4].to_le_bytes()[byte % 4])
    }
    fn nibble<const J: u32>(self, a: I) -> F {
        a.map(|word| (word as u32 >> (4 * J) & 15) as f32)
    }
    fn byte<const J: u32>(self, a: I) -> F {
        a.map(|word| (word as u32 >> (8 * J) & 255) as f32)
    }
    fn signed_byte<const J: u32>(self, a: I) -> F {
        a.map(|word| (word as u32 >> (8 * J)) as u8 as i8 as f32)
    }
    fn prefetch(self, _of: &[u8], _offset: usize) {}
    fn prefetch_near(self, _of: &[u8], _offset: usize) {}
}
