//! CPU arithmetic of the model on plain slices: packed-weight products, norms, convolution, delta rule, attention,
//! and the thread pool that runs them.
//!
//! Knows nothing of files, tensors by name, or models.
