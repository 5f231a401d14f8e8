//! Quantizers: affine groups as MLX packs them ([`affine`]), symmetric INT8 as Core ML takes it, and the float types
//! that checkpoints hold ([`FloatType`]).
//!
//! Works on slices and bytes. Knows nothing of files, tensors by name, or models.
//!
//! ```
//! use q35_quant::FloatType;
//! let mut values = [0.0f32; 2];
//! FloatType::Bf16.widen(&[0x80, 0x3f, 0x00, 0xc0], &mut values);
//! assert_eq!(values, [1.0, -2.0]);
//! ```
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod float;

pub use float::FloatType;
