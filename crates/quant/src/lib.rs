//! Quantizers and their inverses: affine groups bit for bit as MLX packs them, symmetric INT8 as Core ML takes it.
//!
//! Works on slices of numbers; knows nothing of files or models.
