//! Qwen3.5 as Core ML packages: the graph, and INT8 weights streamed from a checkpoint.
//!
//! [`Plan`] decides the treatment of every tensor and writes the packages with config.json; [`PackageWeights`] reads
//! the dequantized weights of written packages. Tokenizer files, manifest and model card are written by q35-convert.
//! The crate must not know how packages are run. Its output has not been run by Apple's Core ML; it is checked against
//! the format and evaluated operator by operator.
//!
//! ```no_run
//! use q35_checkpoint::Checkpoint;
//! use q35_format_coreml::{Encoding, Options, write};
//!
//! let checkpoint = Checkpoint::open("Qwen3.5-0.8B".as_ref())?;
//! let options = Options { encoding: Encoding::Block32, ..Options::default() };
//! let written = write(&checkpoint, &options, "out".as_ref(), &|_| {})?;
//! println!("{} weights in INT8", written.summary.quantized_weights);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod caches;
mod chat_config;
mod error;
mod functions;
mod host_table;
mod options;
mod plan;
mod qwen3_5;
mod read;
mod tokens;
mod weight_store;
mod write;

pub use error::WriteError;
pub use host_table::{HOST_TABLE, HOST_TABLE_SCALES, HOST_TABLE_WEIGHT};
pub use options::{Cache, Compute, Embedding, Encoding, Layout, Options, OptionsError};
pub use plan::{Plan, Summary};
pub use read::{PackageWeights, PackageWeightsError};
pub use write::{Written, write};
