//! Converts a Qwen3.5 checkpoint to MLX or Core ML: one function for both.
//!
//! ```
//! # let home = std::env::temp_dir().join(format!("q35-convert-doctest-{}", std::process::id()));
//! # std::fs::create_dir_all(&home)?;
//! # let out = home.join("q35-nano-int4");
//! use q35_convert::{ConvertOptions, Mlx, Source, convert};
//!
//! let source = Source::embedded()?; // or Source::directory("Qwen3.5-0.8B"), or Source::resolve(hub id)
//! let target = Mlx::round_to_nearest(4, 64)?; // or Mlx::calibrated(), or CoreMl::default()
//! let report = convert(&source, &target, &ConvertOptions::new(&out), &|progress| {
//!     eprintln!("{}: {} of {}", progress.stage, progress.done, progress.total);
//! })?;
//! println!("{}: {}", report.out.display(), report.describe_parity());
//! # assert!(report.passed() && report.describe_parity().contains("computed right"));
//! # std::fs::remove_dir_all(&home)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`convert`] stages the output in a hidden sibling of its directory, has the [`Target`] plan and write weights and
//! configuration, copies the auxiliary files, runs a short parity check against the source, seals the directory with
//! its manifest and publishes it with one rename. A new format is a new [`Target`].
//!
//! The crate must not know terminals, arguments or the environment, and not how converted models are used afterwards.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod calibrated_recipe;
mod convert;
mod dropped_tensors;
mod error;
mod estimate;
mod model_card;
mod pinned_checkpoints;
mod progress;
mod provenance;
mod source;
mod target;
mod targets;
mod verify;

pub use calibrated_recipe::{
    Budget, Calibration, DEFAULT_BITS_PER_WEIGHT, RecipeError, has_resume_files, resume_dir,
};
pub use convert::{ConversionReport, ConvertOptions, convert};
pub use error::ConvertError;
pub use estimate::{describe_duration, estimate_calibration, estimate_round_to_nearest};
pub use pinned_checkpoints::PinnedCheckpoint;
pub use progress::{Progress, ProgressCallback, Stage};
pub use provenance::Provenance;
pub use source::{NANO, Source};
pub use target::{CardSection, Details, Job, Summary, Target, Written};
pub use targets::{CoreMl, Mlx, MlxRecipe, RecipeName};
pub use verify::describe_parity;
