//! [`crate::Predictor`] over Apple's Core ML.
//!
//! `ApplePredictor` compiles a package once, caches the result (`.mlmodelc`) under a hash of the package's contents,
//! loads each function as an `MLModel` with the requested compute units, and converts tensors to and from
//! `MLMultiArray`s. Caches that a package has as inputs and outputs stay `MLMultiArray`s between calls. `compute_plan`
//! reports the unit on which Core ML plans to run each operation.
//!
//! **Never run on Apple hardware**: the code that calls Apple's framework is type-checked for macOS and iOS only; see
//! `docs/apple.md`. `layout` and `compiled_cache` do not call the framework and are tested on every system. On other
//! systems the module is empty outside of tests.
#![allow(unsafe_code, reason = "calls Objective-C")]

#[cfg(target_vendor = "apple")]
mod array;
#[cfg(target_vendor = "apple")]
mod compile;
#[cfg(any(target_vendor = "apple", test))]
mod compiled_cache;
#[cfg(target_vendor = "apple")]
mod error;
#[cfg(any(target_vendor = "apple", test))]
mod layout;
#[cfg(target_vendor = "apple")]
mod model;
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
