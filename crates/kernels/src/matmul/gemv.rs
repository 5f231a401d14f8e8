//! Product of rows with one token: the decode step, bound by memory bandwidth.

use super::activations::ActivationBuffer;
use super::matrix::{Codes, Matrix};
use super::rows::{ROWS_PER_BLOCK, RowBlock, RowScratch, float_dot, float_row};
use super::unpack::unpack;
use super::{gemv_int4, gemv_int8};
use crate::aligned::Aligned;
use crate::simd::{Kernel, Simd};

/// Rows `first..first + out.len()` of `matrix` times one token.
pub(crate) struct Gemv<'a> {
    pub matrix: &'a Matrix<'a>,
    pub x: &'a ActivationBuffer,
    pub first: usize,
    pub out: &'a mut [f32],
    pub scratch: &'a mut GemvScratch,
}

/// Scratch buffers of a thread.
#[derive(Debug, Default)]
pub(crate) struct GemvScratch {
    /// Bit-packed codes, unpacked to bytes.
    unpacked: Aligned<u8>,
    /// An unquantized row, or the scales and biases of a block of rows.
    values: Aligned<f32>,
    rows: RowScratch,
}

impl Kernel for Gemv<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { matrix, x, first, out, scratch } = self;
        let columns = matrix.columns;
        if let Codes::Float(floats) = matrix.codes {
            for (at, out) in out.iter_mut().enumerate() {
                float_row(simd, floats, (first + at) * columns, columns, &mut scratch.values);
                *out = float_dot(simd, &scratch.values, &x.values);
            }
            return;
        }
        let GemvScratch { unpacked, values, rows: scratch } = scratch;
        for (block, out) in out.chunks_mut(ROWS_PER_BLOCK).enumerate() {
            let first = first + ROWS_PER_BLOCK * block;
            match matrix.codes {
                Codes::U4(codes) => {
                    let codes = &codes[first * columns / 2..];
                    let block = RowBlock { matrix, x, first, codes };
                    gemv_int4::multiply(simd, block, values, &mut scratch.padded, out);
                }
                Codes::U8(codes) => {
                    let codes = &codes[first * columns..];
                    gemv_int8::multiply_u8(simd, RowBlock { matrix, x, first, codes }, scratch, out);
                }
                Codes::I8(codes) => {
                    let codes = &codes[first * columns..];
                    gemv_int8::multiply_i8(simd, RowBlock { matrix, x, first, codes }, scratch, out);
                }
                Codes::I8RoundedToF16(codes) => {
                    let codes = &codes[first * columns..];
                    let block = RowBlock { matrix, x, first, codes };
                    gemv_int8::multiply_i8_rounded_to_f16(simd, block, scratch, out);
                }
                Codes::BitPacked { bits, bytes } => {
                    unpacked.resize(ROWS_PER_BLOCK * columns);
                    let codes = &mut unpacked[..out.len() * columns];
                    let row_bytes = columns * bits / 8;
                    unpack(simd, bits, &bytes[first * row_bytes..][..out.len() * row_bytes], codes);
                    gemv_int8::multiply_u8(simd, RowBlock { matrix, x, first, codes }, scratch, out);
                }
                Codes::Float(_) => {}
            }
        }
    }
}
