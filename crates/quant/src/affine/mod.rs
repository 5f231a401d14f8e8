//! MLX's affine quantization, bit for bit.
//!
//! A row is cut into groups of `group_size` weights. Each group has a `scale` and a `bias` in the type of the source,
//! and each weight a code `q` of `bits` bits; a weight is then `scale * q + bias`.
//!
//! Packed layout: the codes of a row form one stream of bits, the first code in the lowest bits, stored as
//! little-endian 32-bit words. For 2, 4 and 8 bits a word holds a whole number of codes; for 3, 5 and 6 bits codes run
//! over the edges of words, and 8 codes take `bits` bytes. A group always starts on a word.
//!
//! How MLX chooses scale and bias (facts from its open kernels, checked against `mx.quantize` by the goldens): the
//! scale first spans the group from its least to its greatest weight, floored at 1e-7, and takes its sign such that
//! the edge of larger magnitude is counted from; it is then stretched so that this edge is a whole number of steps
//! from zero, and the bias is that edge. Codes are computed with the scale in f32, before it is rounded for storage.

mod dequantize;
mod pack;
mod packed;
mod quantize;
mod spec;

pub use dequantize::{dequantize_rows, dequantize_rows_rounded};
pub use pack::{pack_codes, unpack_codes};
pub use packed::{PackedMatrix, PackedView};
pub use quantize::{group_parameters, quantize_into, quantize_rows, quantize_values};
pub use spec::{AffineError, AffineSpec};
