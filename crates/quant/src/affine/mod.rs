//! MLX's affine quantization, bit for bit.
//!
//! A row consists of groups of `group_size` weights. Each group has a `scale` and a `bias` in the type of the source, and
//! each weight a code `q` of `bits` bits: `w = scale * q + bias`.
//!
//! Packed layout: the codes of a row form one bit stream, the first code in the lowest bits, stored as little-endian
//! 32-bit words. For 2, 4 and 8 bits a word holds a whole number of codes; for 3, 5 and 6 bits codes cross word
//! boundaries, and 8 codes take `bits` bytes. A group always starts at a word boundary.
//!
//! MLX's choice of scale and bias (from its open source kernels, checked against `mx.quantize` by golden files): the scale
//! spans the group from minimum to maximum, at least 1e-7, with the sign that makes code 0 the edge of larger magnitude.
//! It is then adjusted so that this edge is a whole number of steps from zero, and the bias is that edge. Codes are
//! computed with the f32 scale, before it is rounded for storage.

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
