//! Apple's Core ML as a [`crate::Predictor`]. Everything above "predict" is shared with the evaluator, which runs on any
//! system.
//!
//! `ApplePredictor` compiles a package once and keeps the result (`.mlmodelc`) under a hash of the package's contents,
//! loads each function as a model of its own with the compute units asked for, and moves tensors across the border.
//! Caches that a package takes as inputs stay arrays of Core ML's from call to call. `compute_plan` tells which unit
//! Core ML means to run each operation on.
//!
//! **Untested on Apple**: what calls Apple's framework has been type-checked for macOS and iOS and has never run;
//! `docs/apple.md` says how to change that. What does not call it (where elements lie in strided memory, and where
//! compiled models are kept) is compiled for tests on every system. Elsewhere the module is empty.
#![allow(unsafe_code)]

#[cfg(target_vendor = "apple")]
mod array;
#[cfg(any(target_vendor = "apple", test))]
mod cache;
#[cfg(target_vendor = "apple")]
mod compiled;
#[cfg(any(target_vendor = "apple", test))]
mod layout;
#[cfg(target_vendor = "apple")]
mod plan;
#[cfg(target_vendor = "apple")]
mod predictor;
#[cfg(target_vendor = "apple")]
mod session;

#[cfg(target_vendor = "apple")]
pub use plan::compute_plan;
#[cfg(target_vendor = "apple")]
pub use predictor::ApplePredictor;
