//! Turns the feature `mlx` of `q35-backends` on, on Apple's systems only.
//!
//! Cargo has no default features of a platform. It does have dependencies of a platform, and unites the features that
//! are asked of one crate: who has this crate as an optional dependency, switched on by a default feature, has MLX with
//! Metal on a Mac, nothing of it elsewhere, and can still be built without. There is no code here.
#![deny(missing_docs)]
