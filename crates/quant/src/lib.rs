//! Quantizers: MLX's affine groups ([`affine`]), Core ML's symmetric INT8 ([`symmetric`]), and the workspace's one enum of
//! float types ([`FloatType`]).
//!
//! Works on slices and bytes. Must not know files, tensor names, or models.
//!
//! ```
//! use q35_quant::{FloatType, affine};
//!
//! let spec = affine::AffineSpec::new(4, 32)?;
//! let mut row = Vec::new();
//! FloatType::Bf16.narrow(&(0..64).map(|i| i as f32 / 32.0).collect::<Vec<_>>(), &mut row);
//! let packed = affine::quantize_rows(spec, FloatType::Bf16, &row, 64)?;
//! let mut back = vec![0.0; 64];
//! affine::dequantize_rows(&packed.view(), 0..1, &mut back);
//! assert!((back[40] - 1.25).abs() < 0.05);
//! # Ok::<(), affine::AffineError>(())
//! ```
#![deny(missing_docs)]
#![forbid(unsafe_code)]

pub mod affine;
mod float;
pub mod symmetric;

pub use float::FloatType;
