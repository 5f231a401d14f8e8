//! Distance of two next-token distributions: KL divergence, top-k agreement, cosine, perplexity.
//!
//! Pure functions over rows of logits, and streaming summaries of them. The crate must not know models, files or text.
//!
//! ```
//! use q35_metrics::{Summarizer, compare_rows};
//!
//! let mut summary = Summarizer::default();
//! summary.push(&compare_rows(&[1.0, 2.0, 3.0], &[1.0, 2.1, 2.9])?);
//! let summary = summary.finish();
//! assert!(summary.kl.mean > 0.0 && summary.kl.mean < 1e-2);
//! assert_eq!(summary.top1_agreement, 1.0);
//! # Ok::<(), q35_metrics::RowError>(())
//! ```
//!
//! # Arithmetic
//!
//! Logits are f32 and every sum is f64. Exponentials are a branch-free polynomial in f64, so that the compiler
//! vectorises the loop over a vocabulary of a quarter of a million tokens, and a KL of 1e-12 is above the rounding
//! error: with exponentials in f32 each log-sum-exp is uncertain by 1e-7. Adding a constant to all logits of a row
//! changes only the cosine and the largest difference, which are computed from raw logits.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod calibration;
mod exp;
mod row;
mod softmax;
mod summary;
mod vector;

pub use calibration::{Calibration, CalibrationBin};
pub use row::{
    RowComparison, RowError, Top1, argmax, compare_rows, log_sum_exp, negative_log_likelihood, top_indices,
};
pub use softmax::{kl_with_gradient, softmax_in_place};
pub use summary::{Histogram, Perplexity, Spread, Summarizer, Summary};
pub use vector::VectorError;
