//! Qwen3.5 as Core ML packages: the graph, INT8 weights streamed from a checkpoint, and the directory around them.
//!
//! [`write()`] converts a checkpoint; [`PackageWeights`] gives a package's weights back as numbers, so that any two
//! forms of a model can be compared. How packages are run is not known here, and nothing that is written here has
//! been run by Apple's Core ML: it is checked against the format and evaluated operator by operator.
//!
//! ```no_run
//! use q35_checkpoint::Checkpoint;
//! use q35_format_coreml::{Encoding, Options, Provenance, write};
//!
//! let checkpoint = Checkpoint::open("Qwen3.5-0.8B".as_ref())?;
//! let options = Options { encoding: Encoding::Block32, ..Options::default() };
//! let written = write(&checkpoint, &options, &Provenance::default(), "out".as_ref(), &|_| {})?;
//! println!("{} weights in INT8", written.summary.quantized_weights);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod caches;
mod card;
mod companions;
mod convert;
mod error;
mod functions;
mod host_table;
mod options;
mod qwen3_5;
mod read;
mod store;
mod swift;

pub use convert::{Progress, Provenance, Summary, Written, write};
pub use error::ConvertError;
pub use host_table::{HOST_TABLE, HOST_TABLE_SCALES, HOST_TABLE_WEIGHT};
pub use options::{Cache, Compute, Embedding, Encoding, Layout, Options, OptionsError};
pub use read::{PackageWeights, PackageWeightsError};
